// The residual codebook lookup: levels packed into panels, blocks of rows on threads, one body
// for each instruction set.
#include "codebook.h"

#include <cmath>
#include <memory>
#include <vector>

#include "codebook_tile.h"
#include "isa.h"

namespace crs {
namespace {

constexpr double kEps = std::numeric_limits<float>::epsilon();

// 64-byte aligned, zeroed memory.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : raw_(size + 64 / sizeof(T)) {
    void* start = raw_.data();
    size_t space = raw_.size() * sizeof(T);
    data_ = static_cast<T*>(std::align(64, size * sizeof(T), start, space));
  }
  T* get() const { return data_; }

 private:
  std::vector<T> raw_;
  T* data_;
};

// One codebook moved to its mean (distances do not see a shift, but rounding grows with the norms)
// and packed: panels of `width` codes, dimension by dimension; the rest in panels of kLanes codes.
// Codes past the last have an infinite square and are never best.
struct Level {
  Level(const float* book, int64_t codes, int64_t dim, int64_t width)
      : book(book),
        wide(codes / width * width),
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
      const int64_t size = k < wide ? width : kLanes;
      const int64_t first = k < wide ? k / width * width : k / kLanes * kLanes;
      float* panel = panels.get() + first * dim + (k - first);
      double square = 0.0;
      for (int64_t d = 0; k < codes && d < dim; ++d) {
        const double value = book[k * dim + d] - centre[d];
        panel[d * size] = static_cast<float>(value);
        square += value * value;
      }
      half_squares.get()[k] =
          k < codes ? static_cast<float>(square / 2) : std::numeric_limits<float>::infinity();
      most = std::max(most, square);
    }
    largest = std::sqrt(most);
  }

  // How far apart two scores m.c - |c|^2 / 2 must be for float32 to order them rightly: twice the
  // bound of one. A sum of n products in blocks, (depth + blocks) u |m| |c| (Higham 2002, eq. 3.5
  // and section 4.2), the rounding of both operands, of |c|^2 / 2, of the last two differences.
  double margin(double norm, int64_t dim) const {
    const double limit = std::numeric_limits<float>::max() / 16;
    // Past this the products may overflow float32: then nothing is sure.
    if (!((norm + largest) * (norm + largest) <= limit))
      return std::numeric_limits<double>::infinity();
    const double terms = std::min(dim, kDepth) + (dim + kDepth - 1) / kDepth + 6.0;
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

// What a thread works in: a block of rows, from reading x to its last code.
struct Scratch {
  Scratch(const LookupArgs& args, int64_t block, int64_t padded)
      : rest(block * args.dim),
        moved(block * args.dim),
        margins(block),
        best(block * kLanes),
        second(block * kLanes),
        partial(args.dim > kDepth ? block * 4 * kLanes : 0),
        scores(padded),
        where(block * kLanes) {}
  Running running(int64_t row) const {
    return {best.get() + row * kLanes, second.get() + row * kLanes, where.get() + row * kLanes};
  }

  Buffer<double> rest;  // [block, dim]: what is left to code
  Buffer<float> moved;  // [block, dim]: the same seen from the level's mean
  Buffer<double> margins;
  Buffer<float> best, second, partial, scores;
  Buffer<int32_t> where;
};

struct Task {
  const LookupArgs& args;
  const std::vector<Level>& levels;
  const Scratch& scratch;
  int64_t begin, count;  // the rows of this block
  int64_t* counts;       // or null
  double* sums;
  LookupResult* result;
};

template <typename T>
CRS_INLINE bool read_row(const T* from, int64_t dim, double* to) {
  double size = 0.0;
  for (int64_t d = 0; d < dim; ++d) {
    to[d] = to_float(from[d]);
    size += std::fabs(to[d]);
  }
  return size < std::numeric_limits<double>::infinity();  // false for NaN too
}

CRS_INLINE void read_block(const Task& task) {
  const LookupArgs& a = task.args;
  for (int64_t r = 0; r < task.count; ++r) {
    double* to = task.scratch.rest.get() + r * a.dim;
    const int64_t at = (task.begin + r) * a.row_stride;
    bool finite;
    if (a.dtype == DType::kBFloat16)
      finite = read_row(static_cast<const BFloat16*>(a.x) + at, a.dim, to);
    else if (a.dtype == DType::kFloat16)
      finite = read_row(static_cast<const Float16*>(a.x) + at, a.dim, to);
    else
      finite = read_row(static_cast<const float*>(a.x) + at, a.dim, to);
    if (!finite) task.result->finite = false;
  }
}

// Rows seen from a level's mean, in float32, and the margin that each needs.
CRS_INLINE void move_block(const Task& task, const Level& level) {
  const int64_t dim = task.args.dim;
  const double* mean = level.mean.get();
  for (int64_t r = 0; r < task.count; ++r) {
    const double* rest = task.scratch.rest.get() + r * dim;
    float* moved = task.scratch.moved.get() + r * dim;
    double squares[8] = {};  // as many chains as keep the adder busy
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8)
      for (int i = 0; i < 8; ++i) {
        const double value = rest[d + i] - mean[d + i];
        moved[d + i] = static_cast<float>(value);
        squares[i] += value * value;
      }
    for (; d < dim; ++d) {
      const double value = rest[d] - mean[d];
      moved[d] = static_cast<float>(value);
      squares[0] += value * value;
    }
    double square = 0.0;
    for (int i = 0; i < 8; ++i) square += squares[i];
    task.scratch.margins.get()[r] = level.margin(std::sqrt(square), dim);
  }
}

template <int R, int V, bool Exact>
CRS_INLINE void score_panel(const Task& task, const Level& level, int64_t first, int64_t rows) {
  const int64_t dim = task.args.dim;
  const float* panel = level.panels.get() + first * dim;
  const float* half_squares = level.half_squares.get() + first;
  for (int64_t d = 0; d < dim; d += kDepth) {
    const int64_t depth = std::min(kDepth, dim - d);
    for (int64_t r = 0; r < rows; r += R) {
      Floats sums[R][V];
      multiply<R, V>(task.scratch.moved.get() + r * dim + d, dim, panel + d * V * kLanes, depth,
                     sums);
      float* partial = task.scratch.partial.get() + r * V * kLanes;
      if (d > 0) {
#pragma GCC unroll 32
        for (int i = 0; i < R * V; ++i) {
          Floats before;
          load(partial + i * kLanes, before);
          sums[i / V][i % V] += before;
        }
      }
      if (d + depth == dim) {
        absorb<R, V, Exact>(sums, half_squares, static_cast<int32_t>(first),
                            task.scratch.running(r));
      } else {
#pragma GCC unroll 32
        for (int i = 0; i < R * V; ++i) store(sums[i / V][i % V], partial + i * kLanes);
      }
    }
  }
}

// The float64 choice among the codes that float32 cannot tell from the best.
template <int V>
CRS_INLINE int32_t recheck(const Task& task, const Level& level, int64_t r) {
  const int64_t dim = task.args.dim, codes = task.args.codes;
  const double* rest = task.scratch.rest.get() + r * dim;
  const float* moved = task.scratch.moved.get() + r * dim;
  const double margin = task.scratch.margins.get()[r];
  float* scores = task.scratch.scores.get();
  double limit = -std::numeric_limits<double>::infinity();
  if (margin < std::numeric_limits<double>::infinity()) {
    float top = -std::numeric_limits<float>::infinity();
    for (int64_t k = 0; k < level.padded;) {
      const int vectors = k < level.wide ? V : 1;
      const float* panel = level.panels.get() + k * dim;
      Floats total[V] = {};
      for (int64_t d = 0; d < dim; d += kDepth) {
        const int64_t depth = std::min(kDepth, dim - d);
        Floats sums[1][V], one[1][1];
        if (vectors == V) {
          multiply<1, V>(moved + d, 0, panel + d * V * kLanes, depth, sums);
          for (int v = 0; v < V; ++v) total[v] += sums[0][v];
        } else {
          multiply<1, 1>(moved + d, 0, panel + d * kLanes, depth, one);
          total[0] += one[0][0];
        }
      }
      for (int v = 0; v < vectors; ++v, k += kLanes) {
        Floats half;
        load(level.half_squares.get() + k, half);
        store(total[v] - half, scores + k);
      }
    }
    for (int64_t k = 0; k < codes; ++k) top = std::max(top, scores[k]);
    limit = top - margin;
  } else {
    std::fill(scores, scores + codes, 0.0f);
  }
  int32_t chosen = 0;
  double nearest = std::numeric_limits<double>::infinity();
  for (int64_t k = 0; k < codes; ++k) {
    if (scores[k] < limit) continue;
    const float* word = level.book + k * dim;
    double distance = 0.0;
    for (int64_t d = 0; d < dim; ++d) distance += (rest[d] - word[d]) * (rest[d] - word[d]);
    if (distance < nearest) {
      nearest = distance;
      chosen = static_cast<int32_t>(k);
    }
  }
  return chosen;
}

CRS_INLINE void take(const Task& task, int64_t l, int64_t r, int64_t code) {
  const LookupArgs& a = task.args;
  double* rest = task.scratch.rest.get() + r * a.dim;
  const float* word = task.levels[l].book + code * a.dim;
  a.out[(task.begin + r) * a.levels + l] = code;
  if (task.sums) {
    ++task.counts[l * a.codes + code];
    double* sum = task.sums + (l * a.codes + code) * a.dim;
    for (int64_t d = 0; d < a.dim; ++d) sum[d] += rest[d];
  }
  for (int64_t d = 0; d < a.dim; ++d) rest[d] -= word[d];
}

template <int R, int V, bool Exact>
CRS_INLINE void run_levels(const Task& task) {
  const LookupArgs& a = task.args;
  const Scratch& s = task.scratch;
  // Rows past the end of a tile hold what an earlier block left there; their codes are not read.
  const int64_t rows = (task.count + R - 1) / R * R;
  read_block(task);
  if (!task.result->finite) return;
  for (int64_t l = 0; l < a.levels; ++l) {
    const Level& level = task.levels[l];
    move_block(task, level);
    std::fill(s.best.get(), s.best.get() + rows * kLanes, -std::numeric_limits<float>::infinity());
    if (Exact)
      std::fill(s.second.get(), s.second.get() + rows * kLanes,
                -std::numeric_limits<float>::infinity());
    std::fill(s.where.get(), s.where.get() + rows * kLanes, 0);
    for (int64_t k = 0; k < level.wide; k += V * kLanes)
      score_panel<R, V, Exact>(task, level, k, rows);
    for (int64_t k = level.wide; k < level.padded; k += kLanes)
      score_panel<R, 1, Exact>(task, level, k, rows);
    for (int64_t r = 0; r < task.count; ++r) {
      const Running lanes = s.running(r);
      int32_t code;
      if (Exact) {
        const double margin = s.margins.get()[r];
        code =
            margin < std::numeric_limits<float>::max()
                ? highest_if_sure(lanes.best, lanes.second, lanes.where, static_cast<float>(margin))
                : -1;
        if (code < 0) {
          code = recheck<V>(task, level, r);
          ++task.result->rechecked;
        }
      } else {
        code = highest(lanes.best, lanes.where);
      }
      take(task, l, r, code);
    }
  }
  if (a.residual) {
    float* to = a.residual + task.begin * a.dim;
    const double* rest = s.rest.get();
    for (int64_t i = 0; i < task.count * a.dim; ++i) to[i] = static_cast<float>(rest[i]);
  }
}

// A tile shape for each instruction set: what its registers hold.
struct Kernel {
  void (*run)(const Task&);
  int64_t tile_rows, width;
};

#define CRS_KERNEL(name, target, R, V)                                         \
  target void name##_exact(const Task& task) { run_levels<R, V, true>(task); } \
  target void name##_fast(const Task& task) { run_levels<R, V, false>(task); } \
  Kernel name(bool exact) { return {exact ? name##_exact : name##_fast, R, V * kLanes}; }

CRS_KERNEL(portable, , 4, 1)
#if defined(__x86_64__) && defined(__GNUC__)
CRS_KERNEL(avx2, __attribute__((target("avx2,fma,bmi,bmi2,f16c"))), 6, 1)
CRS_KERNEL(avx512,
           __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2,f16c"))), 6,
           4)
#endif
#undef CRS_KERNEL

Kernel choose_kernel(bool exact) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (isa() == Isa::kAvx512) return avx512(exact);
  if (isa() == Isa::kAvx2) return avx2(exact);
#endif
  return portable(exact);
}

}  // namespace

LookupResult residual_lookup_cpu(const LookupArgs& args) {
  const Kernel kernel = choose_kernel(args.exact);
  std::vector<Level> levels;
  levels.reserve(args.levels);
  for (int64_t l = 0; l < args.levels; ++l)
    levels.emplace_back(args.books + l * args.codes * args.dim, args.codes, args.dim, kernel.width);

  // Many rows share a panel while it is in cache, and their residuals should stay there too.
  const int64_t block =
      std::clamp<int64_t>((1 << 15) / args.dim / kernel.tile_rows, 8, 16) * kernel.tile_rows;
  // Statistics are summed slab by slab and the slabs in order, so threads change no bit of them.
  const int64_t table = args.levels * args.codes * args.dim;
  int64_t slabs = (args.rows + block - 1) / block, slab = block;
  std::vector<double> sums;
  std::vector<int64_t> counts;
  if (args.sums) {
    slabs = std::clamp<int64_t>(args.rows / (8 * args.codes), 1, 16);
    slabs = std::min(slabs, std::max<int64_t>(1, (int64_t{1} << 25) / table));
    slab = (args.rows + slabs - 1) / slabs;
    sums.resize(slabs * table);
    counts.resize(slabs * args.levels * args.codes);
  }
  [[maybe_unused]] const int threads =
      static_cast<int>(std::clamp<int64_t>(slabs, 1, std::max(1, args.threads)));
  int64_t rechecked = 0;
  bool finite = true;
#pragma omp parallel num_threads(threads) reduction(+ : rechecked) reduction(&& : finite)
  {
    const Scratch scratch(args, block, levels.front().padded);
    LookupResult mine{0, true};
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < slabs; ++i) {
      const int64_t end = std::min(args.rows, (i + 1) * slab);
      for (int64_t begin = i * slab; begin < end && mine.finite; begin += block)
        kernel.run({args, levels, scratch, begin, std::min(block, end - begin),
                    args.sums ? counts.data() + i * args.levels * args.codes : nullptr,
                    args.sums ? sums.data() + i * table : nullptr, &mine});
    }
    rechecked += mine.rechecked;
    finite = finite && mine.finite;
  }
  if (args.sums) {
    std::fill(args.sums, args.sums + table, 0.0);
    std::fill(args.counts, args.counts + args.levels * args.codes, 0);
    for (int64_t i = 0; i < slabs; ++i) {
      for (int64_t j = 0; j < table; ++j) args.sums[j] += sums[i * table + j];
      for (int64_t j = 0; j < args.levels * args.codes; ++j)
        args.counts[j] += counts[i * args.levels * args.codes + j];
    }
  }
  return {rechecked, finite};
}

}  // namespace crs
