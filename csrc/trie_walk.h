// From the codes of one row to the node they lead to, for the CPU and the CUDA code.
#pragma once

#include "trie.h"

namespace crs {

CRS_HD int64_t walk_row(const TrieView& trie, const int64_t* codes, int64_t length) {
  Node node = trie.node(0);
  for (int64_t i = 0; i < length && codes[i] != kEnd; ++i) {
    const Children children(trie, node);
    const int64_t k = children.find(codes[i]);
    if (k == children.last) return kNoNode;
    node = children.child(k);
  }
  return node.pack();
}

}  // namespace crs
