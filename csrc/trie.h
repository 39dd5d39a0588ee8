// The trie as raw pointers: one view for the CPU and the CUDA code.
//
// Items stand in sorted SID order. A node is a range of items at a depth, so there are no node
// records: for each depth a bitmap marks the items at which a node begins, and the codes of those
// nodes stand in one array, in the same order. A unary tail costs a bit and a code per level; a
// node's children are adjacent; a filter is one more bitmap, and a child is legal iff its range
// holds an allowed item. Rank (nodes before each word) makes both ways, item to node and node to
// item, cost the same whatever the catalogue's size.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CRS_HD __host__ __device__ __forceinline__
#else
#define CRS_HD inline __attribute__((always_inline))  // isa.h says why
#endif

namespace crs {

// Pads ragged rows; the "code" of the node that ends a SID which is also the prefix of a longer
// one.
constexpr int32_t kEnd = -1;
// Node of a row outside any SID (trie_mask), of an illegal prefix (trie_walk), of a dead beam
// (trie_step).
constexpr int64_t kNoNode = -1;
// Node of a row that trie_mask leaves as it is.
constexpr int64_t kLeave = -2;

CRS_HD int popcount(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __popcll(bits);
#else
  return __builtin_popcountll(bits);
#endif
}

CRS_HD int lowest_bit(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __ffsll(static_cast<long long>(bits)) - 1;
#else
  return __builtin_ctzll(bits);
#endif
}

CRS_HD uint64_t bits_below(int64_t position) { return (uint64_t{1} << (position & 63)) - 1; }

// A range of items that share a prefix of `depth` codes. As int64: 7 bits of depth, 28 of size, 28
// of begin; the root is 0 whatever its size, so that it stays what it is when a catalogue changes.
struct Node {
  int64_t depth, begin, end;

  static constexpr int kBits = 28;
  static constexpr int64_t kLimit = int64_t{1} << kBits;  // more items than this cannot be

  CRS_HD int64_t pack() const {
    return depth == 0 ? 0 : depth << (2 * kBits) | (end - begin) << kBits | begin;
  }
};

struct TrieView {
  const void* codes;      // codes of the nodes, depth after depth; `code_bytes` each
  const uint64_t* bits;   // [levels, words]: items at which a node of depth level + 1 begins
  const int32_t* rank;    // [levels, words]: nodes of that depth before each word
  const int32_t* starts;  // where the nodes of sparse depths begin
  const int64_t* level;   // [levels + 1, 2]: first code, first start (-1: none); last row: totals,
                          // that is codes and items
  int64_t levels, words;
  int code_bytes;  // 1 or 2 (unsigned), or 4

  CRS_HD int64_t num_items() const { return level[2 * levels + 1]; }

  CRS_HD Node node(int64_t packed) const {
    if (packed == 0) return {0, 0, num_items()};
    const int64_t begin = packed & (Node::kLimit - 1);
    return {packed >> (2 * Node::kBits), begin,
            begin + (packed >> Node::kBits & (Node::kLimit - 1))};
  }

  // Whether kernels may follow the node: it names a depth and items that exist. That suffices for
  // every read to stay inside the arrays, also where the node is another trie's.
  CRS_HD bool holds(int64_t packed) const {
    const Node at = node(packed);
    return packed == 0 || (at.depth >= 1 && at.depth <= levels && at.end <= num_items());
  }

  CRS_HD bool begins(int64_t l, int64_t item) const {
    return bits[l * words + (item >> 6)] >> (item & 63) & 1;
  }

  // Nodes of depth l + 1 that begin before `item`.
  CRS_HD int64_t before(int64_t l, int64_t item) const {
    const int64_t at = l * words + (item >> 6);
    return rank[at] + popcount(bits[at] & bits_below(item));
  }

  // Where the k-th node of depth l + 1 begins; it is known to lie in [low, high).
  CRS_HD int64_t begin_of(int64_t l, int64_t k, int64_t low, int64_t high) const {
    const int64_t table = level[2 * l + 1];
    if (table >= 0) return starts[table + k];
    const int32_t* ranks = rank + l * words;
    int64_t first = low >> 6, last = (high - 1) >> 6;  // the last word with rank <= k
    while (first < last) {
      const int64_t middle = (first + last + 1) / 2;
      if (ranks[middle] <= k)
        first = middle;
      else
        last = middle - 1;
    }
    uint64_t word = bits[l * words + first];
    for (int64_t skip = k - ranks[first]; skip > 0; --skip) word &= word - 1;
    return first * 64 + lowest_bit(word);
  }

  // Where the node after the k-th of depth l + 1 begins, which begins at `begin`; there is one.
  CRS_HD int64_t next_begin(int64_t l, int64_t k, int64_t begin) const {
    const int64_t table = level[2 * l + 1];
    if (table >= 0) return starts[table + k + 1];
    const uint64_t* row = bits + l * words;
    int64_t at = begin >> 6;
    uint64_t word = row[at] & ~(bits_below(begin) | uint64_t{1} << (begin & 63));
    while (word == 0) word = row[++at];
    return at * 64 + lowest_bit(word);
  }

  CRS_HD int64_t code(int64_t l, int64_t k) const {
    const int64_t at = level[2 * l] + k;
    if (code_bytes == 1) return static_cast<const uint8_t*>(codes)[at];
    if (code_bytes == 2) return static_cast<const uint16_t*>(codes)[at];
    return static_cast<const int32_t*>(codes)[at];
  }
};

// The children of a node: nodes `first` to `last` of the next depth, and before them, where a SID
// ends here, the node that ends it.
struct Children {
  const TrieView& trie;
  Node parent;
  int64_t first, last;

  CRS_HD Children(const TrieView& t, const Node& node) : trie(t), parent(node), first(0), last(0) {
    if (parent.depth == trie.levels || parent.begin == parent.end) return;
    first = trie.before(parent.depth, parent.begin);
    last = trie.before(parent.depth, parent.end);
  }

  CRS_HD int64_t size() const { return last - first; }
  CRS_HD bool is_leaf() const { return first == last; }
  // Items whose SID is the parent's own prefix stand first in its range.
  CRS_HD bool has_end() const {
    return parent.depth < trie.levels && parent.begin < parent.end &&
           !trie.begins(parent.depth, parent.begin);
  }
  // Whether a beam may go on to `end()`: a SID ends here, or the parent waits at the last depth.
  CRS_HD bool may_end() const { return has_end() || parent.depth == trie.levels; }
  CRS_HD int64_t begin_of(int64_t k) const {
    return k == last ? parent.end : trie.begin_of(parent.depth, k, parent.begin, parent.end);
  }
  CRS_HD Node child(int64_t k) const {
    const int64_t begin = begin_of(k);
    const int64_t end = k + 1 == last ? parent.end : trie.next_begin(parent.depth, k, begin);
    return {parent.depth + 1, begin, end};
  }
  // The child that holds `item`, which is of no SID that ends here.
  CRS_HD int64_t holding(int64_t item) const {
    return trie.before(parent.depth, item) + trie.begins(parent.depth, item) - 1;
  }
  // The end of the SID; at the last depth the node itself, which waits there.
  CRS_HD Node end() const {
    if (parent.depth == trie.levels) return parent;
    return {parent.depth + 1, parent.begin, begin_of(first)};
  }
  CRS_HD int64_t code(int64_t k) const { return trie.code(parent.depth, k); }

  // The first child whose code is not below `wanted`, or `last`.
  CRS_HD int64_t lower_bound(int64_t wanted) const {
    int64_t low = first, high = last;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (code(middle) < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  // The child that `wanted` leads to, or `last`.
  CRS_HD int64_t find(int64_t wanted) const {
    const int64_t k = lower_bound(wanted);
    return k < last && code(k) == wanted ? k : last;
  }
};

// One bitmap over items in sorted order for each request.
struct FilterView {
  const uint64_t* words;  // [num_filters, stride], null when nothing is filtered
  const int32_t* rank;    // [num_filters, stride]: allowed items before each word
  int64_t stride;         // at least num_items / 64 + 1, so that position num_items has a word

  CRS_HD int64_t before(int64_t filter, int64_t item) const {
    const int64_t at = filter * stride + (item >> 6);
    return rank[at] + popcount(words[at] & bits_below(item));
  }

  CRS_HD bool has(int64_t filter, int64_t item) const {
    return words[filter * stride + (item >> 6)] >> (item & 63) & 1;
  }
  CRS_HD int64_t count(int64_t filter, const Node& node) const {
    return before(filter, node.end) - before(filter, node.begin);
  }
  CRS_HD bool any(int64_t filter, const Node& node) const {
    if (words == nullptr) return true;
    return node.begin < node.end && (has(filter, node.begin) || count(filter, node) > 0);
  }
};

}  // namespace crs
