// The logits mask on the CPU.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "trie_ops.h"

namespace crs {
namespace {

// Fill without reading what is overwritten first, which plain stores make the cache do.
template <typename Bits>
void fill(Bits* begin, int64_t size, Bits value) {
#if defined(__SSE2__)
  constexpr int64_t kPer = sizeof(__m128i) / sizeof(Bits);
  Bits pattern[kPer];
  std::fill_n(pattern, kPer, value);
  const __m128i wide = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pattern));
  while (size > 0 && reinterpret_cast<uintptr_t>(begin) % sizeof(__m128i) != 0)
    *begin++ = value, --size;
  for (; size >= kPer; begin += kPer, size -= kPer)
    _mm_stream_si128(reinterpret_cast<__m128i*>(begin), wide);
#endif
  std::fill_n(begin, size, value);
}

template <typename Bits>
void mask_row(const MaskArgs& args, int64_t row, std::vector<std::pair<int64_t, Bits>>& kept) {
  const Bits* logits = static_cast<const Bits*>(args.logits) + row * args.row_stride;
  Bits* out = static_cast<Bits*>(args.out) + row * args.out_stride;
  const Bits minus_inf = static_cast<Bits>(minus_inf_bits(args.dtype));
  const TokenView& tokens = args.tokens;
  if (args.nodes[row] == kNoNode) {
    if (out != logits) std::memcpy(out, logits, args.vocab * sizeof(Bits));
    for (int64_t i = 0; i < tokens.num_denied; ++i) out[tokens.denied[i]] = minus_inf;
    return;
  }
  kept.clear();
  auto keep = [&](int64_t token) {
    if (token >= 0) kept.emplace_back(token, logits[token]);
  };
  const int64_t filter = row / args.rows_per_filter;
  const Children children(args.trie, args.trie.node(args.nodes[row]));
  if (children.has_end() && args.filter.any(filter, children.end())) keep(tokens.terminator);
  for (int64_t k = children.first; k < children.last; ++k)
    if (!args.filter.words || args.filter.any(filter, children.child(k)))
      keep(tokens.at(children.parent.depth, children.code(k)));
  // A leaf, or a prefix below which the filter allows nothing: only the terminator is left.
  if (kept.empty()) keep(tokens.terminator);
  fill(out, args.vocab, minus_inf);
  for (const auto& [token, value] : kept) out[token] = value;
}

template <typename Bits>
void mask_rows(const MaskArgs& args) {
#pragma omp parallel if (args.rows > 1)
  {
    std::vector<std::pair<int64_t, Bits>> kept;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < args.rows; ++row) mask_row<Bits>(args, row, kept);
#if defined(__SSE2__)
    _mm_sfence();
#endif
  }
}

}  // namespace

void trie_mask_cpu(const MaskArgs& args) {
  if (element_size(args.dtype) == 4)
    mask_rows<uint32_t>(args);
  else
    mask_rows<uint16_t>(args);
}

}  // namespace crs
