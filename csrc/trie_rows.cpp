#include "trie_ops.h"

namespace crs {
namespace {

// The node of depth l + 1 that begins last at or before `item`: its index, or -1.
int64_t last_before(const TrieView& trie, int64_t l, int64_t item) {
  return trie.before(l, item) + trie.begins(l, item) - 1;
}

void row_of(const TrieView& trie, int64_t item, int64_t* codes) {
  int64_t begin = 0;
  bool ended = false;
  for (int64_t l = 0; l < trie.levels; ++l) {
    const int64_t k = ended ? -1 : last_before(trie, l, item);
    // A SID that ended has no node here: the last one belongs to items before its prefix.
    const int64_t at = k < 0 ? -1 : trie.begin_of(l, k, 0, item + 1);
    ended |= at < begin;
    codes[l] = ended ? kEnd : trie.code(l, k);
    begin = at;
  }
}

}  // namespace

void trie_rows_cpu(const TrieView& trie, const int64_t* items, int64_t size, int64_t* codes) {
#pragma omp parallel for schedule(static) if (size > 1024)
  for (int64_t i = 0; i < size; ++i) row_of(trie, items[i], codes + i * trie.levels);
}

}  // namespace crs
