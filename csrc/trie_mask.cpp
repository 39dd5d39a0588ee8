#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "trie_ops.h"

namespace crs {
namespace {

template <typename Bits>
void mask_row(const MaskArgs& args, int64_t row, std::vector<std::pair<int64_t, Bits>>& kept) {
  Bits* logits = static_cast<Bits*>(args.logits) + row * args.row_stride;
  const Bits minus_inf = static_cast<Bits>(args.minus_inf);
  const TokenView& tokens = args.tokens;
  const int64_t node = args.nodes[row];
  if (node == kNoNode) {
    for (int64_t i = 0; i < tokens.num_denied; ++i) logits[tokens.denied[i]] = minus_inf;
    return;
  }
  kept.clear();
  const int64_t filter = row / args.rows_per_filter;
  const int32_t depth = args.trie.depth(node);
  auto keep = [&](int64_t token) {
    if (token >= 0) kept.emplace_back(token, logits[token]);
  };
  for (int32_t e = args.trie.child_begin[node]; e < args.trie.child_begin[node + 1]; ++e) {
    if (!args.filter.any(filter, args.trie.item_begin[e + 1], args.trie.item_end[e + 1])) continue;
    const int32_t code = args.trie.code[e];
    keep(code == kEnd ? tokens.terminator : tokens.at(depth, code));
  }
  // A leaf, or a prefix below which the filter allows nothing: only the terminator is left.
  if (kept.empty()) keep(tokens.terminator);
  std::fill_n(logits, args.vocab, minus_inf);
  for (const auto& [token, value] : kept) logits[token] = value;
}

template <typename Bits>
void mask_rows(const MaskArgs& args) {
#pragma omp parallel if (args.rows > 1)
  {
    std::vector<std::pair<int64_t, Bits>> kept;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < args.rows; ++row) mask_row<Bits>(args, row, kept);
  }
}

}  // namespace

void trie_mask_cpu(const MaskArgs& args) {
  if (args.element_size == 4)
    mask_rows<uint32_t>(args);
  else
    mask_rows<uint16_t>(args);
}

}  // namespace crs
