#include "trie_build.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "trie.h"

namespace crs {
namespace {

constexpr int kDigitBits = 16;

void check_rows(const int64_t* sids, int64_t num_items, int64_t levels) {
  // One slot is kept for the root, one for the sentinel of child_begin.
  if (num_items > (std::numeric_limits<int32_t>::max() - 2) / std::max<int64_t>(levels, 1))
    throw std::invalid_argument("trie_build: sids must have fewer than 2^31 codes (got " +
                                std::to_string(num_items) + " rows of " + std::to_string(levels) +
                                ")");
  for (int64_t i = 0; i < num_items; ++i) {
    const int64_t* row = sids + i * levels;
    if (row[0] == kEnd)
      throw std::invalid_argument("trie_build: sids[" + std::to_string(i) +
                                  "] must hold at least one code (got only padding)");
    for (int64_t l = 0; l < levels; ++l) {
      if (row[l] < kEnd || row[l] >= std::numeric_limits<int32_t>::max())
        throw std::invalid_argument("trie_build: codes must lie in [0, 2^31 - 2], -1 pads (got " +
                                    std::to_string(row[l]) + " in sids[" + std::to_string(i) +
                                    "])");
      if (l > 0 && row[l - 1] == kEnd && row[l] != kEnd)
        throw std::invalid_argument(
            "trie_build: sids[" + std::to_string(i) + "] must have no code after padding (got " +
            std::to_string(row[l]) + " at level " + std::to_string(l) + ")");
    }
  }
}

// Stable least-significant-digit radix sort of rows, so items on one SID keep their input order.
std::vector<int32_t> sort_rows(const int64_t* sids, int64_t num_items, int64_t levels) {
  std::vector<int32_t> order(num_items), next(num_items);
  std::iota(order.begin(), order.end(), 0);
  std::vector<int64_t> count;
  for (int64_t l = levels - 1; l >= 0; --l) {
    int64_t top = 0;
    for (int64_t i = 0; i < num_items; ++i) top = std::max(top, sids[i * levels + l] + 1);
    for (int shift = 0; (top >> shift) > 0; shift += kDigitBits) {
      int64_t buckets = std::min<int64_t>((top >> shift) + 1, int64_t{1} << kDigitBits);
      count.assign(buckets + 1, 0);
      auto digit = [&](int32_t row) {
        return ((sids[row * levels + l] + 1) >> shift) & ((int64_t{1} << kDigitBits) - 1);
      };
      for (int64_t i = 0; i < num_items; ++i) ++count[digit(order[i]) + 1];
      std::partial_sum(count.begin(), count.end(), count.begin());
      for (int64_t i = 0; i < num_items; ++i) next[count[digit(order[i])]++] = order[i];
      order.swap(next);
    }
  }
  return order;
}

}  // namespace

TrieArrays trie_build(const int64_t* sids, int64_t num_items, int64_t levels) {
  check_rows(sids, num_items, levels);
  TrieArrays trie;
  trie.order = sort_rows(sids, num_items, levels);
  trie.item_begin = {0};
  trie.item_end = {static_cast<int32_t>(num_items)};
  trie.child_begin = {0};
  trie.level_begin = {0, 1};
  auto code_at = [&](int32_t position, int64_t level) {
    return static_cast<int32_t>(sids[trie.order[position] * levels + level]);
  };
  int32_t node = 0;
  for (int64_t level = 0; level < levels; ++level) {
    for (int32_t level_end = trie.level_begin[level + 1]; node < level_end; ++node) {
      int32_t begin = trie.item_begin[node], end = trie.item_end[node];
      // Padding sorts first: if the last row has ended, all have, and the node is a leaf.
      bool leaf = begin == end || code_at(end - 1, level) == kEnd;
      while (!leaf && begin < end) {
        int32_t label = code_at(begin, level), run = begin;
        while (run < end && code_at(run, level) == label) ++run;
        trie.code.push_back(label);
        trie.item_begin.push_back(begin);
        trie.item_end.push_back(run);
        begin = run;
      }
      trie.child_begin.push_back(static_cast<int32_t>(trie.code.size()));
    }
    trie.level_begin.push_back(static_cast<int32_t>(trie.item_begin.size()));
  }
  trie.child_begin.resize(trie.item_begin.size() + 1, static_cast<int32_t>(trie.code.size()));
  return trie;
}

}  // namespace crs
