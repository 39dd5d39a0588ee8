// The logits mask on a GPU.
#include <cuda_runtime.h>

#include "trie_ops.h"

namespace crs {
namespace {

constexpr int kThreads = 256;
// Tokens whose legality one block holds at a time: 32 KiB of shared memory.
constexpr int64_t kChunk = int64_t{32} * 1024 * 8;

// One block per row. Legal tokens are marked in a shared bitmap, then every other logit is
// overwritten; in place, the logits are written but never read.
template <typename Bits>
__global__ void mask_kernel(MaskArgs args, uint32_t minus_inf_in_dtype) {
  extern __shared__ uint32_t legal[];
  const int64_t row = blockIdx.x;
  const Bits* logits = static_cast<const Bits*>(args.logits) + row * args.row_stride;
  Bits* out = static_cast<Bits*>(args.out) + row * args.out_stride;
  const Bits minus_inf = static_cast<Bits>(minus_inf_in_dtype);
  const TokenView tokens = args.tokens;
  if (args.nodes[row] == kNoNode || args.nodes[row] == kLeave) {
    if (out != logits)
      for (int64_t i = threadIdx.x; i < args.vocab; i += blockDim.x) out[i] = logits[i];
    if (args.nodes[row] == kLeave) return;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < tokens.num_denied; i += blockDim.x)
      out[tokens.denied[i]] = minus_inf;
    return;
  }
  if (!args.trie.holds(args.nodes[row])) {
    for (int64_t i = threadIdx.x; i < args.vocab; i += blockDim.x) out[i] = minus_inf;
    return;
  }
  const int64_t filter = args.filter_of(row);
  FilterView filters = args.filter;
  if (filter < 0) filters.words = nullptr;
  const Children children(args.trie, args.trie.node(args.nodes[row]));
  const bool ends = children.has_end() && filters.any(filter, children.end());
  auto token_of = [&](int64_t k) -> int64_t {
    if (filters.words && !filters.any(filter, children.child(k))) return -1;
    return tokens.at(children.parent.depth, children.code(k));
  };
  int any = ends && tokens.terminator >= 0;
  for (int64_t k = children.first + threadIdx.x; k < children.last; k += blockDim.x)
    any |= token_of(k) >= 0;
  // A leaf, or a prefix below which the filter allows nothing: only the terminator is left.
  const bool only_end = !__syncthreads_or(any);

  for (int64_t base = 0; base < args.vocab; base += kChunk) {
    const int64_t size = args.vocab - base < kChunk ? args.vocab - base : kChunk;
    auto mark = [&](int64_t token) {
      if (token >= base && token < base + size)
        atomicOr(&legal[(token - base) >> 5], 1u << ((token - base) & 31));
    };
    for (int64_t w = threadIdx.x; w < (size + 31) / 32; w += blockDim.x) legal[w] = 0;
    __syncthreads();
    if ((ends || only_end) && threadIdx.x == 0) mark(tokens.terminator);
    for (int64_t k = children.first + threadIdx.x; k < children.last; k += blockDim.x)
      mark(token_of(k));
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
      const bool keep = legal[i >> 5] >> (i & 31) & 1;
      if (!keep)
        out[base + i] = minus_inf;
      else if (out != logits)
        out[base + i] = logits[base + i];
    }
    __syncthreads();
  }
}

}  // namespace

int trie_mask_cuda(const MaskArgs& args, void* stream) {
  if (args.rows == 0 || args.vocab == 0) return cudaSuccess;
  const int64_t bits = args.vocab < kChunk ? args.vocab : kChunk;
  const size_t shared = (bits + 31) / 32 * sizeof(uint32_t);
  auto cuda_stream = static_cast<cudaStream_t>(stream);
  auto blocks = static_cast<unsigned>(args.rows);
  const uint32_t minus_inf = minus_inf_bits(args.dtype);
  if (element_size(args.dtype) == 4)
    mask_kernel<uint32_t><<<blocks, kThreads, shared, cuda_stream>>>(args, minus_inf);
  else
    mask_kernel<uint16_t><<<blocks, kThreads, shared, cuda_stream>>>(args, minus_inf);
  return cudaGetLastError();
}

}  // namespace crs
