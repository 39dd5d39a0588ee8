#pragma once

#include <cstdint>
#include <vector>

namespace crs {

struct TrieArrays {
  std::vector<int32_t> child_begin, code, item_begin, item_end, level_begin;
  std::vector<int32_t> order;  // sorted position -> row of the input
};

// sids: [num_items, levels], row-major, -1 pads ragged rows. Throws std::invalid_argument.
TrieArrays trie_build(const int64_t* sids, int64_t num_items, int64_t levels);

}  // namespace crs
