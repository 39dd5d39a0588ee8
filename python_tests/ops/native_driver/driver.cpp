// Runs the threaded kernels without Python: under a thread sanitizer, and with memory that runs
// out at every allocation in turn.
//
//   driver threads    several callers at once, each of whose calls has several threads; results
//                     must be those of one thread
//   driver memory     the n-th allocation fails, for every n: the call throws std::bad_alloc and
//                     the next one, with memory, works
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "codebook.h"
#include "collisions.h"
#include "text_table.h"
#include "trie_build.h"
#include "trie_change.h"
#include "trie_ops.h"

namespace {

std::atomic<int64_t> allocations_left{std::numeric_limits<int64_t>::max()};

void* allocate(size_t size, size_t alignment) {
  if (allocations_left.fetch_sub(1) <= 0) throw std::bad_alloc();
  void* data = nullptr;
  if (posix_memalign(&data, alignment < sizeof(void*) ? sizeof(void*) : alignment, size) != 0)
    throw std::bad_alloc();
  return data;
}

}  // namespace

void* operator new(size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new[](size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<size_t>(alignment));
}
void operator delete(void* data) noexcept { free(data); }
void operator delete[](void* data) noexcept { free(data); }
void operator delete(void* data, size_t) noexcept { free(data); }
void operator delete[](void* data, size_t) noexcept { free(data); }
void operator delete(void* data, std::align_val_t) noexcept { free(data); }
void operator delete(void* data, size_t, std::align_val_t) noexcept { free(data); }

namespace {

constexpr int64_t kLevels = 3, kCodes = 50, kBatch = 4, kBeams = 40, kVocab = 4000, kWanted = 30;

struct Random {
  uint64_t state;
  uint64_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
  }
  float real() { return static_cast<float>(next() % 20001) / 10000.0f - 1.0f; }
};

// What a caller reads; shared by all of them.
struct Inputs {
  explicit Inputs(int64_t items) : sids(items * kLevels) {
    Random random{1};
    for (int64_t i = 0; i < items; ++i) {
      const int64_t length = 1 + static_cast<int64_t>(random.next() % kLevels);
      for (int64_t l = 0; l < kLevels; ++l)
        sids[i * kLevels + l] = l < length ? static_cast<int64_t>(random.next() % kCodes) : -1;
    }
    for (int64_t i = 0; i < kBatch * kBeams * kVocab; ++i) logits.push_back(random.real());
    for (int64_t i = 0; i < kLevels * kCodes; ++i) column.push_back(7 + i);
    for (int64_t i = 0; i < 2000 * 8; ++i) x.push_back(random.real());
    for (int64_t i = 0; i < kLevels * kCodes * 8; ++i) books.push_back(random.real());
    scores.assign(kBatch * kBeams, 0.0f);
    nodes.assign(kBatch * kBeams, 0);
  }
  std::vector<int64_t> sids, column, nodes;
  std::vector<float> logits, scores, x, books;
};

struct Trie {
  std::vector<uint8_t> codes;
  std::vector<uint64_t> bits;
  std::vector<int32_t> rank, starts, order;
  std::vector<int64_t> level;
  crs::TrieView view;
};

template <typename T>
void digest(uint64_t& sum, const std::vector<T>& values) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) sum = (sum ^ bytes[i]) * 1099511628211u;
}

// What `made`, whose sizes are known, writes.
template <typename Made>
void write(Made& made, Trie& trie) {
  const crs::TrieSizes& sizes = made.sizes();
  trie.codes.resize(sizes.num_codes());
  trie.bits.resize(kLevels * sizes.words());
  trie.rank.resize(kLevels * sizes.words());
  trie.starts.resize(sizes.num_starts());
  trie.level.resize(2 * (kLevels + 1));
  made.fill({trie.codes.data(), trie.bits.data(), trie.rank.data(), trie.starts.data(),
             trie.level.data()});
  trie.view = {trie.codes.data(), trie.bits.data(), trie.rank.data(), trie.starts.data(),
               trie.level.data(), kLevels,          sizes.words(),    1};
}

void build(const Inputs& in, int threads, Trie& trie) {
  const auto items = static_cast<int64_t>(in.sids.size()) / kLevels;
  crs::TrieBuilder builder(in.sids.data(), items, kLevels, 0, threads, [] {});
  trie.order.resize(items);
  builder.sort(trie.order.data());
  write(builder, trie);
}

// The trie again, after every seventh item was removed and inserted.
void change(const Trie& trie, int threads, Trie& changed) {
  std::vector<int64_t> items;
  for (int64_t i = 0; i < static_cast<int64_t>(trie.order.size()); i += 7) items.push_back(i);
  const auto size = static_cast<int64_t>(items.size());
  std::vector<int64_t> rows(size * kLevels), at(size);
  crs::trie_rows_cpu(trie.view, items.data(), size, rows.data(), threads);
  Trie smaller;
  crs::TrieRemoval removal(trie.view, items.data(), size, threads);
  removal.plan();
  write(removal, smaller);
  crs::TrieInsertion insertion(smaller.view, rows.data(), size, kLevels, threads);
  insertion.plan(at.data());
  write(insertion, changed);
}

// All kernels in turn; a number that stands for all their results.
uint64_t run(const Inputs& in, int threads) {
  uint64_t sum = 14695981039346656037u;
  Trie trie;
  build(in, threads, trie);
  digest(sum, trie.codes), digest(sum, trie.bits), digest(sum, trie.rank), digest(sum, trie.order);
  Trie changed;
  change(trie, threads, changed);
  if (changed.codes != trie.codes || changed.bits != trie.bits || changed.rank != trie.rank)
    throw std::logic_error("what was removed and inserted must give the same trie");

  const crs::TokenView tokens{in.column.data(), kCodes,
                              kCodes,           3,
                              in.column.data(), static_cast<int64_t>(in.column.size())};
  std::vector<float> best(kBatch * kWanted);
  std::vector<int64_t> nodes(kBatch * kWanted), parents(kBatch * kWanted), codes(kBatch * kWanted);
  crs::trie_step_cpu({trie.view,
                      {nullptr, nullptr, 0},
                      tokens,
                      crs::Normalize::kVocab,
                      1.0f,
                      in.logits.data(),
                      kBatch,
                      kBeams,
                      kVocab,
                      kVocab,
                      crs::DType::kFloat32,
                      in.scores.data(),
                      in.nodes.data(),
                      nullptr,
                      kWanted,
                      best.data(),
                      nodes.data(),
                      parents.data(),
                      codes.data(),
                      threads});
  digest(sum, best), digest(sum, nodes), digest(sum, parents), digest(sum, codes);

  std::vector<float> masked(in.logits.size());
  crs::trie_mask_cpu({trie.view,
                      {nullptr, nullptr, 0},
                      tokens,
                      kBatch * kBeams,
                      nullptr,
                      in.logits.data(),
                      masked.data(),
                      in.nodes.data(),
                      kBatch * kBeams,
                      kVocab,
                      kVocab,
                      kVocab,
                      crs::DType::kFloat32,
                      threads});
  digest(sum, masked);

  const auto items = static_cast<int64_t>(trie.order.size());
  std::vector<int64_t> rows(items * kLevels), walked(items);
  crs::trie_rows_cpu(trie.view, nullptr, items, rows.data(), threads);
  crs::trie_walk_cpu(trie.view, rows.data(), items, kLevels, walked.data(), threads);
  digest(sum, rows), digest(sum, walked);

  std::vector<int64_t> chosen(2000 * kLevels), counts(kLevels * kCodes);
  std::vector<float> residual(2000 * 8);
  std::vector<double> sums(kLevels * kCodes * 8);
  crs::residual_lookup_cpu({in.x.data(), crs::DType::kFloat32, 2000, 8, 8, in.books.data(), kLevels,
                            kCodes, true, threads, chosen.data(), residual.data(), counts.data(),
                            sums.data()});
  digest(sum, chosen), digest(sum, residual), digest(sum, counts), digest(sum, sums);
  return sum;
}

int run_threads() {
  const Inputs in(200000);
  const uint64_t expected = run(in, 1);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 3; ++round)
        if (run(in, 2 + caller) != expected) ++wrong;
    });
  for (std::thread& caller : callers) caller.join();
  std::printf("threads: %d of 12 results differ\n", wrong.load());
  return wrong != 0;
}

int run_memory() {
  const Inputs in(70000);
  const uint64_t expected = run(in, 3);  // the pool has its threads now
  int64_t failed = 0;
  for (int64_t n = 0;; ++n) {
    bool threw = false;
    uint64_t sum = 0;
    allocations_left = n;
    try {
      sum = run(in, 3);
    } catch (const std::bad_alloc&) {
      threw = true;
    }
    const bool was_refused = allocations_left.exchange(std::numeric_limits<int64_t>::max()) < 0;
    if (threw != was_refused || (!threw && sum != expected)) {
      std::printf("memory: allocation %ld: threw %d, refused %d\n", static_cast<long>(n), threw,
                  was_refused);
      return 1;
    }
    if (!threw) break;
    ++failed;
  }
  if (run(in, 3) != expected) return 1;
  std::printf("memory: each of %ld allocations failed once, an exception each time\n",
              static_cast<long>(failed));
  return failed < 20;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  if (mode == "threads") return run_threads();
  if (mode == "memory") return run_memory();
  std::fprintf(stderr, "driver: the argument must be threads or memory (got \"%s\")\n",
               mode.c_str());
  return 2;
}
