// Which instruction sets this machine can run, and which the kernels use.
#include "isa.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

namespace crs {
namespace {

std::vector<std::string> runnable() {
  std::vector<std::string> names{"portable"};
#if defined(__x86_64__) && !defined(CRS_ONLY_PORTABLE)
  __builtin_cpu_init();
  // The same features as in CMakeLists.txt. A CPU with AVX2 and FMA has F16C and LZCNT too.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2") ||
      !__builtin_cpu_supports("popcnt"))
    return names;
  names.push_back("avx2");
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    names.push_back("avx512");
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
