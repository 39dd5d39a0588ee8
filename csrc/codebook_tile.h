// The inner loops of the codebook lookup. A tile is R rows by V vectors of codes, so every code has
// a lane of its own and the running best is kept lane by lane; R and V fit the register file.
#pragma once

#include <limits>

#include "simd.h"

namespace crs {
namespace CRS_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
constexpr int kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX2__)  // 16, and products are added in one instruction
constexpr int kTileRows = 6, kTileVectors = 2;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif

// Dimensions summed before the partial sums are put aside: a panel's slice stays in the L1 cache,
// and the rounding error grows with this, not with the whole dimension.
constexpr int64_t kDepth = 96;

// sums[r][v] = rows[r] . codes of vector v; the panel holds V vectors for each dimension.
template <int R, int V>
CRS_INLINE void multiply(const float* rows, int64_t stride, const float* panel, int64_t depth,
                         Floats (&sums)[R][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v] = Floats{};
  constexpr int kHalf = R < 4 ? R : R / 2;
  const float* end = panel + depth * V * kLanes;
  const float* halves[2] = {rows, rows + kHalf * stride};
  for (; panel < end; panel += V * kLanes, ++halves[0], ++halves[1]) {
    Floats codes[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) codes[v] = load(panel + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Floats value = all(halves[r / kHalf][r % kHalf * stride]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] = fma(value, codes[v], sums[r][v]);
    }
  }
}

// The best and second best score seen in every lane, and the code of the best, of a block of rows.
struct Running {
  float* best;     // [rows, kLanes]
  float* second;   // [rows, kLanes]
  int32_t* where;  // [rows, kLanes]
};

template <int R, int V, bool Exact>
CRS_INLINE void absorb(const Floats (&sums)[R][V], const float* half_squares, int32_t first,
                       const Running& running) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    Floats best = load(running.best + r * kLanes);
    Floats second = load(running.second + r * kLanes);
    Ints where = read<Ints>(running.where + r * kLanes);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const Floats score = sums[r][v] - load(half_squares + v * kLanes);
      const Ints better = score > best;
      if constexpr (Exact) second = maximum(second, better ? best : score);
      best = better ? score : best;
      where = better ? lane_numbers() + (first + v * kLanes) : where;
    }
    store(best, running.best + r * kLanes);
    store(where, running.where + r * kLanes);
    if constexpr (Exact) store(second, running.second + r * kLanes);
  }
}

// The code of the highest score, ties to the lower code.
CRS_INLINE int32_t highest(const float* best, const int32_t* where) {
  const Floats value = load(best);
  const Ints code = read<Ints>(where), none = all(std::numeric_limits<int32_t>::max());
  return lowest_lane(value == all(highest_lane(value)) ? code : none);
}

// The same where no other score lies within `margin` of the highest; -1 otherwise.
CRS_INLINE int32_t highest_if_sure(const float* best, const float* second, const int32_t* where,
                                   float margin) {
  const Floats value = load(best);
  const Floats limit = all(highest_lane(value) - margin);
  const Ints close = value >= limit;  // -1 in each such lane
  const int32_t count = sum_of_lanes(close + (load(second) >= limit));
  return count == -1 ? sum_of_lanes(read<Ints>(where) & close) : -1;
}

}  // namespace CRS_ISA
}  // namespace crs
