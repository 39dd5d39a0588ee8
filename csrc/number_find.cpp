// A hash table of the wanted numbers, along which all the others pass: nothing is sorted, and most
// of them meet an empty slot in a table that the caches hold.
#include "number_find.h"

#include <algorithm>
#include <vector>

#include "threads.h"

namespace crs {
namespace {

constexpr int64_t kChunk = 1 << 16;
// Slots per wanted number, and the least: an empty slot is what a branch predictor expects.
constexpr int64_t kSlots = 8, kLeastSlots = 1 << 12;

class Table {
 public:
  Table(const int64_t* wanted, int64_t size) : wanted_(wanted) {
    int64_t slots = kLeastSlots;
    while (slots < kSlots * size) slots *= 2;
    mask_ = static_cast<uint64_t>(slots) - 1;
    slots_.assign(slots, 0);
    for (int64_t i = 0; i < size; ++i) {
      uint32_t& slot = slots_[slot_of(wanted[i])];
      if (slot == 0) slot = static_cast<uint32_t>(i + 1);
    }
  }

  // The first place of a number among those that are wanted, or -1.
  int64_t find(int64_t number) const { return static_cast<int64_t>(slots_[slot_of(number)]) - 1; }

 private:
  // Where a number stands, or the empty slot where it would.
  uint64_t slot_of(int64_t number) const {
    const uint64_t h = static_cast<uint64_t>(number) * 0x9e3779b97f4a7c15;
    uint64_t at = (h >> 32) & mask_;
    while (slots_[at] != 0 && wanted_[slots_[at] - 1] != number) at = (at + 1) & mask_;
    return at;
  }

  const int64_t* wanted_;
  uint64_t mask_;
  std::vector<uint32_t> slots_;  // a place among `wanted`, plus one; 0 where it is empty
};

template <typename Number>
void find_all(const Number* numbers, int64_t size, const Table& table, int64_t* positions,
              int threads) {
  parallel_for(threads, (size + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
    for (int64_t i = chunk * kChunk; i < std::min(size, (chunk + 1) * kChunk); ++i) {
      const int64_t place = table.find(numbers[i]);
      if (place >= 0) positions[place] = i;
    }
  });
}

}  // namespace

void number_find(const void* numbers, int64_t size, int number_bytes, const int64_t* wanted,
                 int64_t num_wanted, int64_t* positions, int threads) {
  const Table table(wanted, num_wanted);
  std::fill(positions, positions + num_wanted, int64_t{-1});
  if (number_bytes == 4)
    find_all(static_cast<const int32_t*>(numbers), size, table, positions, threads);
  else
    find_all(static_cast<const int64_t*>(numbers), size, table, positions, threads);
  // Of equal ones only the first is in the table.
  for (int64_t j = 0; j < num_wanted; ++j) positions[j] = positions[table.find(wanted[j])];
}

}  // namespace crs
