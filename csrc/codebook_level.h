// A codebook as the lookup's inner loops read it.
#pragma once

#include <cmath>
#include <limits>

#include "buffer.h"
#include "codebook_tile.h"

namespace crs {
namespace CRS_ISA {
namespace {

// One codebook moved to its mean (distances do not see a shift, but rounding grows with the norms)
// and packed: panels of kTileVectors vectors of codes, dimension by dimension; the rest in panels
// of one. Codes past the last have an infinite square and are never best.
struct Level {
  static constexpr int64_t kWidth = kTileVectors * kLanes;

  Level(const float* book, int64_t codes, int64_t dim)
      : book(book),
        wide(codes / kWidth * kWidth),
        padded(wide + (codes - wide + kLanes - 1) / kLanes * kLanes),
        mean(dim),
        panels(padded * dim),
        half_squares(padded) {
    double* centre = mean.get();
    for (int64_t k = 0; k < codes; ++k)
      for (int64_t d = 0; d < dim; ++d) centre[d] += book[k * dim + d];
    for (int64_t d = 0; d < dim; ++d) centre[d] /= codes;
    double most = 0.0;
    for (int64_t k = 0; k < padded; ++k) {
      const int64_t size = k < wide ? kWidth : kLanes;
      const int64_t first = k < wide ? k / kWidth * kWidth : k / kLanes * kLanes;
      float* panel = panels.get() + first * dim + (k - first);
      double square = 0.0;
      for (int64_t d = 0; k < codes && d < dim; ++d) {
        const double value = book[k * dim + d] - centre[d];
        panel[d * size] = static_cast<float>(value);
        square += value * value;
      }
      half_squares.get()[k] =
          k < codes ? static_cast<float>(square / 2) : std::numeric_limits<float>::infinity();
      if (square > most) most = square;
    }
    largest = std::sqrt(most);
  }

  // How far apart two scores m.c - |c|^2 / 2 must be for float32 to order them rightly: twice the
  // bound of one. A sum of n products in blocks, (depth + blocks) u |m| |c| (Higham 2002, eq. 3.5
  // and section 4.2), the rounding of both operands, of |c|^2 / 2, of the last two differences.
  double margin(double norm, int64_t dim) const {
    constexpr double kEps = std::numeric_limits<float>::epsilon();
    const double limit = std::numeric_limits<float>::max() / 16;
    // Past this the products may overflow float32: then nothing is sure.
    if (!((norm + largest) * (norm + largest) <= limit))
      return std::numeric_limits<double>::infinity();
    const double terms = (dim < kDepth ? dim : kDepth) + (dim + kDepth - 1) / kDepth + 6.0;
    return 1.01 * kEps * (terms * norm * largest + 2 * largest * largest) +
           4.0 * dim * std::numeric_limits<float>::min();
  }

  const float* book;  // [codes, dim]
  int64_t wide, padded;
  Buffer<double> mean;         // [dim]
  Buffer<float> panels;        // [padded, dim]
  Buffer<float> half_squares;  // [padded]
  double largest;              // norm of the longest codeword, centred
};

}  // namespace
}  // namespace CRS_ISA
}  // namespace crs
