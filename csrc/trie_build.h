// SIDs to trie arrays, in two steps, so that the caller allocates: `sort` says how large they are,
// `fill` writes them.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "trie_layout.h"

namespace crs {

class TrieBuilder {
 public:
  // sids: [num_items, levels], row-major, -1 pads ragged rows; must outlive the builder. The first
  // `num_sorted` rows are in order already.
  TrieBuilder(const int64_t* sids, int64_t num_items, int64_t levels, int64_t num_sorted,
              int threads);

  // Throws std::invalid_argument.
  void sort();

  // order: [num_items], sorted position -> row of the input.
  void fill(const TrieArrays& out, int32_t* order);

  const TrieSizes& sizes() const { return sizes_; }
  // From 0 to 1; may be read while another thread sorts or fills.
  double progress() const;

 private:
  // The leading codes of a row as one number, and the row: orders most pairs without a look at
  // rows.
  struct Entry {
    uint64_t key;
    uint32_t row;
  };

  void check();
  void pack();
  void sort_entries(std::vector<Entry>& entries);
  void compare_neighbours();
  void count_nodes();
  template <typename Code>
  void fill_chunk(const TrieArrays& out, int32_t* order, int64_t chunk);
  bool less(const Entry& a, const Entry& b) const;
  int64_t common_levels(const Entry& a, const Entry& b) const;
  int64_t length(int64_t row) const;
  const int64_t* row(int64_t r) const { return sids_ + r * levels_; }
  int64_t chunk_begin(int64_t chunk) const;

  const int64_t* sids_;
  const int64_t num_items_, levels_, num_sorted_;
  const int threads_;  // at most
  bool ragged_ = false;
  int64_t packed_levels_ = 0;
  std::vector<int64_t> top_;         // [levels]: highest code
  std::vector<int> shift_;           // [packed levels]: where a level's code stands in a key
  std::vector<Entry> entries_;       // in sorted order
  std::vector<uint8_t> common_;      // [num_items]: levels shared with the item before
  std::vector<int64_t> first_node_;  // [chunks, levels]: nodes of each depth before a chunk
  TrieSizes sizes_;
  int64_t num_chunks_ = 0;
  std::atomic<int64_t> done_{0};
};

}  // namespace crs
