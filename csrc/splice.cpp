// Copies what stands between the ranges and what stands for them, in blocks of the result.
#include "splice.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "threads.h"

namespace crs {
namespace {

constexpr int64_t kBlock = 1 << 18;  // items of the result

class Splice {
 public:
  explicit Splice(const SpliceArgs& args) : a_(args), kept_(args.count + 1) {
    int64_t removed = 0;
    for (int64_t i = 0; i <= a_.count; ++i) {
      kept_[i] = from(i) - removed + a_.bounds[i];
      if (i < a_.count) removed += a_.end[i] - a_.begin[i];
    }
  }

  int64_t size() const { return kept_[a_.count] + to(a_.count) - from(a_.count); }

  // Writes [first, last) of the result.
  void fill(int64_t first, int64_t last) const {
    int64_t i = std::upper_bound(kept_.begin(), kept_.end(), first) - kept_.begin() - 1;
    for (i = std::max<int64_t>(i, 0); i <= a_.count && kept_[i] < last; ++i) {
      const int64_t old = to(i) - from(i);
      copy(a_.values, from(i), kept_[i], old, first, last, i);
      if (i < a_.count)
        copy(a_.added, a_.bounds[i], kept_[i] + old, a_.bounds[i + 1] - a_.bounds[i], first, last,
             -1);
    }
  }

 private:
  // What is kept before range i is [from, to) of the values.
  int64_t from(int64_t i) const { return i == 0 ? 0 : a_.end[i - 1]; }
  int64_t to(int64_t i) const { return i == a_.count ? a_.size : a_.begin[i]; }

  // `size` items from `source` to `target`, as far as they lie in [first, last) of the result.
  void copy(const void* items, int64_t source, int64_t target, int64_t size, int64_t first,
            int64_t last, int64_t shift) const {
    const int64_t skip = std::max<int64_t>(0, first - target);
    const int64_t count = std::min(size, last - target) - skip;
    if (count <= 0) return;
    source += skip, target += skip;
    if (shift >= 0 && a_.shift) {
      const int64_t* in = static_cast<const int64_t*>(items) + source;
      int64_t* out = static_cast<int64_t*>(a_.out) + target;
      for (int64_t k = 0; k < count; ++k) out[k] = in[k] + a_.shift[shift];
      return;
    }
    std::memcpy(static_cast<char*>(a_.out) + target * a_.item_bytes,
                static_cast<const char*>(items) + source * a_.item_bytes,
                static_cast<size_t>(count * a_.item_bytes));
  }

  const SpliceArgs& a_;
  std::vector<int64_t>
      kept_;  // [count + 1]: where what is kept before range i stands in the result
};

}  // namespace

void splice(const SpliceArgs& args) {
  const Splice copy(args);
  const int64_t size = copy.size();
  parallel_for(args.threads, (size + kBlock - 1) / kBlock, [&](int64_t block, int) {
    copy.fill(block * kBlock, std::min(size, (block + 1) * kBlock));
  });
}

}  // namespace crs
