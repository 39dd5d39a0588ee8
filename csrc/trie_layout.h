// How large a trie's arrays are, and which of its depths keep a table of where their nodes begin.
#pragma once

#include <cstdint>
#include <vector>

namespace crs {

// What whoever makes a trie writes; see TrieView.
struct TrieArrays {
  void* codes;
  uint64_t* bits;
  int32_t* rank;
  int32_t* starts;
  int64_t* level;
};

struct TrieSizes {
  std::vector<int64_t> nodes;  // [levels]
  int64_t num_items = 0;
  int code_bytes = 1;

  // A depth with fewer nodes than one in so many items has starts.
  static constexpr int64_t kSparse = 32;

  int64_t levels() const { return static_cast<int64_t>(nodes.size()); }
  int64_t words() const { return num_items / 64 + 1; }
  bool has_starts(int64_t l) const { return nodes[l] * kSparse <= num_items; }
  int64_t num_codes() const {
    int64_t sum = 0;
    for (int64_t count : nodes) sum += count;
    return sum;
  }
  int64_t num_starts() const {
    int64_t sum = 0;
    for (int64_t l = 0; l < levels(); ++l) sum += has_starts(l) ? nodes[l] : 0;
    return sum;
  }
  // level: [levels + 1, 2].
  void write(int64_t* level) const {
    int64_t codes = 0, starts = 0;
    for (int64_t l = 0; l < levels(); ++l) {
      level[2 * l] = codes;
      level[2 * l + 1] = has_starts(l) ? starts : -1;
      codes += nodes[l];
      if (has_starts(l)) starts += nodes[l];
    }
    level[2 * levels()] = codes;
    level[2 * levels() + 1] = num_items;
  }
};

// Bytes of a code, by the highest one; two and four are signed in Python.
inline int code_bytes_for(int64_t highest) {
  return highest <= UINT8_MAX ? 1 : highest <= INT16_MAX ? 2 : 4;
}

}  // namespace crs
