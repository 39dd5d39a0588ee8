// The beam step in two launches: one block a row takes the row's logsumexp, then one block a
// request scores its legal children and keeps the best. Nothing of [rows, vocab] is written.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "trie_ops.h"

namespace crs {
namespace {

constexpr int kRowThreads = 128;
constexpr int kWideRowThreads = 512;  // a row of a language model's vocabulary
constexpr int64_t kWideRow = 1 << 14;
constexpr int kSelectThreads = 1024;
constexpr int kWarp = 32;
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr float kMinusInf = -INFINITY;
constexpr unsigned kAll = 0xffffffffu;

struct BFloat16 {
  uint16_t bits;
};
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

// log(sum(exp(x))) as a running maximum and the sum relative to it.
struct LogSum {
  float top = kMinusInf, sum = 0.0f;

  __device__ __forceinline__ void add(float x) {
    if (x > top) {
      sum = sum * __expf(top - x) + 1.0f;
      top = x;
    } else if (x > kMinusInf || x != x) {
      sum += __expf(x - top);
    }
  }
  __device__ __forceinline__ void merge(float other_top, float other_sum) {
    const float highest = fmaxf(top, other_top);
    if (highest == kMinusInf) {
      sum += other_sum;  // 0, or NaN
      return;
    }
    sum = sum * __expf(top - highest) + other_sum * __expf(other_top - highest);
    top = highest;
  }
  __device__ __forceinline__ float value() const { return top + logf(sum); }
};

__device__ float block_value(LogSum mine) {
  __shared__ float tops[kWideRowThreads / kWarp], sums[kWideRowThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float top = __shfl_xor_sync(kAll, mine.top, step);
    const float sum = __shfl_xor_sync(kAll, mine.sum, step);
    mine.merge(top, sum);
  }
  if (threadIdx.x % kWarp == 0) {
    tops[threadIdx.x / kWarp] = mine.top;
    sums[threadIdx.x / kWarp] = mine.sum;
  }
  __syncthreads();
  LogSum all;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) all.merge(tops[w], sums[w]);
  return all.value();
}

template <typename T>
__device__ LogSum over_row(const T* row, int64_t size, float scale) {
  constexpr int kPer = sizeof(uint4) / sizeof(T);
  LogSum mine;
  // Rows may begin anywhere; 16 bytes are read at a time between the first and last boundary.
  const int64_t misplaced = reinterpret_cast<uintptr_t>(row) / sizeof(T) % kPer;
  const int64_t head = misplaced == 0 ? 0 : min(static_cast<int64_t>(kPer) - misplaced, size);
  const int64_t wide = (size - head) / kPer;
  for (int64_t i = threadIdx.x; i < wide; i += blockDim.x) {
    const uint4 loaded = reinterpret_cast<const uint4*>(row + head)[i];
    const T* values = reinterpret_cast<const T*>(&loaded);
    float scaled[kPer], highest = kMinusInf;
    for (int j = 0; j < kPer; ++j) {
      scaled[j] = to_float(values[j]) * scale;
      highest = fmaxf(highest, scaled[j]);
    }
    if (highest > mine.top) {
      mine.sum *= __expf(mine.top - highest);
      mine.top = highest;
    }
    if (mine.top > kMinusInf)
      for (int j = 0; j < kPer; ++j) mine.sum += __expf(scaled[j] - mine.top);
  }
  const int64_t tail = head + wide * kPer;
  if (threadIdx.x < head) mine.add(to_float(row[threadIdx.x]) * scale);
  if (threadIdx.x < size - tail) mine.add(to_float(row[tail + threadIdx.x]) * scale);
  return mine;
}

__device__ __forceinline__ bool is_dead(const StepArgs& args, int64_t r) {
  return args.nodes[r] == kNoNode || args.scores[r] == kMinusInf;
}

// Column of the k-th node of the next depth, -1 where it has none or the filter bars it.
__device__ __forceinline__ int64_t legal_column(const StepArgs& args, const Children& children,
                                                int64_t request, int64_t k) {
  if (args.filter.words && !args.filter.any(request, children.child(k))) return -1;
  return args.tokens.at(children.parent.depth, children.code(k));
}

template <typename T>
__global__ void normalize_kernel(StepArgs args, float* normalizers) {
  const int64_t r = blockIdx.x;
  if (is_dead(args, r)) return;
  const T* row = static_cast<const T*>(args.logits) + r * args.row_stride;
  const float scale = args.inverse_temperature;
  LogSum mine;
  if (args.normalize == Normalize::kVocab) {
    mine = over_row(row, args.vocab, scale);
  } else {
    const Children children(args.trie, args.trie.node(args.nodes[r]));
    if (args.normalize == Normalize::kLevel) {
      const int64_t level = min(children.parent.depth, args.trie.levels - 1);
      for (int64_t c = threadIdx.x; c < args.tokens.width; c += blockDim.x) {
        const int64_t column = args.tokens.at(level, c);
        if (column >= 0) mine.add(to_float(row[column]) * scale);
      }
    } else {
      for (int64_t k = children.first + threadIdx.x; k < children.last; k += blockDim.x) {
        const int64_t column = legal_column(args, children, r / args.beams, k);
        if (column >= 0) mine.add(to_float(row[column]) * scale);
      }
    }
  }
  const float value = block_value(mine);
  if (threadIdx.x == 0) normalizers[r] = value;
}

// Unsigned integers in the order of floats; 0 for what is no candidate: NaN and -inf.
__device__ __forceinline__ uint32_t ordered(float x) {
  if (!(x > kMinusInf)) return 0;
  const uint32_t bits = __float_as_uint(x + 0.0f);  // -0 equals 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// What the select kernel keeps of a request's beams, in shared memory.
struct Beams {
  int64_t* first;       // [beams]: index of the first child within its depth
  int32_t* candidates;  // [beams + 1]: candidates before each beam
  int32_t* ends;        // [beams]: whether a SID ends here, the beam's first candidate then
};

// Best first: the score, then the lower candidate, that is the lower parent, then the lower code.
// Unlike scores, keys are distinct.
__device__ __forceinline__ uint64_t key_of(float score, uint32_t candidate) {
  const uint32_t order = ordered(score);
  return order == 0 ? 0 : static_cast<uint64_t>(order) << 32 | (kAll - candidate);
}

// Calls visit(key) for every candidate whose key is at least `least`, a warp a beam.
template <typename T, typename Visit>
__device__ void for_each_candidate(const StepArgs& args, const Beams& beams,
                                   const float* normalizers, uint64_t least, Visit visit) {
  const int64_t request = blockIdx.x;
  const int lane = threadIdx.x % kWarp;
  for (int64_t m = threadIdx.x / kWarp; m < args.beams; m += blockDim.x / kWarp) {
    const int32_t begin = beams.candidates[m], size = beams.candidates[m + 1] - begin;
    if (size == 0) continue;
    const int64_t r = request * args.beams + m;
    const T* row = static_cast<const T*>(args.logits) + r * args.row_stride;
    const Children children(args.trie, args.trie.node(args.nodes[r]));
    const float parent = args.scores[r], normalizer = normalizers[r];
    const int32_t ends = beams.ends[m];
    for (int32_t j = lane; j < size; j += kWarp) {
      float score = parent;
      const int64_t k = beams.first[m] + j - ends;
      if (j >= ends) {
        const int64_t column = args.tokens.at(children.parent.depth, children.code(k));
        if (column < 0) continue;
        score = parent + (to_float(row[column]) * args.inverse_temperature - normalizer);
      }
      const uint64_t key = key_of(score, begin + j);
      if (key == 0 || key < least) continue;
      if (args.filter.words &&
          !args.filter.any(request, j >= ends ? children.child(k) : children.end()))
        continue;
      visit(key);
    }
  }
}

// The sum of `x` over this lane and those below it. All lanes of the warp must call.
__device__ __forceinline__ int running_sum(int x) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int step = 1; step < kWarp; step *= 2) {
    const int left = __shfl_up_sync(kAll, x, step);
    if (lane >= step) x += left;
  }
  return x;
}

__device__ void prepare(const StepArgs& args, const Beams& beams) {
  const int64_t request = blockIdx.x;
  for (int64_t m = threadIdx.x; m < args.beams; m += blockDim.x) {
    const int64_t r = request * args.beams + m;
    int32_t count = 0, ends = 0;
    if (!is_dead(args, r)) {
      const Children children(args.trie, args.trie.node(args.nodes[r]));
      ends = children.has_end() || children.parent.depth == args.trie.levels;
      count = static_cast<int32_t>(children.size()) + ends;
      beams.first[m] = children.first;
    }
    beams.ends[m] = ends;
    beams.candidates[m + 1] = count;
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {  // running sums, a warp wide
    int32_t before = 0;
    if (threadIdx.x == 0) beams.candidates[0] = 0;
    for (int64_t base = 0; base < args.beams; base += kWarp) {
      const int64_t m = base + threadIdx.x;
      const int32_t sum = running_sum(m < args.beams ? beams.candidates[m + 1] : 0);
      if (m < args.beams) beams.candidates[m + 1] = before + sum;
      before += __shfl_sync(kAll, sum, kWarp - 1);
    }
  }
  __syncthreads();
}

// A key that at least `wanted` and at most `room` candidates reach; 1 where all of them fit. Looks
// at one digit of the keys at a time, from the highest.
template <typename T>
__device__ uint64_t threshold(const StepArgs& args, const Beams& beams, const float* normalizers,
                              int wanted, int room, int* histogram) {
  __shared__ int chosen, above, inside;
  uint64_t prefix = 0;
  int taken = 0;  // candidates above the prefix
  int shift = 64;
  for (;;) {
    // The last digit is a short one: what is above it was taken before.
    const int bits = min(kDigitBits, shift);
    shift -= bits;
    for (int d = threadIdx.x; d < kDigits; d += blockDim.x) histogram[d] = 0;
    __syncthreads();
    const uint64_t step = uint64_t{1} << shift;
    for_each_candidate<T>(args, beams, normalizers, prefix, [&](uint64_t key) {
      const uint64_t digit = (key - prefix) >> shift;
      if (digit < uint64_t{1} << bits) atomicAdd(&histogram[digit], 1);
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
    prefix += chosen * step;
    taken += above;
    const bool done = taken + inside <= room || shift == 0;
    __syncthreads();
    if (done) return max(prefix, uint64_t{1});
  }
}

template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(StepArgs args, const float* normalizers, int room) {
  extern __shared__ uint64_t shared[];
  __shared__ int count;
  const int64_t request = blockIdx.x;
  uint64_t* keys = shared;  // [room]
  Beams beams;
  beams.first = reinterpret_cast<int64_t*>(keys + room);
  beams.candidates = reinterpret_cast<int32_t*>(beams.first + args.beams);
  beams.ends = beams.candidates + args.beams + 1;
  int* histogram = beams.ends + args.beams;
  const int wanted = static_cast<int>(args.out_beams);

  if (threadIdx.x == 0) count = 0;
  prepare(args, beams);
  uint64_t least = 1;
  if (beams.candidates[args.beams] > room)
    least = threshold<T>(args, beams, normalizers, wanted, room, histogram);
  for_each_candidate<T>(args, beams, normalizers, least,
                        [&](uint64_t key) { keys[atomicAdd(&count, 1)] = key; });
  __syncthreads();

  const int found = count;
  for (int i = threadIdx.x; i < found; i += blockDim.x) {
    const uint64_t key = keys[i];
    int place = 0;
    for (int j = 0; j < found; ++j) place += keys[j] > key;
    if (place >= wanted) continue;
    const auto candidate = static_cast<int32_t>(kAll - static_cast<uint32_t>(key));
    int64_t low = 0, high = args.beams - 1;  // the last beam that begins at or before it
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (beams.candidates[middle] <= candidate)
        low = middle;
      else
        high = middle - 1;
    }
    const Children children(args.trie, args.trie.node(args.nodes[request * args.beams + low]));
    const int32_t j = candidate - beams.candidates[low], ends = beams.ends[low];
    const int64_t k = beams.first[low] + j - ends, at = request * args.out_beams + place;
    args.out_scores[at] = unordered(static_cast<uint32_t>(key >> 32));
    args.out_nodes[at] = (j < ends ? children.end() : children.child(k)).pack();
    args.out_parents[at] = low;
    args.out_codes[at] = j < ends ? kEnd : children.code(k);
  }
  for (int i = found + threadIdx.x; i < wanted; i += blockDim.x) {
    const int64_t at = request * args.out_beams + i;
    args.out_scores[at] = kMinusInf;
    args.out_nodes[at] = kNoNode;
    args.out_parents[at] = 0;
    args.out_codes[at] = kEnd;
  }
}

template <typename T>
int launch(const StepArgs& args, float* normalizers, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(args.batch * args.beams);
  const bool wide = args.normalize == Normalize::kVocab && args.vocab > kWideRow;
  const int threads = wide ? kWideRowThreads : kRowThreads;
  if (rows > 0) normalize_kernel<T><<<rows, threads, 0, stream>>>(args, normalizers);
  const int room = static_cast<int>(args.out_beams < 256 ? 512 : 2 * args.out_beams);
  const size_t shared = room * sizeof(uint64_t) + args.beams * sizeof(int64_t) +
                        (2 * args.beams + 1 + kDigits) * sizeof(int32_t);
  select_kernel<T><<<static_cast<unsigned>(args.batch), kSelectThreads, shared, stream>>>(
      args, normalizers, room);
  return cudaGetLastError();
}

}  // namespace

int trie_step_cuda(const StepArgs& args, void* workspace, void* stream) {
  if (args.batch == 0) return cudaSuccess;
  auto* normalizers = static_cast<float*>(workspace);
  auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case 1:
      return launch<BFloat16>(args, normalizers, cuda_stream);
    case 2:
      return launch<__half>(args, normalizers, cuda_stream);
    default:
      return launch<float>(args, normalizers, cuda_stream);
  }
}

}  // namespace crs
