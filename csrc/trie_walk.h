#pragma once

#include "trie.h"

namespace crs {

CRS_HD int64_t walk_row(const TrieView& trie, const int64_t* codes, int64_t length) {
  int64_t node = 0;
  for (int64_t i = 0; i < length && codes[i] != kEnd && node != kNoNode; ++i)
    node = trie.child(node, codes[i]);
  return node;
}

}  // namespace crs
