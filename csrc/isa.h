// The instruction set that the CPU kernels run with on this processor.
#pragma once

namespace crs {

enum class Isa : int { kPortable, kAvx2, kAvx512 };

inline Isa isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  // What the bodies of codebook.cpp are compiled for. The clones of simd.h, which GCC alone makes,
  // ask for x86-64-v3 and x86-64-v4: every processor with these features is of those levels.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

inline const char* isa_name() {
  switch (isa()) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace crs
