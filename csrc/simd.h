// Portable SIMD for the CPU kernels: GCC/Clang vector extensions, and one clone of a function per
// instruction set, chosen when the module is loaded.
#pragma once

#include <cstdint>
#include <cstring>

// Levels or features, never "arch=haswell": GCC takes that for the one processor, not for all since.
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

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  _Float16 value;
};

CRS_INLINE float to_float(float x) { return x; }
CRS_INLINE float to_float(Float16 x) { return static_cast<float>(x.value); }
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

// x = exp(x) for x <= 0, relative error below 2e-7; 0 below -87. Cody and Waite's reduction to
// |r| <= ln(2) / 2, then a polynomial (Cephes expf).
CRS_INLINE void exp_nonpositive(Floats& x) {
  const Floats tiny = x - x - 87.0f;
  const Ints vanish = x < tiny;
  x = vanish ? tiny : x;
  const float magic = 12582912.0f;  // adding it rounds to the nearest integer
  Floats n = (x * 1.44269504088896341f + magic) - magic;
  Floats r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Ints scale = (__builtin_convertvector(n, Ints) + 127) << 23;
  Floats power;
  std::memcpy(&power, &scale, sizeof power);
  x = vanish ? p * 0.0f : p * power;
}

}  // namespace crs
