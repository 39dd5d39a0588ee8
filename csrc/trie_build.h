// SIDs to trie arrays, in two steps, so that the caller allocates: `sort` says how large they are,
// `fill` writes them. Beside its results it takes a byte per item, and a bucket's keys per thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "trie_layout.h"

namespace crs {

class TrieBuilder {
 public:
  // sids: [num_items, levels], row-major, -1 pads ragged rows; must outlive the builder. The first
  // `num_sorted` rows are in order already. `poll` is called often, on the calling thread; what it
  // throws ends the work.
  TrieBuilder(const int64_t* sids, int64_t num_items, int64_t levels, int64_t num_sorted,
              int threads, std::function<void()> poll);

  // order: [num_items], sorted position -> row of the input; must outlive the builder. Throws
  // std::invalid_argument.
  void sort(int32_t* order);
  void fill(const TrieArrays& out);

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
  void plan_keys();
  bool in_order();
  void deal();
  void sort_rows();
  void sort_bucket(int64_t begin, int64_t end);
  void number_rows();
  void compare(int64_t i);
  void count_nodes();
  template <typename Code>
  void fill_chunk(const TrieArrays& out, int64_t chunk);
  // body(chunk, begin, end) for all items in chunks, a pass of `progress`.
  template <typename Body>
  void for_each_chunk(const Body& body);
  void finished(int64_t items, int worker);
  uint64_t key(int64_t r) const;
  bool less(const Entry& a, const Entry& b) const;
  uint8_t common_levels(const Entry& a, const Entry& b) const;
  int64_t length(int64_t row) const;
  const int64_t* row(int64_t r) const { return sids_ + r * levels_; }

  const int64_t* sids_;
  const int64_t num_items_, levels_, num_sorted_;
  const int threads_;  // at most
  const std::function<void()> poll_;
  bool ragged_ = false;
  int64_t packed_levels_ = 0;
  std::vector<int64_t> top_;         // [levels]: highest code
  std::vector<int> shift_;           // [packed levels]: where a level's code stands in a key
  int bucket_shift_ = 0;             // a key's bits from here on name its bucket
  std::vector<int64_t> bounds_;      // [buckets + 1]: where each bucket stands in the order
  int32_t* order_ = nullptr;         // [num_items]
  std::vector<uint8_t> common_;      // [num_items]: levels shared with the item before
  std::vector<int64_t> first_node_;  // [chunks, levels]: nodes of each depth before a chunk
  TrieSizes sizes_;
  int64_t num_chunks_ = 0;
  std::atomic<int64_t> done_{0};
};

}  // namespace crs
