// The beam step on the CPU: one pass over each beam's children, the best of which are kept.
#include <algorithm>
#include <cmath>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "simd.h"
#include "step_rules.h"
#include "trie_ops.h"

namespace crs {
namespace {

int64_t max_threads() {
#if defined(_OPENMP)
  return omp_get_max_threads();
#else
  return 1;
#endif
}

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

  const float log2_scale = inverse_temperature * 1.44269504088896341f;
  Floats sum;
  for (int i = 0; i < kLanes; ++i) sum[i] = 0.0f;
  for (int64_t i = 0; i < whole; i += kLanes) {
    load(logits + i, value);
    value = (value - highest) * log2_scale;
    exp2_nonpositive(value);
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

constexpr int64_t kBlock = 256;  // children scored at a time
// Fewer allowed items than one in so many children: go from items to children.
constexpr int64_t kFew = 4;
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
};

// The children whose logit is above `limit`, as offsets from the first: their number.
template <typename T, typename Code>
int64_t above(const T* logits, const Code* codes, int64_t size, float limit, int32_t* out) {
  int64_t count = 0, i = 0;
#if defined(__SSE2__)
  const __m128 limits = _mm_set1_ps(limit);
  for (; i + kLanes <= size; i += kLanes) {
    __m128i over[4];
    for (int j = 0; j < 4; ++j) {
      const Code* c = codes + i + 4 * j;
      const __m128 values = _mm_setr_ps(to_float(logits[c[0]]), to_float(logits[c[1]]),
                                        to_float(logits[c[2]]), to_float(logits[c[3]]));
      over[j] = _mm_castps_si128(_mm_cmpgt_ps(values, limits));
    }
    unsigned bits = _mm_movemask_epi8(
        _mm_packs_epi16(_mm_packs_epi32(over[0], over[1]), _mm_packs_epi32(over[2], over[3])));
    for (; bits != 0; bits &= bits - 1)
      out[count++] = static_cast<int32_t>(i) + __builtin_ctz(bits);
  }
#endif
  for (; i < size; ++i) {
    out[count] = static_cast<int32_t>(i);
    count += to_float(logits[codes[i]]) > limit;
  }
  return count;
}

// The best candidates so far, among others that are thrown out when there is no more room: cheaper
// than a heap, which would be put in order at every candidate.
class Best {
 public:
  explicit Best(size_t wanted) : wanted_(wanted), room_(std::max<size_t>(2 * wanted, 64)) {
    kept_.reserve(room_);
  }
  // A lower score never gets in. Nor does an equal one, as candidates come in order of parent and
  // child; at first, what can't be a beam.
  float threshold() const { return threshold_; }
  void add(const Candidate& candidate) {
    kept_.push_back(candidate);
    if (kept_.size() == room_) prune();
  }
  void merge(const Best& other) {
    for (const Candidate& candidate : other.kept_) add(candidate);
  }
  const std::vector<Candidate>& sorted() {
    if (kept_.size() > wanted_) prune();
    std::sort(kept_.begin(), kept_.end(), better);
    return kept_;
  }

 private:
  void prune() {
    std::nth_element(kept_.begin(), kept_.begin() + (wanted_ - 1), kept_.end(), better);
    kept_.resize(wanted_);
    threshold_ = kept_.back().score;
  }

  size_t wanted_, room_;
  float threshold_ = kMinusInf;
  std::vector<Candidate> kept_;
};

template <typename T>
struct Step {
  const StepArgs& args;
  std::vector<Columns> columns;  // [levels]

  explicit Step(const StepArgs& a) : args(a) {
    const int64_t levels = args.trie.levels;
    for (int64_t l = 0; l < levels; ++l)
      columns.push_back(l > 0 && args.tokens.stride == 0 ? columns[0] : Columns(args.tokens, l));
  }

  const T* row(int64_t r) const { return static_cast<const T*>(args.logits) + r * args.row_stride; }

  float normalizer(int64_t r, const Children& children) const {
    const T* logits = row(r);
    if (args.normalize == Normalize::kVocab)
      return row_logsumexp(logits, args.vocab, args.inverse_temperature);
    std::vector<float> picked;
    if (args.normalize == Normalize::kLevel) {
      const Columns& level = columns[scored_level(args, children)];
      if (level.first >= 0)
        return row_logsumexp(logits + level.first, level.width, args.inverse_temperature);
      for (int64_t c = 0; c < level.width; ++c)
        if (level.table[c] >= 0) picked.push_back(to_float(logits[level.table[c]]));
    } else {
      for (int64_t k = children.first; k < children.last; ++k) {
        const int64_t column = legal_column(args, children, r / args.beams, k);
        if (column >= 0) picked.push_back(to_float(logits[column]));
      }
    }
    return row_logsumexp(picked.data(), static_cast<int64_t>(picked.size()),
                         args.inverse_temperature);
  }

  // Which of `size` children from the k-th on may beat the threshold.
  int64_t promising(const Children& children, int64_t k, int64_t size, const T* logits, float limit,
                    int32_t* out) const {
    const TrieView& trie = children.trie;
    const Columns& level = columns[children.parent.depth];
    if (level.first < 0 || children.code(k + size - 1) >= level.width) {
      for (int64_t i = 0; i < size; ++i) out[i] = static_cast<int32_t>(i);
      return size;
    }
    logits += level.first;
    const int64_t at = trie.level[2 * children.parent.depth] + k;
    if (trie.code_bytes == 1)
      return above(logits, static_cast<const uint8_t*>(trie.codes) + at, size, limit, out);
    if (trie.code_bytes == 2)
      return above(logits, static_cast<const uint16_t*>(trie.codes) + at, size, limit, out);
    return above(logits, static_cast<const int32_t*>(trie.codes) + at, size, limit, out);
  }

  void offer_child(int64_t r, const Children& children, int64_t child, float norm,
                   Best& best) const {
    const int64_t column = args.tokens.at(children.parent.depth, children.code(child));
    if (column < 0) return;
    const float score = score_of(args, args.scores[r], to_float(row(r)[column]), norm);
    if (!(score > best.threshold())) return;
    // Last, since it costs most.
    if (!args.filter.words || args.filter.any(r / args.beams, children.child(child)))
      best.add({score, static_cast<int32_t>(r % args.beams), child});
  }

  void offer_children(int64_t r, const Children& children, Best& best) const {
    const float norm = normalizer(r, children);
    int32_t candidates[kBlock];
    for (int64_t k = children.first; k < children.last; k += kBlock) {
      const int64_t size = std::min(kBlock, children.last - k);
      const float limit = limit_of(best.threshold(), args.scores[r], norm);
      const int64_t count = promising(children, k, size, row(r), limit, candidates);
      for (int64_t i = 0; i < count; ++i) offer_child(r, children, k + candidates[i], norm, best);
    }
  }

  // Where few items are allowed: from them to the children that hold them.
  void offer_allowed(int64_t r, const Children& children, Best& best) const {
    const float norm = normalizer(r, children);
    const uint64_t* words = args.filter.words + r / args.beams * args.filter.stride;
    const Node& parent = children.parent;
    // Items of the SID that ends here stand before the first child.
    const int64_t begin = children.begin_of(children.first);
    int64_t before = kEndChild;
    for (int64_t at = begin >> 6; at <= (parent.end - 1) >> 6; ++at) {
      uint64_t word = words[at];
      if (at == begin >> 6) word &= ~bits_below(begin);
      for (; word != 0; word &= word - 1) {
        const int64_t item = at * 64 + lowest_bit(word);
        if (item >= parent.end) break;
        const int64_t child = children.holding(item);
        if (child != before) offer_child(r, children, child, norm, best);
        before = child;
      }
    }
  }

  // A logit that certainly does not reach the threshold, rounding included.
  float limit_of(float threshold, float parent, float norm) const {
    if (threshold == kMinusInf) return kMinusInf;
    const float slack = 1e-6f * (std::abs(threshold) + std::abs(parent) + std::abs(norm));
    return (threshold - parent + norm - slack) / args.inverse_temperature;
  }

  void offer(int64_t request, int64_t first_beam, int64_t last_beam, Best& best) const {
    for (int64_t m = first_beam; m < last_beam; ++m) {
      const int64_t r = request * args.beams + m;
      if (is_dead(args, r)) continue;
      const Children children = children_of(args, r);
      if (args.scores[r] > best.threshold() && may_end(args, children, request))
        best.add({args.scores[r], static_cast<int32_t>(m), kEndChild});
      if (children.is_leaf()) continue;
      const Node& parent = children.parent;
      const int64_t few = children.size() / kFew;
      if (args.filter.words && args.filter.count(request, parent) < few &&
          (parent.end - parent.begin) / 64 < children.size())
        offer_allowed(r, children, best);
      else
        offer_children(r, children, best);
    }
  }

  void write(int64_t request, const std::vector<Candidate>& best) const {
    for (int64_t i = 0; i < args.out_beams; ++i) {
      const int64_t at = request * args.out_beams + i;
      if (i < static_cast<int64_t>(best.size()))
        write_beam(args, at, request, best[i]);
      else
        write_dead_beam(args, at);
    }
  }

  // A thread takes one request or, where there are fewer of them than threads, a part of one.
  void run() const {
    if (args.batch == 0) return;
    const bool alone = args.batch * args.beams * args.vocab < kParallel;
    const int64_t threads = alone ? 1 : max_threads();
    const int64_t parts = std::clamp<int64_t>((threads + args.batch - 1) / args.batch, 1,
                                              std::max<int64_t>(args.beams, 1));
    std::vector<Best> best(args.batch * parts, Best(args.out_beams));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < args.batch * parts; ++i)
        offer(i / parts, i % parts * args.beams / parts, (i % parts + 1) * args.beams / parts,
              best[i]);
#pragma omp for schedule(static)
      for (int64_t b = 0; b < args.batch; ++b) {
        for (int64_t p = 1; p < parts; ++p) best[b * parts].merge(best[b * parts + p]);
        write(b, best[b * parts].sorted());
      }
    }
  }
};

}  // namespace

void trie_step_cpu(const StepArgs& args) {
  switch (args.dtype) {
    case DType::kBFloat16:
      return Step<BFloat16>{args}.run();
    case DType::kFloat16:
      return Step<Float16>{args}.run();
    default:
      return Step<float>{args}.run();
  }
}

}  // namespace crs
