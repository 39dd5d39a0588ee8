// Which instruction sets this machine can run, and which the kernels use.
#include "isa.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace crs {
namespace {

#if defined(__x86_64__) && !defined(CRS_ONLY_PORTABLE)
// What the CPU has and the operating system saves. Not by __builtin_cpu_supports, which says no to
// everything where the compiler's runtime does not fill it in (zig's does not).
struct CpuFeatures {
  unsigned basic = 0, extended = 0, amd = 0, saved = 0;

  CpuFeatures() {
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d)) basic = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) extended = b;
    if (__get_cpuid(0x80000001, &a, &b, &c, &d)) amd = c;
    if (basic & 1u << 27) __asm__("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
  }
  static bool all(unsigned of, unsigned wanted) { return (of & wanted) == wanted; }
  // The same features as in CMakeLists.txt.
  bool avx2() const {
    return all(saved, 0x6) &&                                        // XMM, YMM
           all(basic, 1u << 12 | 1u << 23 | 1u << 28 | 1u << 29) &&  // FMA, POPCNT, AVX, F16C
           all(extended, 1u << 3 | 1u << 5 | 1u << 8) &&             // BMI, AVX2, BMI2
           all(amd, 1u << 5);                                        // LZCNT
  }
  bool avx512() const {
    return avx2() && all(saved, 0xe6) &&                              // masks, ZMM
           all(extended, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31);  // F, DQ, BW, VL
  }
};
#endif

std::vector<std::string> runnable() {
  std::vector<std::string> names{"portable"};
#if defined(__x86_64__) && !defined(CRS_ONLY_PORTABLE)
  const CpuFeatures cpu;
  if (cpu.avx2()) names.push_back("avx2");
  if (cpu.avx512()) names.push_back("avx512");
#endif
  return names;
}

std::atomic<int>& chosen() {
  static std::atomic<int> place{static_cast<int>(isas().size()) - 1};
  return place;
}

}  // namespace

const std::vector<std::string>& isas() {
  static const std::vector<std::string> names = runnable();
  return names;
}

int isa_in_use() { return chosen().load(std::memory_order_relaxed); }

void use_isa(const std::string& name) {
  const auto found = std::find(isas().begin(), isas().end(), name);
  if (found == isas().end())
    throw std::invalid_argument("use_isa: this machine cannot run " + name);
  chosen() = static_cast<int>(found - isas().begin());
}

}  // namespace crs
