// A copy of an array with ranges of it replaced; see crs_fast/ops/splice.
#pragma once

#include <cstdint>

namespace crs {

struct SpliceArgs {
  const void* values;     // [size], `item_bytes` each
  const int64_t* begin;   // [count]: ranges that ascend and do not overlap
  const int64_t* end;     // [count]
  const void* added;      // what stands for range i: from bounds[i] to bounds[i + 1]
  const int64_t* bounds;  // [count + 1]
  // [count + 1] or null: added to the values before range i, the last to those after all ranges;
  // values are int64 then.
  const int64_t* shift;
  void* out;
  int64_t size, count, item_bytes;
  int threads;  // at most
};
void splice(const SpliceArgs& args);

}  // namespace crs
