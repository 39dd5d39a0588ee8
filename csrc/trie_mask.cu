#include <cuda_runtime.h>

#include "trie_ops.h"

namespace crs {
namespace {

constexpr int kThreads = 256;
// Tokens whose legality one block holds at a time: 32 KiB of shared memory.
constexpr int64_t kChunk = int64_t{32} * 1024 * 8;

// One block a row. Legal tokens are marked in a shared bitmap, then every other logit is
// overwritten: the logits are written but never read.
template <typename Bits>
__global__ void mask_kernel(MaskArgs args) {
  extern __shared__ uint32_t legal[];
  const int64_t row = blockIdx.x;
  Bits* logits = static_cast<Bits*>(args.logits) + row * args.row_stride;
  const Bits minus_inf = static_cast<Bits>(args.minus_inf);
  const TokenView tokens = args.tokens;
  const int64_t node = args.nodes[row];
  if (node == kNoNode) {
    for (int64_t i = threadIdx.x; i < tokens.num_denied; i += blockDim.x)
      logits[tokens.denied[i]] = minus_inf;
    return;
  }
  const int64_t filter = row / args.rows_per_filter;
  const int32_t depth = args.trie.depth(node);
  const int32_t first = args.trie.child_begin[node], last = args.trie.child_begin[node + 1];
  int any = 0;
  for (int32_t e = first + threadIdx.x; e < last; e += blockDim.x)
    any |= args.filter.any(filter, args.trie.item_begin[e + 1], args.trie.item_end[e + 1]);
  const bool dead_end = !__syncthreads_or(any);

  for (int64_t base = 0; base < args.vocab; base += kChunk) {
    const int64_t size = args.vocab - base < kChunk ? args.vocab - base : kChunk;
    auto mark = [&](int64_t token) {
      if (token >= base && token < base + size)
        atomicOr(&legal[(token - base) >> 5], 1u << ((token - base) & 31));
    };
    for (int64_t w = threadIdx.x; w < (size + 31) / 32; w += blockDim.x) legal[w] = 0;
    __syncthreads();
    if (dead_end && threadIdx.x == 0) mark(tokens.terminator);
    for (int32_t e = first + threadIdx.x; e < last && !dead_end; e += blockDim.x) {
      if (!args.filter.any(filter, args.trie.item_begin[e + 1], args.trie.item_end[e + 1]))
        continue;
      const int32_t code = args.trie.code[e];
      mark(code == kEnd ? tokens.terminator : tokens.at(depth, code));
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += blockDim.x)
      if (!(legal[i >> 5] >> (i & 31) & 1)) logits[base + i] = minus_inf;
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
  if (args.element_size == 4)
    mask_kernel<uint32_t><<<blocks, kThreads, shared, cuda_stream>>>(args);
  else
    mask_kernel<uint16_t><<<blocks, kThreads, shared, cuda_stream>>>(args);
  return cudaGetLastError();
}

}  // namespace crs
