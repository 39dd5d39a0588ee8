// The kernels' entry points: each calls the copy for the instruction set in use.
#include <stdexcept>
#include <string>

#include "codebook.h"
#include "isa.h"
#include "trie_ops.h"

namespace crs {

void check_nodes(const char* op, const TrieView& trie, const int64_t* nodes, int64_t size,
                 int64_t lowest) {
  for (int64_t i = 0; i < size; ++i) {
    if ((nodes[i] >= lowest && nodes[i] <= kNoNode) || trie.holds(nodes[i])) continue;
    throw std::invalid_argument(
        std::string(op) + ": nodes must be " + (lowest == kNoNode ? "-1" : "-1, -2") +
        " or nodes of this trie, which has " + std::to_string(trie.num_items()) + " items and " +
        std::to_string(trie.levels) + " levels (got " + std::to_string(nodes[i]) + " at position " +
        std::to_string(i) + ")");
  }
}

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

void trie_mask_cpu(const MaskArgs& args) {
  check_nodes("trie_mask", args.trie, args.nodes, args.rows, kLeave);
  CRS_IN_USE(trie_mask)(args);
}

void trie_step_cpu(const StepArgs& args) {
  check_nodes("trie_step", args.trie, args.nodes, args.batch * args.beams);
  CRS_IN_USE(trie_step)(args);
}

}  // namespace crs
