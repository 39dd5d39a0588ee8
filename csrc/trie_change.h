// A trie with more items, or without some, in two steps like trie_build.h: `plan` says how large
// the arrays are, `fill` writes them. What stands between the changed items is copied in runs.
#pragma once

#include <cstdint>
#include <vector>

#include "trie.h"
#include "trie_layout.h"

namespace crs {

class TrieInsertion {
 public:
  // rows: [size, levels], in sorted order, checked, -1 pads; levels is at least the trie's. What
  // the pointers lead to must outlive this object.
  TrieInsertion(const TrieView& trie, const int64_t* rows, int64_t size, int64_t levels,
                int threads);

  // at: [size], how many items of the trie stand before each row; those of the same SID do.
  void plan(int64_t* at);
  void fill(const TrieArrays& out) const;
  const TrieSizes& sizes() const { return sizes_; }

 private:
  struct Place {
    uint8_t common;   // levels shared with the row before, all where both are equal
    uint8_t matched;  // levels shared with items of the trie
    uint8_t taken;    // the nodes from this level on that are shared begin with this row now
    uint8_t length;   // codes
  };

  void place(int64_t first, int64_t last, int64_t* at);
  void fill_bits(int64_t l, uint64_t* bits) const;
  template <typename From, typename To>
  void fill_codes(int64_t l, const From* old, To* codes) const;
  const int64_t* row(int64_t j) const { return rows_ + j * levels_; }

  const TrieView trie_;
  const int64_t* rows_;
  const int64_t size_, levels_;
  const int threads_;  // at most
  const int64_t* at_ = nullptr;
  std::vector<Place> places_;  // [size]
  TrieSizes sizes_;
};

class TrieRemoval {
 public:
  // items: [size], ascending positions. What the pointers lead to must outlive this object.
  TrieRemoval(const TrieView& trie, const int64_t* items, int64_t size, int threads);

  void plan();
  void fill(const TrieArrays& out) const;
  const TrieSizes& sizes() const { return sizes_; }

 private:
  // What becomes of the nodes of one depth.
  struct Level {
    std::vector<int32_t> gone;   // nodes none of whose items stay
    std::vector<int32_t> begin;  // new positions of items that begin a node now
  };

  void plan_level(int64_t l);
  void fill_bits(int64_t l, uint64_t* bits) const;
  template <typename From, typename To>
  void fill_codes(int64_t l, const From* old, To* codes) const;
  int64_t lowest_begin(int64_t item) const;
  bool ends_run(int64_t j) const { return j + 1 == size_ || items_[j + 1] != items_[j] + 1; }

  const TrieView trie_;
  const int64_t* items_;
  const int64_t size_;
  const int threads_;  // at most
  // The lowest level at which a node begins: at a removed item, and at the item that follows a run
  // of them. The number of levels where none does.
  std::vector<uint8_t> lowest_, lowest_next_;  // [size]
  std::vector<Level> changes_;                 // [levels]
  TrieSizes sizes_;
};

}  // namespace crs
