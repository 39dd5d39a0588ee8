// The kernels' entry points: each calls the copy for the instruction set in use.
#include "codebook.h"
#include "isa.h"
#include "trie_ops.h"

namespace crs {

LookupResult residual_lookup_cpu(const LookupArgs& args) {
  return CRS_IN_USE(residual_lookup)(args);
}

void trie_walk_cpu(const TrieView& trie, const int64_t* codes, int64_t rows, int64_t length,
                   int64_t* nodes, int threads) {
  CRS_IN_USE(trie_walk)(trie, codes, rows, length, nodes, threads);
}

void trie_rows_cpu(const TrieView& trie, const int64_t* items, int64_t size, int64_t* codes,
                   int threads) {
  CRS_IN_USE(trie_rows)(trie, items, size, codes, threads);
}

void trie_mask_cpu(const MaskArgs& args) { CRS_IN_USE(trie_mask)(args); }

void trie_step_cpu(const StepArgs& args) { CRS_IN_USE(trie_step)(args); }

}  // namespace crs
