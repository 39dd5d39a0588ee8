// Portable SIMD for the CPU kernels: GCC/Clang vector extensions, and one clone of a function per
// instruction set, chosen when the module is loaded.
#pragma once

#include <cstdint>
#include <cstring>

#include "dtype.h"

// Levels or features, never "arch=haswell": GCC takes that for the one processor, not for all
// since.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define CRS_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define CRS_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#endif
#else
#define CRS_CLONES
#endif
// Inlined into each clone, so that it is compiled for the clone's instruction set.
#define CRS_INLINE inline __attribute__((always_inline))

namespace crs {

constexpr int kLanes = 16;
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));

CRS_INLINE float to_float(float x) { return x; }
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12  // C++ without _Float16
CRS_INLINE float to_float(Float16 x) {
  const uint32_t exponent = x.bits & 0x7c00u;
  uint32_t bits = (x.bits & 0x7fffu) << 13;
  if (exponent == 0x7c00u) bits |= 0x7f800000u;  // infinity, NaN
  float value;
  std::memcpy(&value, &bits, sizeof value);
  value *= 0x1p112f;  // the exponents' biases; also makes subnormal numbers normal
  return x.bits & 0x8000u ? -value : value;
}
#else
CRS_INLINE float to_float(Float16 x) {
  _Float16 value;
  std::memcpy(&value, &x.bits, sizeof value);
  return static_cast<float>(value);
}
#endif
CRS_INLINE float to_float(BFloat16 x) {
  uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T>
CRS_INLINE void load(const T* from, Floats& to) {
  for (int i = 0; i < kLanes; ++i) to[i] = to_float(from[i]);
}
template <>
CRS_INLINE void load<float>(const float* from, Floats& to) {
  std::memcpy(&to, from, sizeof to);
}

CRS_INLINE void maximum(Floats& a, const Floats& b) { a = a > b ? a : b; }

// x = 2^x for x <= 0, relative error below 2e-7; 2^-126 below that. 2^n by its bits, the rest of
// |r| <= 1/2 by a polynomial (Cephes exp2f).
CRS_INLINE void exp2_nonpositive(Floats& x) {
  const Floats least = Floats{} - 126.0f;
  x = x < least ? least : x;        // NaN stays NaN
  const float magic = 12582912.0f;  // adding it rounds to the nearest integer
  const Floats shifted = x + magic;
  const Floats r = x - (shifted - magic);
  Floats p = r * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.0f;
  Ints power;
  std::memcpy(&power, &shifted, sizeof power);
  power = (power + 127) << 23;  // the low bits of `shifted` hold n
  Floats scale;
  std::memcpy(&scale, &power, sizeof scale);
  x = p * scale;
}

}  // namespace crs
