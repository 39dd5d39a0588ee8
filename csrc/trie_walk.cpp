// From codes to the node they lead to, on the CPU.
#include "trie_walk.h"

#include "trie_ops.h"

namespace crs {

void trie_walk_cpu(const TrieView& trie, const int64_t* codes, int64_t rows, int64_t length,
                   int64_t* nodes) {
#pragma omp parallel for schedule(static) if (rows > 1024)
  for (int64_t r = 0; r < rows; ++r) nodes[r] = walk_row(trie, codes + r * length, length);
}

}  // namespace crs
