// The beam step on the CPU: one pass over each beam's children, the best of which are kept.
// Compiled once per instruction set.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "buffer.h"
#include "logsumexp.h"
#include "step_rules.h"
#include "threads.h"
#include "trie_ops.h"

namespace crs {
namespace CRS_ISA {
namespace {

constexpr int64_t kBlock = 256;  // children scored at a time
// Fewer allowed items than one in so many children: go from items to children.
constexpr int64_t kFew = 4;
// A thread more for every so many logits. Measured on two virtual cores: waking a sleeping thread
// takes about 100 microseconds, in which one thread reads 140 rows of 2,048.
constexpr int64_t kLogitsPerThread = 1 << 18;

// Where a depth's codes stand among the logits.
struct Columns {
  const int64_t* table = nullptr;
  int64_t width = 0;
  int64_t first = -1;  // column of code 0 where the codes' columns are adjacent, else -1

  Columns() = default;
  Columns(const TokenView& tokens, int64_t depth)
      : table(tokens.column + depth * tokens.stride), width(tokens.width), first(-1) {
    if (width == 0 || table[0] < 0) return;
    for (int64_t c = 1; c < width; ++c)
      if (table[c] != table[0] + c) return;
    first = table[0];
  }
};

// The children whose logit is above `limit`, as offsets from the first: their number. Few are, so a
// vector of them costs one branch; one by one they are kept without a branch.
template <typename T, typename Code>
int64_t above(const T* logits, const Code* codes, int64_t size, float limit, int32_t* out) {
  int64_t count = 0, i = 0;
  if constexpr (kCanGather && std::is_same_v<T, float>) {
    typedef Code Codes __attribute__((vector_size(kLanes * sizeof(Code))));
    for (; i + kLanes <= size; i += kLanes) {
      const Ints columns = __builtin_convertvector(read<Codes>(codes + i), Ints);
      uint64_t lanes = lanes_above(gather(logits, columns), limit);
      for (; lanes != 0; lanes &= lanes - 1)
        out[count++] = static_cast<int32_t>(i + lowest_bit(lanes));
    }
  }
  for (; i < size; ++i) {
    out[count] = static_cast<int32_t>(i);
    count += to_float(logits[codes[i]]) > limit;
  }
  return count;
}

struct Better {
  bool operator()(const Candidate& a, const Candidate& b) const { return better(a, b); }
};

// The best candidates so far, among others that are thrown out when there is no more room: cheaper
// than a heap, which would be put in order at every candidate.
class Best {
 public:
  explicit Best(int64_t wanted)
      : wanted_(wanted), room_(std::max<int64_t>(2 * wanted, 64)), kept_(room_) {}
  // A lower score never gets in. Nor does an equal one, as candidates come in order of parent and
  // child; at first, what can't be a beam.
  float threshold() const { return threshold_; }
  void add(const Candidate& candidate) {
    begin()[size_++] = candidate;
    if (size_ == room_) prune();
  }
  void merge(const Best& other) {
    for (int64_t i = 0; i < other.size_; ++i) add(other.begin()[i]);
  }
  void sort() {
    if (size_ > wanted_) prune();
    std::sort(begin(), begin() + size_, Better());
  }
  Candidate* begin() const { return kept_.get(); }
  int64_t size() const { return size_; }

 private:
  void prune() {
    std::nth_element(begin(), begin() + (wanted_ - 1), begin() + size_, Better());
    size_ = wanted_;
    threshold_ = begin()[wanted_ - 1].score;
  }

  int64_t wanted_, room_, size_ = 0;
  float threshold_ = kMinusInf;
  Buffer<Candidate> kept_;
};

template <typename T>
struct Step {
  const StepArgs& args;
  List<Columns> columns;  // [levels], of the depths where beams stand

  explicit Step(const StepArgs& a) : args(a), columns(a.trie.levels) {
    for (int64_t l = 0; l < args.trie.levels; ++l) columns.add();
    for (int64_t r = 0; r < args.batch * args.beams; ++r) {
      const int64_t level = scored_level(args, args.trie.node(args.nodes[r]));
      if (!is_dead(args, r) && columns[level].table == nullptr)
        columns[level] = Columns(args.tokens, level);
    }
  }

  const T* row(int64_t r) const { return static_cast<const T*>(args.logits) + r * args.row_stride; }

  float normalizer(int64_t r, const Children& children) const {
    if (args.normalizers) return args.normalizers[r];
    const T* logits = row(r);
    if (args.normalize == Normalize::kVocab)
      return logsumexp(logits, args.vocab, args.inverse_temperature);
    const Columns& level = columns[scored_level(args, children.parent)];
    const bool of_level = args.normalize == Normalize::kLevel;
    if (of_level && level.first >= 0)
      return logsumexp(logits + level.first, level.width, args.inverse_temperature);
    const Buffer<float> picked(of_level ? level.width : children.size());
    int64_t count = 0;
    const auto pick = [&](int64_t column) {
      if (column >= 0) picked.get()[count++] = to_float(logits[column]);
    };
    if (of_level)
      for (int64_t c = 0; c < level.width; ++c) pick(level.table[c]);
    else
      for (int64_t k = children.first; k < children.last; ++k)
        pick(legal_column(args, children, r / args.beams, k));
    return logsumexp(picked.get(), count, args.inverse_temperature);
  }

  // Which of `size` children from the k-th on may beat the threshold.
  int64_t promising(const Children& children, int64_t k, int64_t size, const T* logits, float limit,
                    int32_t* out) const {
    const TrieView& trie = children.trie;
    const Columns& level = columns[children.parent.depth];
    if (limit == kMinusInf || level.first < 0 || children.code(k + size - 1) >= level.width) {
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

  void write(int64_t request, const Best& best) const {
    for (int64_t i = 0; i < args.out_beams; ++i) {
      const int64_t at = request * args.out_beams + i;
      if (i < best.size())
        write_beam(args, at, request, best.begin()[i]);
      else
        write_dead_beam(args, at);
    }
  }

  // A thread takes a request at a time or, where there are few of them, a part of one.
  void run() const {
    if (args.batch == 0) return;
    const int64_t worth = args.batch * args.beams * args.vocab / kLogitsPerThread;
    const int64_t threads = std::clamp<int64_t>(worth, 1, std::max(1, args.threads));
    const int64_t chunks = threads == 1 ? 1 : 2 * threads;
    const int64_t parts = std::clamp<int64_t>((chunks + args.batch - 1) / args.batch, 1,
                                              std::max<int64_t>(args.beams, 1));
    List<Best> best(args.batch * parts);
    for (int64_t i = 0; i < args.batch * parts; ++i) best.add(args.out_beams);
    parallel_for(threads, args.batch * parts, [&](int64_t i, int) {
      offer(i / parts, i % parts * args.beams / parts, (i % parts + 1) * args.beams / parts,
            best[i]);
    });
    for (int64_t b = 0; b < args.batch; ++b) {
      for (int64_t p = 1; p < parts; ++p) best[b * parts].merge(best[b * parts + p]);
      best[b * parts].sort();
      write(b, best[b * parts]);
    }
  }
};

}  // namespace

void trie_step(const StepArgs& args) {
  switch (args.dtype) {
    case DType::kBFloat16:
      return Step<BFloat16>{args}.run();
    case DType::kFloat16:
      return Step<Float16>{args}.run();
    default:
      return Step<float>{args}.run();
  }
}

}  // namespace CRS_ISA
}  // namespace crs
