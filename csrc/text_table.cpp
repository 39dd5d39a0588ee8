// Open addressing: a slot holds the upper half of a text's hash and its position, plus one.
#include "text_table.h"

#include <algorithm>
#include <cstring>

#include "threads.h"

namespace crs {
namespace {

constexpr uint64_t kPosition = 0xffffffff;
constexpr int64_t kBlock = 64;
constexpr int64_t kChunk = 1 << 14;  // texts that one thread looks up in a row

uint64_t mix(uint64_t h) {
  h ^= h >> 32;
  h *= 0xd6e8feb86659fd93;
  h ^= h >> 32;
  return h;
}

uint64_t hash(const uint8_t* text, int64_t length) {
  uint64_t h = static_cast<uint64_t>(length) * 0x9e3779b97f4a7c15;
  uint64_t word;
  for (; length >= 8; text += 8, length -= 8) {
    std::memcpy(&word, text, 8);
    h = mix((h ^ word) * 0x9e3779b97f4a7c15);
  }
  word = 0;
  if (length) std::memcpy(&word, text, static_cast<size_t>(length));  // no bytes: perhaps nullptr
  return mix((h ^ word) * 0x9e3779b97f4a7c15);
}

uint64_t hash_of(const Texts& texts, int64_t i) {
  return hash(texts.bytes + texts.offsets[i], texts.offsets[i + 1] - texts.offsets[i]);
}

bool equal(const Texts& a, int64_t i, const Texts& b, int64_t j) {
  const int64_t length = a.offsets[i + 1] - a.offsets[i];
  if (length != b.offsets[j + 1] - b.offsets[j]) return false;
  const uint8_t* p = a.bytes + a.offsets[i];
  const uint8_t* q = b.bytes + b.offsets[j];
  return length == 0 || std::memcmp(p, q, static_cast<size_t>(length)) == 0;
}

// Where the text stands in the table, or the empty slot where it would.
uint64_t slot_of(const Texts& texts, const uint64_t* slots, uint64_t mask, const Texts& wanted,
                 int64_t i, uint64_t h) {
  uint64_t at = h & mask;
  for (; slots[at]; at = (at + 1) & mask) {
    if ((slots[at] & ~kPosition) != (h & ~kPosition)) continue;
    if (equal(texts, static_cast<int64_t>((slots[at] & kPosition) - 1), wanted, i)) break;
  }
  return at;
}

// Calls visit(i, hash) for the texts [first, last), a block of slots fetched ahead: the table is
// larger than the caches, and most of the time goes into waiting for it.
template <typename Visit>
void for_each_hash(const Texts& texts, int64_t first, int64_t last, const uint64_t* slots,
                   uint64_t mask, Visit visit) {
  uint64_t hashes[kBlock];
  for (; first < last; first += kBlock) {
    const int64_t count = std::min(kBlock, last - first);
    for (int64_t i = 0; i < count; ++i) {
      hashes[i] = hash_of(texts, first + i);
#if defined(__GNUC__)
      __builtin_prefetch(slots + (hashes[i] & mask));
#endif
    }
    for (int64_t i = 0; i < count; ++i) visit(first + i, hashes[i]);
  }
}

}  // namespace

int64_t text_table(const Texts& texts, uint64_t* slots, int64_t num_slots) {
  const uint64_t mask = static_cast<uint64_t>(num_slots) - 1;
  int64_t repeated = -1;
  for_each_hash(texts, 0, texts.count, slots, mask, [&](int64_t i, uint64_t h) {
    const uint64_t at = slot_of(texts, slots, mask, texts, i, h);
    if (!slots[at])
      slots[at] = (h & ~kPosition) | static_cast<uint64_t>(i + 1);
    else if (repeated < 0)
      repeated = i;
  });
  return repeated;
}

void text_find(const Texts& texts, const uint64_t* slots, int64_t num_slots, const Texts& wanted,
               int64_t* positions, int threads) {
  const uint64_t mask = static_cast<uint64_t>(num_slots) - 1;
  parallel_for(threads, (wanted.count + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
    const int64_t last = std::min(wanted.count, (chunk + 1) * kChunk);
    for_each_hash(wanted, chunk * kChunk, last, slots, mask, [&](int64_t i, uint64_t h) {
      const uint64_t slot = slots[slot_of(texts, slots, mask, wanted, i, h)];
      positions[i] = static_cast<int64_t>(slot & kPosition) - 1;
    });
  });
}

}  // namespace crs
