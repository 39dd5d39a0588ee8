// Where some numbers stand among many; see crs_fast/ops/number_find.
#pragma once

#include <cstdint>

namespace crs {

// For each wanted number its position among `numbers`, which are distinct, or -1. `number_bytes` is
// 4 or 8.
void number_find(const void* numbers, int64_t size, int number_bytes, const int64_t* wanted,
                 int64_t num_wanted, int64_t* positions, int threads);

}  // namespace crs
