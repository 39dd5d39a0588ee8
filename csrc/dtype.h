// The floating-point types that the kernels read: their numbers at the native boundary (exported
// to Python as `_C.DType`), their sizes and their bits.
#pragma once

#include <cstdint>

namespace crs {

enum class DType : int { kFloat32, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

constexpr int element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// The bits of -infinity, in the low bytes.
constexpr uint32_t minus_inf_bits(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return 0xff80u;
    case DType::kFloat16:
      return 0xfc00u;
    default:
      return 0xff800000u;
  }
}

}  // namespace crs
