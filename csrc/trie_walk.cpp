// From codes to nodes on the CPU. Compiled once per instruction set.
#include "trie_walk.h"

#include <algorithm>

#include "threads.h"
#include "trie_ops.h"

namespace crs {
namespace CRS_ISA {

void trie_walk(const TrieView& trie, const int64_t* codes, int64_t rows, int64_t length,
               int64_t* nodes, int threads) {
  constexpr int64_t kChunk = 1024;
  parallel_for(threads, (rows + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
    for (int64_t r = chunk * kChunk; r < std::min(rows, (chunk + 1) * kChunk); ++r)
      nodes[r] = walk_row(trie, codes + r * length, length);
  });
}

}  // namespace CRS_ISA
}  // namespace crs
