// What a row of logits is normalised by.
#pragma once

#include <cmath>
#include <limits>

#include "simd.h"

namespace crs {
namespace CRS_ISA {
namespace {

// log(sum(exp(inverse_temperature * logits))) over a contiguous row.
template <typename T>
float logsumexp(const T* logits, int64_t size, float inverse_temperature) {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  constexpr int kChains = 4;  // as many as keep the adder busy
  // What is left past the last whole vector, among logits that add nothing.
  const int64_t whole = size / kLanes * kLanes;
  float padded[kLanes];
  for (int64_t i = 0; i < kLanes; ++i)
    padded[i] = whole + i < size ? to_float(logits[whole + i]) : kMinusInfinity;
  const Floats rest = load(padded);

  Floats tops[kChains] = {rest, rest, rest, rest};
  int64_t i = 0;
  for (; i + kChains * kLanes <= whole; i += kChains * kLanes)
    for (int c = 0; c < kChains; ++c) tops[c] = maximum(tops[c], load(logits + i + c * kLanes));
  for (; i < whole; i += kLanes) tops[0] = maximum(tops[0], load(logits + i));
  const float highest = highest_lane(maximum(maximum(tops[0], tops[1]), maximum(tops[2], tops[3])));
  if (!std::isfinite(highest)) return highest;

  const float scale = inverse_temperature * 1.44269504088896341f;  // exp(x) = 2^(x / log(2))
  const auto power = [&](Floats value) { return exp2_nonpositive((value - highest) * scale); };
  Floats sums[kChains] = {power(rest)};
  for (i = 0; i + kChains * kLanes <= whole; i += kChains * kLanes)
    for (int c = 0; c < kChains; ++c) sums[c] += power(load(logits + i + c * kLanes));
  for (; i < whole; i += kLanes) sums[0] += power(load(logits + i));
  double total = 0.0;
  for (const Floats& sum : sums)
    for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return static_cast<float>(highest * double{inverse_temperature} + std::log(total));
}

}  // namespace
}  // namespace CRS_ISA
}  // namespace crs
