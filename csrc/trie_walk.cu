// From codes to the node they lead to, on a GPU.
#include <cuda_runtime.h>

#include "trie_ops.h"
#include "trie_walk.h"

namespace crs {
namespace {

__global__ void walk_kernel(TrieView trie, const int64_t* codes, int64_t rows, int64_t length,
                            int64_t* nodes) {
  int64_t r = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (r < rows) nodes[r] = walk_row(trie, codes + r * length, length);
}

}  // namespace

int trie_walk_cuda(const TrieView& trie, const int64_t* codes, int64_t rows, int64_t length,
                   int64_t* nodes, void* stream) {
  if (rows == 0) return cudaSuccess;
  constexpr int kThreads = 128;
  auto blocks = static_cast<unsigned>((rows + kThreads - 1) / kThreads);
  walk_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(trie, codes, rows, length,
                                                                          nodes);
  return cudaGetLastError();
}

const char* cuda_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace crs
