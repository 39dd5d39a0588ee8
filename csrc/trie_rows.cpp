// The SIDs of items, read back from the trie, on the CPU. Compiled once per instruction set.
#include <algorithm>

#include "buffer.h"
#include "threads.h"
#include "trie_ops.h"

namespace crs {
namespace CRS_ISA {
namespace {

// Where the node of depth l + 1 that begins last at or before `item` begins, -1 if none does.
int64_t last_begin(const TrieView& trie, int64_t l, int64_t item) {
  const uint64_t* bits = trie.bits + l * trie.words;
  int64_t word = item >> 6;
  // All bits up to the item's own.
  uint64_t left = bits[word] & (bits_below(item) | uint64_t{1} << (item & 63));
  if (left == 0 && trie.level[2 * l + 1] >= 0) {
    const int64_t k = trie.before(l, item) - 1;
    return k < 0 ? -1 : trie.starts[trie.level[2 * l + 1] + k];
  }
  while (left == 0 && word > 0) left = bits[--word];
  return left == 0 ? -1 : word * 64 + 63 - __builtin_clzll(left);
}

void row_of(const TrieView& trie, int64_t item, int64_t* codes) {
  int64_t begin = 0, l = 0;
  for (; l < trie.levels; ++l) {
    const int64_t at = last_begin(trie, l, item);
    // A SID that ended has no node here: the last one belongs to items before its prefix.
    if (at < begin) break;
    codes[l] = trie.code(l, trie.before(l, at));
    begin = at;
  }
  for (; l < trie.levels; ++l) codes[l] = kEnd;
}

// Items in one walk along the bitmaps, which pays where most items of the range are wanted.
// `items` ascend; null means all from `first` on.
void rows_of(const TrieView& trie, const int64_t* items, int64_t first, int64_t last,
             int64_t* codes) {
  struct Level {
    uint64_t word;
    int64_t begin, next, code;
  };
  const Buffer<Level> levels(trie.levels);
  Level* at = levels.get();
  for (int64_t l = 0; l < trie.levels; ++l) {
    const int64_t begin = first > 0 ? last_begin(trie, l, first - 1) : -1;
    at[l] = {0, begin, trie.before(l, first),
             begin < 0 ? kEnd : trie.code(l, trie.before(l, begin))};
  }
  for (int64_t item = first; item < last; ++item) {
    const bool wanted = items == nullptr || *items == item;
    bool ended = false;
    int64_t begin = 0;
    for (int64_t l = 0; l < trie.levels; ++l) {
      Level& level = at[l];
      if (item == first || (item & 63) == 0) level.word = trie.bits[l * trie.words + (item >> 6)];
      if (level.word >> (item & 63) & 1) {
        level.begin = item;
        level.code = trie.code(l, level.next++);
      }
      ended |= level.begin < begin;
      if (wanted) codes[l] = ended ? int64_t{kEnd} : level.code;
      begin = level.begin;
    }
    if (!wanted) continue;
    codes += trie.levels;
    if (items) ++items;
  }
}

constexpr int64_t kChunk = 1 << 14;

void chunk_of(const TrieView& trie, const int64_t* items, int64_t size, int64_t* codes) {
  const int64_t span = items[size - 1] - items[0] + 1;
  bool ascend = true;
  for (int64_t i = 1; i < size; ++i) ascend = ascend && items[i - 1] < items[i];
  if (span <= 2 * size && ascend) return rows_of(trie, items, items[0], items[size - 1] + 1, codes);
  for (int64_t i = 0; i < size; ++i) row_of(trie, items[i], codes + i * trie.levels);
}

}  // namespace

void trie_rows(const TrieView& trie, const int64_t* items, int64_t size, int64_t* codes,
               int threads) {
  parallel_for(threads, (size + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
    const int64_t first = chunk * kChunk, count = std::min(kChunk, size - first);
    if (items)
      chunk_of(trie, items + first, count, codes + first * trie.levels);
    else
      rows_of(trie, nullptr, first, first + count, codes + first * trie.levels);
  });
}

}  // namespace CRS_ISA
}  // namespace crs
