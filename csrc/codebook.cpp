// Residual codebook lookup: a block of rows goes through all levels while it is in cache. Compiled
// once per instruction set.
#include "codebook.h"

#include <cmath>

#include "codebook_level.h"
#include "threads.h"

namespace crs {
namespace CRS_ISA {
namespace {

CRS_INLINE int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}
template <typename T>
CRS_INLINE void fill(const Buffer<T>& to, int64_t size, T value) {
  for (int64_t i = 0; i < size; ++i) to.get()[i] = value;
}

// What a thread works in: a block of rows, from reading x to its last code.
struct Scratch {
  Scratch(const LookupArgs& args, int64_t block, int64_t padded)
      : rest(block * args.dim),
        moved(block * args.dim),
        margins(block),
        best(block * kLanes),
        second(block * kLanes),
        partial(args.dim > kDepth ? block * kTileVectors * kLanes : 0),
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
  const List<Level>& levels;
  const Scratch& scratch;
  int64_t begin, count;  // the rows of this block
  int64_t* counts;       // or null
  double* sums;
  LookupResult* result;
};

template <typename T>
bool read_row(const T* from, int64_t dim, double* to) {
  double size = 0.0;
  for (int64_t d = 0; d < dim; ++d) {
    to[d] = to_float(from[d]);
    size += std::fabs(to[d]);
  }
  return size < std::numeric_limits<double>::infinity();  // false for NaN too
}

void read_block(const Task& task) {
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
void move_block(const Task& task, const Level& level) {
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

template <int V, bool Exact>
void score_panel(const Task& task, const Level& level, int64_t first, int64_t rows) {
  constexpr int R = kTileRows;
  const int64_t dim = task.args.dim;
  const float* panel = level.panels.get() + first * dim;
  const float* half_squares = level.half_squares.get() + first;
  for (int64_t d = 0; d < dim; d += kDepth) {
    const int64_t depth = dim - d < kDepth ? dim - d : kDepth;
    for (int64_t r = 0; r < rows; r += R) {
      Floats sums[R][V];
      multiply<R, V>(task.scratch.moved.get() + r * dim + d, dim, panel + d * V * kLanes, depth,
                     sums);
      float* partial = task.scratch.partial.get() + r * V * kLanes;
      if (d > 0) {
#pragma GCC unroll 32
        for (int i = 0; i < R * V; ++i) sums[i / V][i % V] += load(partial + i * kLanes);
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

// The scores in float32 of one row, from `first` on; `partial` sums as in score_panel.
template <int V>
void score_row(const Level& level, const float* row, int64_t dim, int64_t first, float* scores) {
  const float* panel = level.panels.get() + first * dim;
  Floats total[1][V] = {};
  for (int64_t d = 0; d < dim; d += kDepth) {
    Floats sums[1][V];
    multiply<1, V>(row + d, 0, panel + d * V * kLanes, dim - d < kDepth ? dim - d : kDepth, sums);
    for (int v = 0; v < V; ++v) total[0][v] += sums[0][v];
  }
  for (int v = 0; v < V; ++v, first += kLanes)
    store(total[0][v] - load(level.half_squares.get() + first), scores + first);
}

// The float64 choice among the codes that float32 cannot tell from the best.
int32_t recheck(const Task& task, const Level& level, int64_t r) {
  const int64_t dim = task.args.dim, codes = task.args.codes;
  const double* rest = task.scratch.rest.get() + r * dim;
  const float* moved = task.scratch.moved.get() + r * dim;
  const double margin = task.scratch.margins.get()[r];
  float* scores = task.scratch.scores.get();
  double limit = -std::numeric_limits<double>::infinity();
  if (margin < std::numeric_limits<double>::infinity()) {
    for (int64_t k = 0; k < level.wide; k += Level::kWidth)
      score_row<kTileVectors>(level, moved, dim, k, scores);
    for (int64_t k = level.wide; k < level.padded; k += kLanes)
      score_row<1>(level, moved, dim, k, scores);
    float top = -std::numeric_limits<float>::infinity();
    for (int64_t k = 0; k < codes; ++k) top = top < scores[k] ? scores[k] : top;
    limit = top - margin;
  } else {
    for (int64_t k = 0; k < codes; ++k) scores[k] = 0.0f;
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

// Float32's choice; -1 where the margin makes it unsure.
template <bool Exact>
int32_t choose(const Scratch& scratch, int64_t r) {
  const Running lanes = scratch.running(r);
  if (!Exact) return highest(lanes.best, lanes.where);
  const double margin = scratch.margins.get()[r];
  if (!(margin < std::numeric_limits<float>::max())) return -1;
  return highest_if_sure(lanes.best, lanes.second, lanes.where, static_cast<float>(margin));
}

void take(const Task& task, int64_t l, int64_t r, int64_t code) {
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

template <bool Exact>
void run_levels(const Task& task) {
  const LookupArgs& a = task.args;
  const Scratch& s = task.scratch;
  // Rows past the end of a tile hold what an earlier block left there; their codes are not read.
  const int64_t rows = (task.count + kTileRows - 1) / kTileRows * kTileRows;
  read_block(task);
  if (!task.result->finite) return;
  for (int64_t l = 0; l < a.levels; ++l) {
    const Level& level = task.levels[l];
    move_block(task, level);
    fill(s.best, rows * kLanes, -std::numeric_limits<float>::infinity());
    if (Exact) fill(s.second, rows * kLanes, -std::numeric_limits<float>::infinity());
    fill(s.where, rows * kLanes, 0);
    for (int64_t k = 0; k < level.wide; k += Level::kWidth)
      score_panel<kTileVectors, Exact>(task, level, k, rows);
    for (int64_t k = level.wide; k < level.padded; k += kLanes)
      score_panel<1, Exact>(task, level, k, rows);
    for (int64_t r = 0; r < task.count; ++r) {
      int32_t code = choose<Exact>(s, r);
      if (code < 0) {
        code = recheck(task, level, r);
        ++task.result->rechecked;
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

// What one thread has of its own.
struct Worker {
  Worker(const LookupArgs& args, int64_t block, int64_t padded) : scratch(args, block, padded) {}
  Scratch scratch;
  LookupResult result{0, true};
};

}  // namespace

LookupResult residual_lookup(const LookupArgs& args) {
  List<Level> levels(args.levels);
  for (int64_t l = 0; l < args.levels; ++l)
    levels.add(args.books + l * args.codes * args.dim, args.codes, args.dim);

  // Many rows share a panel while it is in cache, and their residuals should stay there too.
  const int64_t block = clamp((1 << 15) / args.dim / kTileRows, 8, 16) * kTileRows;
  // Statistics are summed slab by slab and the slabs in order, so neither threads nor the
  // instruction set change a bit of them.
  const int64_t table = args.levels * args.codes * args.dim;
  int64_t slabs = (args.rows + block - 1) / block, slab = block;
  if (args.sums) {
    const int64_t affordable = (int64_t{1} << 25) / table;
    slabs = clamp(args.rows / (8 * args.codes), 1, clamp(affordable, 1, 16));
    slab = (args.rows + slabs - 1) / slabs;
  }
  const Buffer<double> sums(args.sums ? slabs * table : 0);
  const Buffer<int64_t> counts(args.sums ? slabs * args.levels * args.codes : 0);

  // A thread more for every so many products: for less, waking it costs more than it brings.
  constexpr int64_t kProductsPerThread = 1 << 21;
  const int64_t worth = args.rows * table / kProductsPerThread;
  const int64_t threads = clamp(worth < slabs ? worth : slabs, 1, args.threads);
  List<Worker> workers(threads);
  for (int64_t i = 0; i < threads; ++i) workers.add(args, block, levels[0].padded);
  parallel_for(threads, slabs, [&](int64_t i, int number) {
    Worker& worker = workers[number];
    const int64_t end = args.rows < (i + 1) * slab ? args.rows : (i + 1) * slab;
    for (int64_t begin = i * slab; begin < end && worker.result.finite; begin += block) {
      const Task task{args,
                      levels,
                      worker.scratch,
                      begin,
                      end - begin < block ? end - begin : block,
                      args.sums ? counts.get() + i * args.levels * args.codes : nullptr,
                      args.sums ? sums.get() + i * table : nullptr,
                      &worker.result};
      args.exact ? run_levels<true>(task) : run_levels<false>(task);
    }
  });
  if (args.sums) {
    std::memset(args.sums, 0, table * sizeof(double));
    std::memset(args.counts, 0, args.levels * args.codes * sizeof(int64_t));
    for (int64_t i = 0; i < slabs; ++i) {
      for (int64_t j = 0; j < table; ++j) args.sums[j] += sums.get()[i * table + j];
      for (int64_t j = 0; j < args.levels * args.codes; ++j)
        args.counts[j] += counts.get()[i * args.levels * args.codes + j];
    }
  }
  LookupResult result{0, true};
  for (const Worker& worker : workers) {
    result.rechecked += worker.result.rechecked;
    result.finite = result.finite && worker.result.finite;
  }
  return result;
}

}  // namespace CRS_ISA
}  // namespace crs
