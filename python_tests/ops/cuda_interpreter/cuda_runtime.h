// Enough of CUDA to run the kernels of csrc/ on a CPU, so that machines without a GPU test them
// too. A block's threads are fibers, and a random one of those that can go on runs until it waits
// at a barrier or, now and then, at an atomic, one warp of each block lagging behind the others:
// what is missing a barrier goes wrong here as well. Blocks run one after another. `__shared__` and
// `<<< >>>` are rewritten by __init__.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::max;
using std::min;

struct uint4 {
  uint32_t x, y, z, w;
};

using cudaStream_t = void*;
using cudaError_t = int;
constexpr int cudaSuccess = 0;
cudaError_t cudaGetLastError();  // once: threads of a block waited at different places
const char* cudaGetErrorString(cudaError_t error);
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

namespace interpreter {

struct Index {
  unsigned x;
};

enum class Meeting : int { kNone, kBlock, kBlockOr, kShuffle, kShuffleXor, kShuffleUp, kBallot };

void launch(unsigned blocks, unsigned threads, size_t shared_bytes,
            const std::function<void()>& kernel);
void* dynamic_shared();
// Waits for the whole warp, or block. `value` of each lane of the warp, until the next meeting but
// one; for kBlockOr, whether any thread's is not 0 in the first.
const uint64_t* meet(Meeting meeting, uint64_t value);
void maybe_yield();

template <typename T>
uint64_t pack(T x) {
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(T));
  return bits;
}
template <typename T>
T unpack(uint64_t bits) {
  T x;
  std::memcpy(&x, &bits, sizeof(T));
  return x;
}

template <typename T, typename Change>
T atomically(T* at, Change change) {
  maybe_yield();
  const T old = *at;
  *at = change(old);
  return old;
}

}  // namespace interpreter

extern interpreter::Index threadIdx, blockIdx, blockDim;

inline void __syncthreads() { interpreter::meet(interpreter::Meeting::kBlock, 0); }
inline int __syncthreads_or(int any) {
  return interpreter::meet(interpreter::Meeting::kBlockOr, any != 0)[0] != 0;
}

template <typename T>
T __shfl_sync(unsigned, T x, int lane) {
  using namespace interpreter;
  return unpack<T>(meet(Meeting::kShuffle, pack(x))[lane % 32]);
}
template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  using namespace interpreter;
  return unpack<T>(meet(Meeting::kShuffleXor, pack(x))[threadIdx.x % 32 ^ mask]);
}
template <typename T>
T __shfl_up_sync(unsigned, T x, int step) {
  using namespace interpreter;
  const int lane = static_cast<int>(threadIdx.x % 32), from = lane - step;
  return unpack<T>(meet(Meeting::kShuffleUp, pack(x))[from < 0 ? lane : from]);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  const uint64_t* all = interpreter::meet(interpreter::Meeting::kBallot, predicate != 0);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all[lane]) << lane;
  return bits;
}

template <typename T>
T atomicAdd(T* at, T x) {
  return interpreter::atomically(at, [x](T old) { return old + x; });
}
template <typename T>
T atomicMin(T* at, T x) {
  return interpreter::atomically(at, [x](T old) { return std::min(old, x); });
}
template <typename T>
T atomicMax(T* at, T x) {
  return interpreter::atomically(at, [x](T old) { return std::max(old, x); });
}
template <typename T>
T atomicOr(T* at, T x) {
  return interpreter::atomically(at, [x](T old) { return old | x; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(x); }
inline float __expf(float x) { return std::exp(x); }
inline uint32_t __float_as_uint(float x) {
  return interpreter::unpack<uint32_t>(interpreter::pack(x));
}
inline float __uint_as_float(uint32_t x) { return interpreter::unpack<float>(x); }
