// The beam step in two launches: one block per beam takes the row's logsumexp, scores the beam's
// legal children and lists the best of them; then one block per request merges its beams' lists.
// Nothing of [rows, vocab] is written.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "select.cuh"
#include "step_rules.h"
#include "trie_ops.h"

namespace crs {
namespace {

constexpr int kRowThreads = 128;
constexpr int kWideRowThreads = 512;  // a row of a language model's vocabulary
constexpr int64_t kWideRow = 1 << 14;
constexpr int kSelectThreads = 1024;
constexpr int kBuffer = 2304;  // candidates of a beam in shared memory: 2048 codes at once and more
constexpr int kMostListed = kBuffer - 256;  // the rest takes in the next candidates
constexpr size_t kSharedBytes = 48 << 10;   // what a kernel may have without asking for more

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

__device__ float block_value(LogSum part) {
  __shared__ float tops[kWideRowThreads / kWarp], sums[kWideRowThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float top = __shfl_xor_sync(kAll, part.top, step);
    const float sum = __shfl_xor_sync(kAll, part.sum, step);
    part.merge(top, sum);
  }
  if (threadIdx.x % kWarp == 0) {
    tops[threadIdx.x / kWarp] = part.top;
    sums[threadIdx.x / kWarp] = part.sum;
  }
  __syncthreads();
  LogSum all;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) all.merge(tops[w], sums[w]);
  return all.value();
}

template <typename T>
__device__ LogSum over_row(const T* row, int64_t size, float scale) {
  constexpr int kPer = sizeof(uint4) / sizeof(T);
  LogSum part;
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
    if (highest > part.top) {
      part.sum *= __expf(part.top - highest);
      part.top = highest;
    }
    if (part.top > kMinusInf)
      for (int j = 0; j < kPer; ++j) part.sum += __expf(scaled[j] - part.top);
  }
  const int64_t tail = head + wide * kPer;
  if (threadIdx.x < head) part.add(to_float(row[threadIdx.x]) * scale);
  if (threadIdx.x < size - tail) part.add(to_float(row[tail + threadIdx.x]) * scale);
  return part;
}

template <typename T>
__device__ float normalizer_of(const StepArgs& args, const Children& children, int64_t r) {
  if (args.normalizers) return args.normalizers[r];
  const T* row = static_cast<const T*>(args.logits) + r * args.row_stride;
  const float scale = args.inverse_temperature;
  LogSum part;
  if (args.normalize == Normalize::kVocab) {
    part = over_row(row, args.vocab, scale);
  } else if (args.normalize == Normalize::kLevel) {
    const int64_t level = scored_level(args, children.parent);
    for (int64_t c = threadIdx.x; c < args.tokens.width; c += blockDim.x) {
      const int64_t column = args.tokens.at(level, c);
      if (column >= 0) part.add(to_float(row[column]) * scale);
    }
  } else {
    for (int64_t k = children.first + threadIdx.x; k < children.last; k += blockDim.x) {
      const int64_t column = legal_column(args, children, r / args.beams, k);
      if (column >= 0) part.add(to_float(row[column]) * scale);
    }
  }
  return block_value(part);
}

// Unsigned integers in the order of floats; 0 for what can't be a beam.
__device__ __forceinline__ uint32_t ordered(float x) {
  if (!can_be_a_beam(x)) return 0;
  const uint32_t bits = __float_as_uint(x + 0.0f);  // -0 equals 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Candidate j of beam m is number m * stride + j of its request. Candidates of a beam: the end of
// its SID where one ends there, then its children by code. Codes of the vocabulary come first.
__device__ __forceinline__ int64_t candidate_stride(const StepArgs& args) {
  return args.tokens.width + 1;
}
__device__ __forceinline__ int64_t child_of(const Children& children, int64_t j, int ends) {
  return j < ends ? kEndChild : children.first + j - ends;
}

// A candidate as one number, higher for the `better` one: its score, then the lower of the numbers
// above. Unlike scores, keys are distinct. 0 is no candidate.
__device__ __forceinline__ uint64_t key_of(float score, uint32_t number) {
  const uint32_t order = ordered(score);
  return order == 0 ? 0 : static_cast<uint64_t>(order) << 32 | (kAll - number);
}
__device__ Candidate candidate_of(const StepArgs& args, int64_t request, uint64_t key) {
  const auto number = static_cast<int64_t>(kAll - static_cast<uint32_t>(key));
  const int64_t m = number / candidate_stride(args), j = number % candidate_stride(args);
  const Children children = children_of(args, request * args.beams + m);
  return {unordered(static_cast<uint32_t>(key >> 32)), static_cast<int32_t>(m),
          child_of(children, j, children.may_end())};
}

// What the two kernels share: each row's best keys in no order, and how many there are. A key of 0
// is no candidate.
struct Lists {
  uint64_t* keys;  // [rows, size]
  int* counts;     // [rows]
  int size;
};

// Room to spare lets `threshold` stop early. Where a beam's best candidates outgrow the buffer, its
// list holds them all.
int list_size(const StepArgs& args) {
  const int64_t wanted = args.out_beams, all = args.tokens.width + 1;
  const int64_t best = wanted + std::max<int64_t>(64, wanted / 4);
  return static_cast<int>(best <= kMostListed ? std::min(best, all) : all);
}

Lists lists_in(void* workspace, const StepArgs& args) {
  auto* keys = static_cast<uint64_t*>(workspace);
  const int size = list_size(args);
  return {keys, reinterpret_cast<int*>(keys + args.batch * args.beams * size), size};
}

// The key of candidate j of row r, 0 where it is none.
template <typename T>
__device__ __forceinline__ uint64_t candidate_key(const StepArgs& args, const Children& children,
                                                  int64_t r, int64_t j, int ends,
                                                  float normalizer) {
  const int64_t request = r / args.beams, child = child_of(children, j, ends);
  float score = args.scores[r];
  if (child != kEndChild) {
    const int64_t column = legal_column(args, children, request, child);
    if (column < 0) return 0;
    const T* row = static_cast<const T*>(args.logits) + r * args.row_stride;
    score = score_of(args, score, to_float(row[column]), normalizer);
  } else if (!may_end(args, children, request)) {
    return 0;
  }
  return key_of(score, static_cast<uint32_t>((r % args.beams) * candidate_stride(args) + j));
}

// One block per row. Candidates that all fit into the row's list go straight there. Others pass
// through the buffer, which keeps the best and is refilled until all have been seen.
template <typename T>
__global__ void list_kernel(StepArgs args, Lists lists) {
  __shared__ uint64_t keys[kBuffer];
  __shared__ int histogram[kDigits];
  const int64_t r = blockIdx.x;
  if (is_dead(args, r)) {
    if (threadIdx.x == 0) lists.counts[r] = 0;
    return;
  }
  const Children children = children_of(args, r);
  const float normalizer = normalizer_of<T>(args, children, r);
  const int ends = children.may_end();
  const int64_t size = min(children.size() + ends, candidate_stride(args));
  uint64_t* list = lists.keys + r * lists.size;
  if (size <= lists.size) {
    for (int64_t j = threadIdx.x; j < size; j += blockDim.x)
      list[j] = candidate_key<T>(args, children, r, j, ends, normalizer);
    if (threadIdx.x == 0) lists.counts[r] = static_cast<int>(size);
    return;
  }
  int count = 0;
  for (int64_t begin = 0; begin < size;) {
    const int more = static_cast<int>(min(size - begin, static_cast<int64_t>(kBuffer - count)));
    for (int i = threadIdx.x; i < more; i += blockDim.x)
      keys[count + i] = candidate_key<T>(args, children, r, begin + i, ends, normalizer);
    __syncthreads();
    begin += more;
    count += more;
    if (count <= lists.size) continue;
    const auto for_each = [&](auto visit) {
      for (int i = threadIdx.x; i < count; i += blockDim.x) visit(keys[i]);
    };
    const int wanted = static_cast<int>(args.out_beams);
    count = keep(keys, count, threshold(for_each, wanted, lists.size, histogram));
  }
  for (int i = threadIdx.x; i < count; i += blockDim.x) list[i] = keys[i];
  if (threadIdx.x == 0) lists.counts[r] = count;
}

// One block per request, one warp per list.
__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(StepArgs args, Lists lists, int room) {
  extern __shared__ uint64_t keys[];  // [room]
  __shared__ int histogram[kDigits];
  __shared__ int all, count;
  const int64_t request = blockIdx.x, rows = request * args.beams;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (threadIdx.x == 0) all = count = 0;
  __syncthreads();
  for (int64_t m = threadIdx.x; m < args.beams; m += blockDim.x)
    atomicAdd(&all, lists.counts[rows + m]);
  __syncthreads();

  // Calls visit(key) in whole warps, with 0 past a list's end.
  const auto for_each = [&](auto visit) {
    for (int64_t m = threadIdx.x / kWarp; m < args.beams; m += blockDim.x / kWarp) {
      const uint64_t* list = lists.keys + (rows + m) * lists.size;
      const int size = lists.counts[rows + m];
      for (int base = 0; base < size; base += kWarp)
        visit(base + lane < size ? list[base + lane] : 0);
    }
  };
  const int wanted = static_cast<int>(args.out_beams);
  const uint64_t least = all <= room ? 1 : threshold(for_each, wanted, room, histogram);
  for_each([&](uint64_t key) {
    const int place = place_for(key >= least, &count);
    if (key >= least) keys[place] = key;
  });
  __syncthreads();

  const int num_found = count;
  int size = 1;
  while (size < num_found) size *= 2;
  for (int i = num_found + threadIdx.x; i < size; i += blockDim.x) keys[i] = 0;
  __syncthreads();
  sort_keys(keys, size);
  for (int i = threadIdx.x; i < wanted; i += blockDim.x) {
    const int64_t at = request * args.out_beams + i;
    if (i < num_found)
      write_beam(args, at, request, candidate_of(args, request, keys[i]));
    else
      write_dead_beam(args, at);
  }
}

template <typename T>
int launch(const StepArgs& args, const Lists& lists, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(args.batch * args.beams);
  const bool wide = args.normalize == Normalize::kVocab && args.vocab > kWideRow;
  const int threads = wide || args.tokens.width > kWideRow ? kWideRowThreads : kRowThreads;
  if (rows > 0) list_kernel<T><<<rows, threads, 0, stream>>>(args, lists);
  // Twice what is wanted lets `threshold` stop early, as long as that is free.
  int room = 512;
  while (room < 2 * args.out_beams) room *= 2;
  if (room * sizeof(uint64_t) > kSharedBytes / 2) room /= 2;
  const size_t bytes = room * sizeof(uint64_t);
  if (bytes > kSharedBytes / 2) {
    const int failed = cudaFuncSetAttribute(
        select_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (failed != cudaSuccess) return failed;
  }
  select_kernel<<<static_cast<unsigned>(args.batch), kSelectThreads, bytes, stream>>>(args, lists,
                                                                                      room);
  return cudaGetLastError();
}

}  // namespace

int64_t trie_step_workspace(const StepArgs& args) {
  return args.batch * args.beams * (list_size(args) * sizeof(uint64_t) + sizeof(int));
}

int trie_step_cuda(const StepArgs& args, void* workspace, void* stream) {
  if (args.batch == 0) return cudaSuccess;
  const Lists lists = lists_in(workspace, args);
  auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case DType::kBFloat16:
      return launch<BFloat16>(args, lists, cuda_stream);
    case DType::kFloat16:
      return launch<__half>(args, lists, cuda_stream);
    default:
      return launch<float>(args, lists, cuda_stream);
  }
}

}  // namespace crs
