// The inner loops of the codebook lookup. A tile is R rows by V vectors of codes, so every code has
// a lane of its own and the running best is kept lane by lane; R and V fit the register file.
#pragma once

#include <algorithm>
#include <limits>

#include "simd.h"

namespace crs {

// Dimensions summed before the partial sums are put aside: a panel's slice stays in the L1 cache,
// and the rounding error grows with this, not with the whole dimension.
constexpr int64_t kDepth = 96;

CRS_INLINE void store(const Floats& from, float* to) { std::memcpy(to, &from, sizeof(Floats)); }
CRS_INLINE void load(const int32_t* from, Ints& to) { std::memcpy(&to, from, sizeof(Ints)); }
CRS_INLINE void store(const Ints& from, int32_t* to) { std::memcpy(to, &from, sizeof from); }

// Lane i takes lane i ^ Step, so log2(kLanes) of these reduce a vector.
template <int Step, typename Vector>
CRS_INLINE void exchange(const Vector& from, Vector& to) {
#if defined(__clang__)
  for (int i = 0; i < kLanes; ++i) to[i] = from[i ^ Step];
#else
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i ^ Step;
  to = __builtin_shuffle(from, lane);
#endif
}

template <int Step = kLanes / 2>
CRS_INLINE void spread_maximum(Floats& x) {
  Floats other;
  exchange<Step>(x, other);
  maximum(x, other);
  if constexpr (Step > 1) spread_maximum<Step / 2>(x);
}

template <int Step = kLanes / 2>
CRS_INLINE void spread_sum(Ints& x) {
  Ints other;
  exchange<Step>(x, other);
  x += other;
  if constexpr (Step > 1) spread_sum<Step / 2>(x);
}

template <int Step = kLanes / 2>
CRS_INLINE void spread_minimum(Ints& x) {
  Ints other;
  exchange<Step>(x, other);
  x = x < other ? x : other;
  if constexpr (Step > 1) spread_minimum<Step / 2>(x);
}

// sums[r][v] = rows[r] . codes of vector v; the panel holds V vectors for each dimension.
template <int R, int V>
CRS_INLINE void multiply(const float* rows, int64_t stride, const float* panel, int64_t depth,
                         Floats (&sums)[R][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v] = Floats{};
  for (int64_t d = 0; d < depth; ++d) {
    Floats codes[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) load(panel + (d * V + v) * kLanes, codes[v]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float value = rows[r * stride + d];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] += codes[v] * value;
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
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    Floats best, second;
    Ints where;
    load(running.best + r * kLanes, best);
    load(running.where + r * kLanes, where);
    if constexpr (Exact) load(running.second + r * kLanes, second);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      Floats half;
      load(half_squares + v * kLanes, half);
      const Floats score = sums[r][v] - half;
      const Ints better = score > best;
      if constexpr (Exact) {
        const Floats lower = better ? best : score;
        maximum(second, lower);
      }
      best = better ? score : best;
      where = better ? lane + (first + v * kLanes) : where;
    }
    store(best, running.best + r * kLanes);
    store(where, running.where + r * kLanes);
    if constexpr (Exact) store(second, running.second + r * kLanes);
  }
}

// The code of the highest score, ties to the lower code.
CRS_INLINE int32_t highest(const float* best, const int32_t* where) {
  Floats value, top;
  Ints code;
  load(best, value);
  load(where, code);
  top = value;
  spread_maximum(top);
  code = value == top ? code : std::numeric_limits<int32_t>::max() - (code - code);
  spread_minimum(code);
  return code[0];
}

// The same where no other score lies within `margin` of the highest; -1 otherwise.
CRS_INLINE int32_t highest_if_sure(const float* best, const float* second, const int32_t* where,
                                   float margin) {
  Floats value, next, top;
  Ints code;
  load(best, value);
  load(second, next);
  load(where, code);
  top = value;
  spread_maximum(top);
  const Floats limit = top - margin;
  const Ints close = value >= limit;  // -1 in each such lane
  Ints count = close + (next >= limit);
  code = code & close;
  spread_sum(count);
  spread_sum(code);
  return count[0] == -1 ? code[0] : -1;
}

}  // namespace crs
