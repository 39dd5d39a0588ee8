// Sorts SIDs and lays the trie out, on all threads.
#include "trie_build.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "threads.h"
#include "trie.h"

namespace crs {
namespace {

constexpr int64_t kChunk = 1 << 16;  // items; a multiple of 64, so that chunks share no word
constexpr int kBucketBits = 11;
constexpr int64_t kBuckets = 1 << kBucketBits;
constexpr int64_t kAhead = 16;  // items whose rows are fetched before they are needed
// Passes over the items, for `progress`: check, count keys, deal, sort, count nodes, fill.
constexpr int64_t kPasses = 6;

int bit_width(uint64_t value) { return value == 0 ? 0 : 64 - __builtin_clzll(value); }

std::string describe(int64_t row, const std::string& problem) {
  return "trie_build: sids[" + std::to_string(row) + "] " + problem;
}

}  // namespace

TrieBuilder::TrieBuilder(const int64_t* sids, int64_t num_items, int64_t levels, int64_t num_sorted,
                         int threads, std::function<void()> poll)
    : sids_(sids),
      num_items_(num_items),
      levels_(levels),
      num_sorted_(num_sorted),
      threads_(threads),
      poll_(std::move(poll)),
      num_chunks_((num_items + kChunk - 1) / kChunk) {}

double TrieBuilder::progress() const {
  return num_items_ == 0 ? 1.0 : static_cast<double>(done_) / (kPasses * num_items_);
}

void TrieBuilder::finished(int64_t items, int worker) {
  done_ += items;
  if (worker == 0) poll_();
}

template <typename Body>
void TrieBuilder::for_each_chunk(const Body& body) {
  parallel_for(threads_, num_chunks_, [&](int64_t c, int worker) {
    const int64_t begin = c * kChunk, end = std::min(begin + kChunk, num_items_);
    body(c, begin, end);
    finished(end - begin, worker);
  });
}

int64_t TrieBuilder::length(int64_t r) const {
  if (!ragged_) return levels_;
  const int64_t* end = row(r) + levels_;
  return std::find(row(r), end, int64_t{kEnd}) - row(r);
}

void TrieBuilder::sort(int32_t* order) {
  order_ = order;
  check();
  plan_keys();
  if (num_sorted_ > 0 && !in_order())
    throw std::invalid_argument(
        "trie_build: the first num_sorted = " + std::to_string(num_sorted_) +
        " rows must be in order (got others)");
  common_.resize(num_items_);
  if (num_sorted_ == num_items_)
    number_rows();
  else
    sort_rows();
  count_nodes();
}

void TrieBuilder::check() {
  if (num_items_ >= Node::kLimit)
    throw std::invalid_argument("trie_build: sids must have fewer than 2^28 rows (got " +
                                std::to_string(num_items_) + ")");
  if (levels_ > 127)
    throw std::invalid_argument("trie_build: sids must have at most 127 levels (got " +
                                std::to_string(levels_) + ")");
  std::vector<int64_t> top(num_chunks_ * levels_, kEnd), bad(num_chunks_, -1);
  std::vector<char> ragged(num_chunks_, 0);
  for_each_chunk([&](int64_t c, int64_t begin, int64_t end) {
    int64_t* highest = top.data() + c * levels_;
    for (int64_t i = begin; i < end && bad[c] < 0; ++i) {
      const int64_t* codes = row(i);
      bool wrong = codes[0] == kEnd;
      int64_t before = 0;
      for (int64_t l = 0; l < levels_; ++l) {
        const int64_t code = codes[l];
        wrong |= code < kEnd || code > INT32_MAX || (before == kEnd && code != kEnd);
        highest[l] = std::max(highest[l], code);
        before = code;
      }
      ragged[c] |= before == kEnd;
      if (wrong) bad[c] = i;
    }
  });
  for (int64_t i : bad) {
    if (i < 0) continue;
    const int64_t* codes = row(i);
    if (codes[0] == kEnd)
      throw std::invalid_argument(describe(i, "must hold at least one code (got only padding)"));
    for (int64_t l = 0; l < levels_; ++l)
      if (codes[l] < kEnd || codes[l] > INT32_MAX)
        throw std::invalid_argument(describe(
            i, "must hold codes in [0, 2^31 - 1], -1 pads (got " + std::to_string(codes[l]) + ")"));
    throw std::invalid_argument(describe(i, "must have no code after padding (got one)"));
  }
  top_.assign(levels_, kEnd);
  for (int64_t c = 0; c < num_chunks_; ++c) {
    ragged_ |= ragged[c] != 0;
    for (int64_t l = 0; l < levels_; ++l) top_[l] = std::max(top_[l], top[c * levels_ + l]);
  }
  const int64_t highest = *std::max_element(top_.begin(), top_.end());
  sizes_.code_bytes = code_bytes_for(highest);
}

// A key holds code + 1, so that padding sorts first.
void TrieBuilder::plan_keys() {
  std::vector<int> width;
  int used = 0;
  for (int64_t l = 0; l < levels_; ++l) {
    const int bits = bit_width(static_cast<uint64_t>(top_[l] + 1));
    if (used + bits > 64) break;
    used += bits;
    width.push_back(bits);
  }
  packed_levels_ = static_cast<int64_t>(width.size());
  shift_.resize(packed_levels_);
  bucket_shift_ = std::max(0, used - kBucketBits);
  for (int64_t l = 0; l < packed_levels_; ++l) shift_[l] = used -= width[l];
}

uint64_t TrieBuilder::key(int64_t r) const {
  uint64_t key = 0;
  for (int64_t l = 0; l < packed_levels_; ++l)
    key |= static_cast<uint64_t>(row(r)[l] + 1) << shift_[l];
  return key;
}

bool TrieBuilder::in_order() {
  std::atomic<bool> ordered{true};
  parallel_for(threads_, num_chunks_, [&](int64_t c, int) {
    const int64_t end = std::min((c + 1) * kChunk, num_sorted_);
    for (int64_t i = std::max<int64_t>(1, c * kChunk); i < end; ++i)
      if (std::lexicographical_compare(row(i), row(i + 1), row(i - 1), row(i))) ordered = false;
  });
  return ordered;
}

// By key, then by the codes that did not fit, then by row: a stable sort.
bool TrieBuilder::less(const Entry& a, const Entry& b) const {
  if (a.key != b.key) return a.key < b.key;
  const int64_t *left = row(a.row), *right = row(b.row);
  for (int64_t l = packed_levels_; l < levels_; ++l)
    if (left[l] != right[l]) return left[l] < right[l];
  return a.row < b.row;
}

// Deals the rows out by the highest bits of their keys, in order, so that a bucket's keys fit a
// cache.
void TrieBuilder::deal() {
  std::vector<int64_t> at(num_chunks_ * kBuckets, 0);
  for_each_chunk([&](int64_t c, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++at[c * kBuckets + (key(i) >> bucket_shift_)];
  });
  bounds_.assign(kBuckets + 1, 0);
  int64_t total = 0;
  for (int64_t b = 0; b < kBuckets; ++b) {
    bounds_[b] = total;
    for (int64_t c = 0; c < num_chunks_; ++c) {
      const int64_t count = at[c * kBuckets + b];
      at[c * kBuckets + b] = total;
      total += count;
    }
  }
  bounds_[kBuckets] = total;
  for_each_chunk([&](int64_t c, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      order_[at[c * kBuckets + (key(i) >> bucket_shift_)]++] = static_cast<int32_t>(i);
  });
}

void TrieBuilder::sort_rows() {
  deal();
  parallel_for(threads_, kBuckets, [&](int64_t b, int worker) {
    sort_bucket(bounds_[b], bounds_[b + 1]);
    finished(bounds_[b + 1] - bounds_[b], worker);
  });
  for (int64_t b = 0; b < kBuckets; ++b)
    if (bounds_[b] < bounds_[b + 1]) compare(bounds_[b]);
}

void TrieBuilder::sort_bucket(int64_t begin, int64_t end) {
  std::vector<Entry> entries(end - begin);
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) __builtin_prefetch(row(order_[i + kAhead]));
    entries[i - begin] = {key(order_[i]), static_cast<uint32_t>(order_[i])};
  }
  std::sort(entries.begin(), entries.end(),
            [this](const Entry& x, const Entry& y) { return less(x, y); });
  for (int64_t i = begin; i < end; ++i) {
    const Entry& entry = entries[i - begin];
    order_[i] = static_cast<int32_t>(entry.row);
    if (i > begin) common_[i] = common_levels(entries[i - begin - 1], entry);
  }
}

uint8_t TrieBuilder::common_levels(const Entry& a, const Entry& b) const {
  const uint64_t differ = a.key ^ b.key;
  int64_t l = 0;
  if (differ != 0) {
    const int highest = bit_width(differ) - 1;
    while (shift_[l] > highest) ++l;
    return static_cast<uint8_t>(l);
  }
  for (l = packed_levels_; l < levels_ && row(a.row)[l] == row(b.row)[l];) ++l;
  return static_cast<uint8_t>(l);
}

void TrieBuilder::compare(int64_t i) {
  int64_t l = 0;
  if (i > 0)
    while (l < levels_ && row(order_[i - 1])[l] == row(order_[i])[l]) ++l;
  common_[i] = static_cast<uint8_t>(l);
}

// The order of rows that are sorted already.
void TrieBuilder::number_rows() {
  done_ += 2 * num_items_;
  std::iota(order_, order_ + num_items_, 0);
  for_each_chunk([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) compare(i);
  });
}

void TrieBuilder::count_nodes() {
  first_node_.assign(num_chunks_ * levels_, 0);
  for_each_chunk([&](int64_t c, int64_t begin, int64_t end) {
    int64_t* count = first_node_.data() + c * levels_;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t last = length(order_[i]);
      for (int64_t l = common_[i]; l < last; ++l) ++count[l];
    }
  });
  sizes_.num_items = num_items_;
  sizes_.nodes.assign(levels_, 0);
  for (int64_t c = 0; c < num_chunks_; ++c)
    for (int64_t l = 0; l < levels_; ++l) {
      const int64_t count = first_node_[c * levels_ + l];
      first_node_[c * levels_ + l] = sizes_.nodes[l];
      sizes_.nodes[l] += count;
    }
}

template <typename Code>
void TrieBuilder::fill_chunk(const TrieArrays& out, int64_t chunk) {
  std::vector<int64_t> next(first_node_.begin() + chunk * levels_,
                            first_node_.begin() + (chunk + 1) * levels_);
  std::vector<uint64_t> word(levels_);
  const int64_t stride = sizes_.words(), stop = std::min((chunk + 1) * kChunk, num_items_);
  for (int64_t base = chunk * kChunk; base < stop; base += 64) {
    for (int64_t l = 0; l < levels_; ++l) {
      word[l] = 0;
      out.rank[l * stride + base / 64] = static_cast<int32_t>(next[l]);
    }
    for (int64_t i = base; i < std::min(base + 64, stop); ++i) {
      if (i + kAhead < num_items_) __builtin_prefetch(row(order_[i + kAhead]));
      const int64_t r = order_[i], end = length(r);
      const int64_t* codes = row(r);
      for (int64_t l = common_[i]; l < end; ++l) {
        const int64_t k = next[l]++, table = out.level[2 * l + 1];
        static_cast<Code*>(out.codes)[out.level[2 * l] + k] = static_cast<Code>(codes[l]);
        word[l] |= uint64_t{1} << (i & 63);
        if (table >= 0) out.starts[table + k] = static_cast<int32_t>(i);
      }
    }
    for (int64_t l = 0; l < levels_; ++l) out.bits[l * stride + base / 64] = word[l];
  }
}

void TrieBuilder::fill(const TrieArrays& out) {
  sizes_.write(out.level);
  for_each_chunk([&](int64_t c, int64_t, int64_t) {
    if (sizes_.code_bytes == 1)
      fill_chunk<uint8_t>(out, c);
    else if (sizes_.code_bytes == 2)
      fill_chunk<uint16_t>(out, c);
    else
      fill_chunk<int32_t>(out, c);
  });
  // Where the items fill the last word, the position after them has one of its own.
  if (num_items_ % 64 == 0)
    for (int64_t l = 0; l < levels_; ++l) {
      const int64_t last = (l + 1) * sizes_.words() - 1;
      out.bits[last] = 0;
      out.rank[last] = static_cast<int32_t>(sizes_.nodes[l]);
    }
}

}  // namespace crs
