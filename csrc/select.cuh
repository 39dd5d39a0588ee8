// The best of many keys, chosen by a whole block: unsigned integers, larger is better, all
// distinct, but for 0, which is no key. Every function here must be called by all threads of the
// block, or of the warp where it says so.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace crs {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kDigitBits = 10;
constexpr int kDigits = 1 << kDigitBits;

// The sum of `x` over this lane and those below it. All lanes of the warp must call.
__device__ __forceinline__ int running_sum(int x) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int step = 1; step < kWarp; step *= 2) {
    const int left = __shfl_up_sync(kAll, x, step);
    if (lane >= step) x += left;
  }
  return x;
}

// Counts up `count` for every lane that takes a place; its place. All lanes of the warp must call.
__device__ __forceinline__ int place_for(bool takes, int* count) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned takers = __ballot_sync(kAll, takes);
  int base = 0;
  if (lane == 0 && takers != 0) base = atomicAdd(count, __popc(takers));
  return __shfl_sync(kAll, base, 0) + __popc(takers & ((1u << lane) - 1));
}

struct Range {
  uint64_t least, most;
};

// The range of the keys that `for_each` visits, leaving 0 out; most is 0 when there are none.
template <typename ForEach>
__device__ Range range_of(ForEach for_each) {
  __shared__ unsigned long long least, most;
  if (threadIdx.x == 0) {
    least = ~0ull;
    most = 0;
  }
  __syncthreads();
  unsigned long long low = ~0ull, high = 0;
  for_each([&](uint64_t key) {
    if (key == 0) return;
    low = min(low, static_cast<unsigned long long>(key));
    high = max(high, static_cast<unsigned long long>(key));
  });
  for (int step = kWarp / 2; step > 0; step /= 2) {
    low = min(low, __shfl_xor_sync(kAll, low, step));
    high = max(high, __shfl_xor_sync(kAll, high, step));
  }
  if (threadIdx.x % kWarp == 0) {
    atomicMin(&least, low);
    atomicMax(&most, high);
  }
  __syncthreads();
  const Range range{least, most};
  __syncthreads();
  return range;
}

// A key that at least `wanted` and at most `room` of those that `for_each` visits reach; the least
// one above 0 where there are fewer. Looks at one digit of the distance to the least key at a time,
// from the highest.
template <typename ForEach>
__device__ uint64_t threshold(ForEach for_each, int wanted, int room, int* histogram) {
  __shared__ int chosen, above, inside;
  Range range = range_of(for_each);
  if (range.most == 0) return 1;
  int taken = 0;  // keys above the range
  for (;;) {
    const int bits = 64 - __clzll(static_cast<long long>(range.most - range.least));
    const int shift = max(bits - kDigitBits, 0);
    for (int d = threadIdx.x; d < kDigits; d += blockDim.x) histogram[d] = 0;
    __syncthreads();
    for_each([&](uint64_t key) {
      if (key >= range.least && key <= range.most)
        atomicAdd(&histogram[(key - range.least) >> shift], 1);
    });
    __syncthreads();
    if (threadIdx.x < kWarp) {  // the digit at which `wanted` is reached, 32 at a time from above
      const int lane = static_cast<int>(threadIdx.x);
      int sum = 0;
      for (int base = kDigits - kWarp; base >= 0; base -= kWarp) {
        const int digit = base + kWarp - 1 - lane, own = histogram[digit];
        const int upto = running_sum(own);
        unsigned reached = __ballot_sync(kAll, taken + sum + upto >= wanted);
        if (base == 0 && reached == 0) reached = 1u << (kWarp - 1);  // all there are
        if (reached != 0) {
          if (lane == __ffs(reached) - 1) {
            chosen = digit;
            above = sum + upto - own;
            inside = own;
          }
          break;
        }
        sum += __shfl_sync(kAll, upto, kWarp - 1);
      }
    }
    __syncthreads();
    range.least += static_cast<uint64_t>(chosen) << shift;
    range.most = min(range.most, range.least + ((uint64_t{1} << shift) - 1));
    taken += above;
    const bool done = taken + inside <= room || shift == 0;
    __syncthreads();
    if (done) return range.least;
  }
}

// Keeps those of the block's `count` keys that reach `least`, at the front; how many.
__device__ inline int keep(uint64_t* keys, int count, uint64_t least) {
  __shared__ int kept;
  if (threadIdx.x == 0) kept = 0;
  // A round writes no further than the rounds so far have read.
  for (int base = 0; base < count; base += blockDim.x) {
    const int i = base + static_cast<int>(threadIdx.x);
    const uint64_t key = i < count ? keys[i] : 0;
    __syncthreads();
    const int place = place_for(key >= least, &kept);
    if (key >= least) keys[place] = key;
  }
  __syncthreads();
  const int all = kept;
  __syncthreads();
  return all;
}

// Best first. `size` is a power of 2.
__device__ inline void sort_keys(uint64_t* keys, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int apart = run / 2; apart > 0; apart /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
        const int low = 2 * pair - (pair & (apart - 1)), high = low + apart;
        const bool falls = (low & run) == 0;
        const uint64_t a = keys[low], b = keys[high];
        if ((a < b) == falls) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

}  // namespace crs
