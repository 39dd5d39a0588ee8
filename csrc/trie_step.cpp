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

// scores[i] = log-prob of columns[i] added to the parent's score; -inf where there is no column.
struct Affine {
  float scale, shift, parent;
};
template <typename T>
CRS_INLINE void gather(const T* logits, const int32_t* columns, int64_t size, const Affine& f,
                       float* scores) {
  for (int64_t i = 0; i < size; ++i) {
    const float value = to_float(logits[std::max(columns[i], 0)]);
    scores[i] = columns[i] < 0 ? kMinusInf : f.parent + (value * f.scale - f.shift);
  }
}
CRS_CLONES void gather_scores(const float* x, const int32_t* c, int64_t n, const Affine& f,
                              float* out) {
  gather(x, c, n, f, out);
}
CRS_CLONES void gather_scores(const BFloat16* x, const int32_t* c, int64_t n, const Affine& f,
                              float* out) {
  gather(x, c, n, f, out);
}
CRS_CLONES void gather_scores(const Float16* x, const int32_t* c, int64_t n, const Affine& f,
                              float* out) {
  gather(x, c, n, f, out);
}

// Whether any of 16 scores is above the threshold.
CRS_INLINE bool any_above(const float* scores, float threshold) {
  bool any = false;
  for (int i = 0; i < kLanes; ++i) any |= scores[i] > threshold;
  return any;
}

constexpr int64_t kBlock = 256;  // children scored at a time
constexpr int64_t kEndChild = -1;
// Below so many logits a second thread costs more than it brings.
constexpr int64_t kParallel = 1 << 15;

// Where a depth's codes stand among the logits.
struct Columns {
  const int64_t* table;
  int64_t width;
  int64_t first;  // column of code 0 where the codes' columns are adjacent, else -1

  Columns(const TokenView& tokens, int64_t depth)
      : table(tokens.column + depth * tokens.stride), width(tokens.width), first(-1) {
    if (width == 0 || table[0] < 0) return;
    for (int64_t c = 1; c < width; ++c)
      if (table[c] != table[0] + c) return;
    first = table[0];
  }

  template <typename Code>
  void look_up(const Code* codes, int64_t size, int32_t* out) const {
    if (first >= 0) {
      for (int64_t i = 0; i < size; ++i)
        out[i] = int64_t{codes[i]} < width ? static_cast<int32_t>(first) + codes[i] : -1;
    } else {
      for (int64_t i = 0; i < size; ++i)
        out[i] = int64_t{codes[i]} < width ? static_cast<int32_t>(table[codes[i]]) : -1;
    }
  }

  // Columns of `size` children from the k-th on.
  void look_up(const Children& children, int64_t k, int64_t size, int32_t* out) const {
    const TrieView& trie = children.trie;
    const int64_t at = trie.level[2 * children.parent.depth] + k;
    if (trie.code_bytes == 1)
      look_up(static_cast<const uint8_t*>(trie.codes) + at, size, out);
    else if (trie.code_bytes == 2)
      look_up(static_cast<const uint16_t*>(trie.codes) + at, size, out);
    else
      look_up(static_cast<const int32_t*>(trie.codes) + at, size, out);
  }
};

struct Candidate {
  float score;
  int32_t parent;
  int64_t child;  // index within its depth, or kEndChild
};
// Higher scores first; ties go to the lower parent, then to the lower code.
bool better(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  return a.parent != b.parent ? a.parent < b.parent : a.child < b.child;
}

// The best candidates so far, the worst of them on top.
class Best {
 public:
  explicit Best(size_t wanted) : wanted_(wanted) { heap_.reserve(wanted); }
  // Candidates come in order of parent and child, so that an equal score never gets in.
  float threshold() const { return heap_.size() < wanted_ ? kMinusInf : heap_.front().score; }
  void add(const Candidate& candidate) {
    if (heap_.size() == wanted_) {
      std::pop_heap(heap_.begin(), heap_.end(), better);
      heap_.pop_back();
    }
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end(), better);
  }
  const std::vector<Candidate>& sorted() {
    std::sort_heap(heap_.begin(), heap_.end(), better);
    return heap_;
  }

 private:
  size_t wanted_;
  std::vector<Candidate> heap_;
};

template <typename T>
struct Step {
  const StepArgs& args;
  std::vector<Columns> columns;  // [levels]
  std::vector<float> normalizers;

  explicit Step(const StepArgs& a) : args(a), normalizers(a.batch * a.beams, 0.0f) {
    const int64_t levels = args.trie.levels;
    for (int64_t l = 0; l < levels; ++l)
      columns.push_back(l > 0 && args.tokens.stride == 0 ? columns[0] : Columns(args.tokens, l));
  }

  const T* row(int64_t r) const { return static_cast<const T*>(args.logits) + r * args.row_stride; }
  bool dead(int64_t r) const { return args.nodes[r] == kNoNode || args.scores[r] == kMinusInf; }
  Children children_of(int64_t r) const { return {args.trie, args.trie.node(args.nodes[r])}; }
  bool allowed(int64_t request, const Node& node) const { return args.filter.any(request, node); }

  float normalizer(int64_t r) const {
    const T* logits = row(r);
    if (args.normalize == Normalize::kVocab)
      return row_logsumexp(logits, args.vocab, args.inverse_temperature);
    std::vector<float> picked;
    const Children children = children_of(r);
    if (args.normalize == Normalize::kLevel) {
      // A whole SID has no next level; nothing is scored there.
      const Columns& level = columns[std::min(children.parent.depth, args.trie.levels - 1)];
      if (level.first >= 0)
        return row_logsumexp(logits + level.first, level.width, args.inverse_temperature);
      for (int64_t c = 0; c < level.width; ++c)
        if (level.table[c] >= 0) picked.push_back(to_float(logits[level.table[c]]));
    } else {
      for (int64_t k = children.first; k < children.last; ++k) {
        const int64_t column = args.tokens.at(children.parent.depth, children.code(k));
        if (column < 0) continue;
        if (args.filter.words && !allowed(r / args.beams, children.child(k))) continue;
        picked.push_back(to_float(logits[column]));
      }
    }
    return row_logsumexp(picked.data(), static_cast<int64_t>(picked.size()),
                         args.inverse_temperature);
  }

  void offer_children(int64_t r, const Children& children, Best& best) const {
    const int64_t request = r / args.beams;
    const auto parent = static_cast<int32_t>(r % args.beams);
    const Columns& level = columns[children.parent.depth];
    const Affine affine{args.inverse_temperature, normalizers[r], args.scores[r]};
    int32_t at[kBlock];
    float scores[kBlock];
    for (int64_t k = children.first; k < children.last; k += kBlock) {
      const int64_t size = std::min(kBlock, children.last - k);
      level.look_up(children, k, size, at);
      gather_scores(row(r), at, size, affine, scores);
      for (int64_t base = 0; base < size; base += kLanes) {
        const int64_t stop = std::min<int64_t>(base + kLanes, size);
        if (stop - base == kLanes && !any_above(scores + base, best.threshold())) continue;
        for (int64_t i = base; i < stop; ++i)
          if (scores[i] > best.threshold() &&
              (!args.filter.words || allowed(request, children.child(k + i))))
            best.add({scores[i], parent, k + i});
      }
    }
  }

  void select(int64_t request) const {
    Best best(args.out_beams);
    for (int64_t m = 0; m < args.beams; ++m) {
      const int64_t r = request * args.beams + m;
      if (dead(r)) continue;
      const Children children = children_of(r);
      const bool ends = children.has_end() || children.parent.depth == args.trie.levels;
      if (ends && args.scores[r] > best.threshold() && allowed(request, children.end()))
        best.add({args.scores[r], static_cast<int32_t>(m), kEndChild});
      if (!children.is_leaf()) offer_children(r, children, best);
    }
    write(request, best.sorted());
  }

  void write(int64_t request, const std::vector<Candidate>& best) const {
    for (int64_t i = 0; i < args.out_beams; ++i) {
      const int64_t at = request * args.out_beams + i;
      if (i >= static_cast<int64_t>(best.size())) {
        args.out_scores[at] = kMinusInf;
        args.out_nodes[at] = kNoNode;
        args.out_parents[at] = 0;
        args.out_codes[at] = kEnd;
        continue;
      }
      const Candidate& chosen = best[i];
      const Children children = children_of(request * args.beams + chosen.parent);
      const bool ends = chosen.child == kEndChild;
      args.out_scores[at] = chosen.score;
      args.out_nodes[at] = (ends ? children.end() : children.child(chosen.child)).pack();
      args.out_parents[at] = chosen.parent;
      args.out_codes[at] = ends ? kEnd : children.code(chosen.child);
    }
  }

  void run() {
    const int64_t rows = args.batch * args.beams;
#pragma omp parallel if (rows > 1 && rows * args.vocab > kParallel)
    {
#pragma omp for schedule(static)
      for (int64_t r = 0; r < rows; ++r)
        if (!dead(r)) normalizers[r] = normalizer(r);
#pragma omp for schedule(static)
      for (int64_t b = 0; b < args.batch; ++b) select(b);
    }
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
