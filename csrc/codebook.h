// Residual codebook lookup on the CPU; see crs_fast/ops/codebook/__init__.py for what it computes.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace crs {

struct LookupArgs {
  const void* x;  // [rows, dim], row_stride elements apart
  DType dtype;
  int64_t rows, dim, row_stride;
  const float* books;  // [levels, codes, dim]
  int64_t levels, codes;
  bool exact;       // recheck in float64 what float32 cannot order
  int threads;      // at most
  int64_t* out;     // [rows, levels]
  float* residual;  // [rows, dim], or null
  int64_t* counts;  // [levels, codes] rows of each code, or null
  double* sums;     // [levels, codes, dim] of what each level had to code, or null
};

struct LookupResult {
  int64_t rechecked;  // (row, level) pairs measured again in float64
  bool finite;        // false: a row holds NaN or infinity, and the outputs mean nothing
};

LookupResult residual_lookup_cpu(const LookupArgs& args);
CRS_FOR_EACH_ISA(LookupResult residual_lookup(const LookupArgs& args);)

}  // namespace crs
