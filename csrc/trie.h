// The trie as raw pointers: one view for the CPU and the CUDA code.
//
// Nodes stand in breadth-first order, so edge e leads to node e + 1 and no next-state array exists.
// Every node covers a contiguous range of items in sorted SID order, so a filter is a bitmap with
// rank: a child is legal iff its range holds an allowed item.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CRS_HD __host__ __device__ __forceinline__
#else
#define CRS_HD inline
#endif

namespace crs {

// Label of the edge that ends a SID which is also the prefix of a longer one; also pads ragged
// rows.
constexpr int32_t kEnd = -1;
// Node of a row outside any SID (trie_mask), of an illegal prefix (trie_walk), of a dead beam
// (trie_step).
constexpr int64_t kNoNode = -1;

struct TrieView {
  const int32_t*
      child_begin;            // [nodes + 1]: edges of node n are child_begin[n] .. child_begin[n+1]
  const int32_t* code;        // [nodes - 1]: label of each edge, ascending within a node
  const int32_t* item_begin;  // [nodes]
  const int32_t* item_end;    // [nodes]
  const int32_t* level_begin;  // [levels + 2]: first node of each depth
  int64_t levels;

  CRS_HD int32_t depth(int64_t node) const {
    int32_t d = 0;
    while (d < levels && node >= level_begin[d + 1]) ++d;
    return d;
  }

  // The node that `want` leads to from `node`, or kNoNode.
  CRS_HD int64_t child(int64_t node, int64_t want) const {
    int32_t lo = child_begin[node], hi = child_begin[node + 1];
    while (lo < hi) {
      int32_t mid = lo + (hi - lo) / 2;
      if (code[mid] < want)
        lo = mid + 1;
      else
        hi = mid;
    }
    return lo < child_begin[node + 1] && code[lo] == want ? int64_t{lo} + 1 : kNoNode;
  }
};

// One bitmap over items in sorted order for each request; rows / num_filters rows share one.
struct FilterView {
  const uint64_t* words;  // [num_filters, stride], null when nothing is filtered
  const int32_t* rank;    // [num_filters, stride]: allowed items before each word
  int64_t stride;         // num_items / 64 + 1, so that the position num_items has a word

  CRS_HD static int popcount(uint64_t bits) {
#if defined(__CUDA_ARCH__)
    return __popcll(bits);
#else
    return __builtin_popcountll(bits);
#endif
  }

  CRS_HD int32_t before(int64_t filter, int64_t item) const {
    int64_t at = filter * stride + (item >> 6);
    return rank[at] + popcount(words[at] & ((uint64_t{1} << (item & 63)) - 1));
  }

  CRS_HD bool any(int64_t filter, int32_t begin, int32_t end) const {
    return words == nullptr || before(filter, end) > before(filter, begin);
  }
};

}  // namespace crs
