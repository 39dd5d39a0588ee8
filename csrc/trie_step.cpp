#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "simd.h"
#include "trie_ops.h"

namespace crs {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// log(sum(exp(inverse_temperature * logits))) over a contiguous row.
template <typename T>
CRS_INLINE float logsumexp(const T* logits, int64_t size, float inverse_temperature) {
  Floats value, top;
  for (int i = 0; i < kLanes; ++i) top[i] = kMinusInf;
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    load(logits + i, value);
    maximum(top, value);
  }
  float highest = kMinusInf;
  for (int i = 0; i < kLanes; ++i) highest = std::max(highest, top[i]);
  for (int64_t i = whole; i < size; ++i) highest = std::max(highest, to_float(logits[i]));
  if (!std::isfinite(highest)) return highest;

  Floats sum = top - top;
  for (int i = 0; i < kLanes; ++i) sum[i] = 0.0f;
  for (int64_t i = 0; i < whole; i += kLanes) {
    load(logits + i, value);
    value = (value - highest) * inverse_temperature;
    exp_nonpositive(value);
    sum += value;
  }
  double total = 0.0;
  for (int i = 0; i < kLanes; ++i) total += sum[i];
  for (int64_t i = whole; i < size; ++i)
    total += std::exp((to_float(logits[i]) - highest) * inverse_temperature);
  return static_cast<float>(highest * double{inverse_temperature} + std::log(total));
}

CRS_CLONES float row_logsumexp(const float* x, int64_t n, float t) { return logsumexp(x, n, t); }
CRS_CLONES float row_logsumexp(const BFloat16* x, int64_t n, float t) { return logsumexp(x, n, t); }
CRS_CLONES float row_logsumexp(const Float16* x, int64_t n, float t) { return logsumexp(x, n, t); }

template <typename T>
struct Step {
  const StepArgs& args;

  const T* row(int64_t r) const { return static_cast<const T*>(args.logits) + r * args.row_stride; }
  bool dead(int64_t r) const { return args.nodes[r] == kNoNode || args.scores[r] == kMinusInf; }

  // Calls visit(child node, code, column or -1) for each legal continuation of row r.
  template <typename Visit>
  void for_each_legal(int64_t r, Visit visit) const {
    const TrieView& trie = args.trie;
    const int64_t node = args.nodes[r], filter = args.filter.words ? r / args.beams : 0;
    const int32_t first = trie.child_begin[node], last = trie.child_begin[node + 1];
    if (first == last) {  // A whole SID waits for the longer ones.
      if (args.filter.any(filter, trie.item_begin[node], trie.item_end[node]))
        visit(node, kEnd, int64_t{-1});
      return;
    }
    const int32_t depth = trie.depth(node);
    for (int32_t e = first; e < last; ++e) {
      if (!args.filter.any(filter, trie.item_begin[e + 1], trie.item_end[e + 1])) continue;
      const int32_t code = trie.code[e];
      const int64_t column = code == kEnd ? -1 : args.tokens.at(depth, code);
      if (code == kEnd || column >= 0) visit(int64_t{e} + 1, code, column);
    }
  }

  float normalizer(int64_t r) const {
    const T* logits = row(r);
    if (args.normalize == Normalize::kVocab)
      return row_logsumexp(logits, args.vocab, args.inverse_temperature);
    std::vector<float> picked;
    if (args.normalize == Normalize::kLevel) {
      // A whole SID has no next level; nothing is scored there.
      const int64_t level = std::min<int64_t>(args.trie.depth(args.nodes[r]), args.trie.levels - 1);
      for (int64_t c = 0; c < args.tokens.width; ++c) {
        const int64_t column = args.tokens.at(level, c);
        if (column >= 0) picked.push_back(to_float(logits[column]));
      }
    } else {
      for_each_legal(r, [&](int64_t, int32_t, int64_t column) {
        if (column >= 0) picked.push_back(to_float(logits[column]));
      });
    }
    return row_logsumexp(picked.data(), static_cast<int64_t>(picked.size()),
                         args.inverse_temperature);
  }

  struct Candidate {
    float score;
    int32_t parent, code;
    int64_t node;
  };
  // Higher scores first; ties go to the lower parent, then to the lower code.
  static bool better(const Candidate& a, const Candidate& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.parent != b.parent ? a.parent < b.parent : a.code < b.code;
  }

  void select(int64_t request, const std::vector<float>& normalizers) const {
    std::vector<Candidate> heap;  // the worst kept candidate on top
    const size_t wanted = args.out_beams;
    heap.reserve(wanted + 1);
    for (int64_t m = 0; m < args.beams; ++m) {
      const int64_t r = request * args.beams + m;
      if (dead(r)) continue;
      const T* logits = row(r);
      for_each_legal(r, [&](int64_t node, int32_t code, int64_t column) {
        float score = args.scores[r];
        if (column >= 0)
          score += to_float(logits[column]) * args.inverse_temperature - normalizers[r];
        if (!(score > kMinusInf)) return;
        Candidate candidate{score, static_cast<int32_t>(m), code, node};
        if (heap.size() == wanted) {
          if (!better(candidate, heap.front())) return;
          std::pop_heap(heap.begin(), heap.end(), better);
          heap.pop_back();
        }
        heap.push_back(candidate);
        std::push_heap(heap.begin(), heap.end(), better);
      });
    }
    std::sort_heap(heap.begin(), heap.end(), better);
    for (int64_t k = 0; k < args.out_beams; ++k) {
      const int64_t at = request * args.out_beams + k;
      const bool valid = k < static_cast<int64_t>(heap.size());
      args.out_scores[at] = valid ? heap[k].score : kMinusInf;
      args.out_nodes[at] = valid ? heap[k].node : kNoNode;
      args.out_parents[at] = valid ? heap[k].parent : 0;
      args.out_codes[at] = valid ? heap[k].code : kEnd;
    }
  }

  void run() const {
    const int64_t rows = args.batch * args.beams;
    std::vector<float> normalizers(rows, 0.0f);
#pragma omp parallel for schedule(dynamic) if (rows > 1)
    for (int64_t r = 0; r < rows; ++r)
      if (!dead(r)) normalizers[r] = normalizer(r);
#pragma omp parallel for schedule(dynamic) if (args.batch > 1)
    for (int64_t b = 0; b < args.batch; ++b) select(b, normalizers);
  }
};

}  // namespace

void trie_step_cpu(const StepArgs& args) {
  switch (args.dtype) {
    case kBFloat16:
      return Step<BFloat16>{args}.run();
    case kFloat16:
      return Step<Float16>{args}.run();
    default:
      return Step<float>{args}.run();
  }
}

}  // namespace crs
