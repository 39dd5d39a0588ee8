// The logits mask on the CPU. Compiled once per instruction set.
#include <algorithm>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "buffer.h"
#include "threads.h"
#include "trie_ops.h"

namespace crs {
namespace CRS_ISA {
namespace {

// A thread more for every so many bytes: for less, waking it costs more than it brings.
constexpr int64_t kBytesPerThread = 1 << 21;
constexpr int64_t kRowsPerChunk = 4;

template <typename Bits>
struct Kept {
  int64_t token;
  Bits logit;
};

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
void mask_row(const MaskArgs& args, int64_t row) {
  const Bits* logits = static_cast<const Bits*>(args.logits) + row * args.row_stride;
  Bits* out = static_cast<Bits*>(args.out) + row * args.out_stride;
  const Bits minus_inf = static_cast<Bits>(minus_inf_bits(args.dtype));
  const TokenView& tokens = args.tokens;
  if (args.nodes[row] == kNoNode || args.nodes[row] == kLeave) {
    if (out != logits) std::memcpy(out, logits, args.vocab * sizeof(Bits));
    if (args.nodes[row] == kLeave) return;
    for (int64_t i = 0; i < tokens.num_denied; ++i) out[tokens.denied[i]] = minus_inf;
    return;
  }
  const int64_t filter = args.filter_of(row);
  FilterView filters = args.filter;
  if (filter < 0) filters.words = nullptr;
  const Children children(args.trie, args.trie.node(args.nodes[row]));
  const Buffer<Kept<Bits>> kept(children.size() + 1);
  int64_t count = 0;
  const auto keep = [&](int64_t token) {
    if (token >= 0) kept.get()[count++] = {token, logits[token]};
  };
  if (children.has_end() && filters.any(filter, children.end())) keep(tokens.terminator);
  for (int64_t k = children.first; k < children.last; ++k)
    if (!filters.words || filters.any(filter, children.child(k)))
      keep(tokens.at(children.parent.depth, children.code(k)));
  // A leaf, or a prefix below which the filter allows nothing: only the terminator is left.
  if (count == 0) keep(tokens.terminator);
  fill(out, args.vocab, minus_inf);
  for (int64_t i = 0; i < count; ++i) out[kept.get()[i].token] = kept.get()[i].logit;
}

// A large new tensor is memory that nobody has touched yet, and most of the time goes into the
// kernel's first touch of each page: ask for large pages.
void ask_for_large_pages(void* begin, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (address + kPage - 1) / kPage * kPage;
  const uintptr_t last = (address + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

template <typename Bits>
void mask_rows(const MaskArgs& args) {
  if (args.out != args.logits)
    ask_for_large_pages(args.out, args.rows * args.out_stride * sizeof(Bits));
  const int64_t worth = args.rows * args.vocab * sizeof(Bits) / kBytesPerThread;
  const int64_t threads = std::clamp<int64_t>(worth, 1, std::max(1, args.threads));
  parallel_for(threads, (args.rows + kRowsPerChunk - 1) / kRowsPerChunk, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kRowsPerChunk;
    for (int64_t row = begin; row < std::min(begin + kRowsPerChunk, args.rows); ++row)
      mask_row<Bits>(args, row);
#if defined(__SSE2__)
    _mm_sfence();
#endif
  });
}

}  // namespace

void trie_mask(const MaskArgs& args) {
  if (element_size(args.dtype) == 4)
    mask_rows<uint32_t>(args);
  else
    mask_rows<uint16_t>(args);
}

}  // namespace CRS_ISA
}  // namespace crs
