// Vectors as wide as the registers of the instruction set that a kernel's file is compiled for: GCC
// and Clang vector extensions, and intrinsics where the extensions have no word for an instruction.
// (Of AVX-512's, the masked ones: GCC 12 warns of uninitialized values inside the others.)
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

#include "dtype.h"

#define CRS_INLINE inline __attribute__((always_inline))

namespace crs {
namespace CRS_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t Unsigned __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));

// Any type from any address.
template <typename To>
CRS_INLINE To read(const void* from) {
  To value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <typename To, typename From>
CRS_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  return read<To>(&from);
}
template <typename Vector, typename T>
CRS_INLINE void store(const Vector& from, T* to) {
  std::memcpy(to, &from, sizeof from);
}

CRS_INLINE Floats all(float value) { return value - Floats{}; }  // 0 + value would change -0
CRS_INLINE Ints all(int32_t value) { return value - Ints{}; }
CRS_INLINE Ints lane_numbers() {
  Ints lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

CRS_INLINE float to_float(float x) { return x; }
CRS_INLINE float to_float(BFloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
CRS_INLINE float to_float(Float16 x) {
  uint32_t bits = (x.bits & 0x7fffu) << 13;
  if (bits >= 0x7c00u << 13) bits |= 0x7f800000u;  // infinity, NaN
  // The difference of the exponents' biases; also makes subnormal numbers normal.
  const float value = bit_cast<float>(bits) * 0x1p112f;
  return x.bits & 0x8000u ? -value : value;
}

CRS_INLINE Floats load(const float* from) { return read<Floats>(from); }
CRS_INLINE Floats load(const BFloat16* from) {
  return bit_cast<Floats>(__builtin_convertvector(read<Halves>(from), Unsigned) << 16);
}
CRS_INLINE Floats load(const Float16* from) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(-1, read<__m256i>(from));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(read<__m128i>(from));
#elif defined(__aarch64__)
  return vcvt_f32_f16(read<float16x4_t>(from));
#else
  const Unsigned half = __builtin_convertvector(read<Halves>(from), Unsigned);
  Unsigned bits = (half & 0x7fffu) << 13;
  bits |= bit_cast<Unsigned>(bit_cast<Ints>(bits) >= 0x7c00 << 13) & 0x7f800000u;
  const Floats value = bit_cast<Floats>(bits) * 0x1p112f;
  return bit_cast<Floats>(bit_cast<Unsigned>(value) | (half & 0x8000u) << 16);
#endif
}

// a * b + c, rounded once where the instruction set can.
CRS_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// a > b ? a : b, so b where either is NaN.
CRS_INLINE Floats maximum(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(-1, a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// from[at], lane by lane, where the instruction set has a load for it.
#if defined(__AVX2__)
constexpr bool kCanGather = true;
#else
constexpr bool kCanGather = false;
#endif
CRS_INLINE Floats gather(const float* from, Ints at) {
#if defined(__AVX512F__)
  return _mm512_mask_i32gather_ps(Floats{}, -1, bit_cast<__m512i>(at), from, sizeof(float));
#elif defined(__AVX2__)
  return _mm256_i32gather_ps(from, bit_cast<__m256i>(at), sizeof(float));
#else
  Floats to;
  for (int i = 0; i < kLanes; ++i) to[i] = from[at[i]];
  return to;
#endif
}

// The lanes above `limit` as bits; NaN is not above.
CRS_INLINE uint32_t lanes_above(Floats x, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x, all(limit), _CMP_GT_OQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(x, all(limit), _CMP_GT_OQ));
#else
  uint32_t lanes = 0;
  for (int i = 0; i < kLanes; ++i) lanes |= uint32_t{x[i] > limit} << i;
  return lanes;
#endif
}

// Lane i takes lane i ^ Step, so log2(kLanes) of these reduce a vector.
template <int Step, typename Vector>
CRS_INLINE Vector exchange(Vector from) {
#if defined(__clang__)
  Vector to;
  for (int i = 0; i < kLanes; ++i) to[i] = from[i ^ Step];
  return to;
#else
  return __builtin_shuffle(from, lane_numbers() ^ Step);
#endif
}
template <int Step = kLanes / 2>
CRS_INLINE float highest_lane(Floats x) {
  x = maximum(x, exchange<Step>(x));
  if constexpr (Step > 1) return highest_lane<Step / 2>(x);
  return x[0];
}
template <int Step = kLanes / 2, typename Vector>
CRS_INLINE auto sum_of_lanes(Vector x) {
  x += exchange<Step>(x);
  if constexpr (Step > 1) return sum_of_lanes<Step / 2>(x);
  return x[0];
}
template <int Step = kLanes / 2>
CRS_INLINE int32_t lowest_lane(Ints x) {
  const Ints other = exchange<Step>(x);
  x = x < other ? x : other;
  if constexpr (Step > 1) return lowest_lane<Step / 2>(x);
  return x[0];
}

// 2^x for x <= 0, relative error below 2e-7; 2^-126 below that. 2^n by its bits, the rest of
// |r| <= 1/2 by a polynomial (degree 5, least relative error).
CRS_INLINE Floats exp2_nonpositive(Floats x) {
  x = maximum(all(-126.0f), x);     // NaN stays NaN
  const float magic = 12582912.0f;  // adding it rounds to the nearest integer
  const Floats shifted = x + magic;
  const Floats r = x - (shifted - magic);
  Floats p = fma(r, all(1.327647199253398e-3f), all(9.675541334453752e-3f));
  p = fma(p, r, all(5.550713273497850e-2f));
  p = fma(p, r, all(2.402211972383997e-1f));
  p = fma(p, r, all(6.931469670647609e-1f));
  p = fma(p, r, all(1.000000071654685f));
  // The low bits of `shifted` hold n.
  return p * bit_cast<Floats>((bit_cast<Unsigned>(shifted) + 127u) << 23);
}

}  // namespace CRS_ISA
}  // namespace crs
