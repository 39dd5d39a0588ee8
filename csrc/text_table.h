// A hash table over many short texts; see crs_fast/ops/text_table.
#pragma once

#include <cstdint>

namespace crs {

// Text i is the bytes from offsets[i] to offsets[i + 1].
struct Texts {
  const uint8_t* bytes;
  const int64_t* offsets;  // [count + 1]
  int64_t count;           // below 2^32 - 1
};

// slots [num_slots], all 0 on entry, a power of two above texts.count. Returns the position of a
// text that stands before it too, or -1 where all are distinct; of equal texts the first is kept.
int64_t text_table(const Texts& texts, uint64_t* slots, int64_t num_slots);

// For each wanted text its position among `texts`, or -1; positions is [wanted.count].
void text_find(const Texts& texts, const uint64_t* slots, int64_t num_slots, const Texts& wanted,
               int64_t* positions, int threads);

}  // namespace crs
