// Sorts SIDs and lays the trie out, on all threads.
#include "trie_build.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "threads.h"
#include "trie.h"

namespace crs {
namespace {

constexpr int64_t kChunk = 1 << 16;  // items; a multiple of 64, so that chunks share no word
constexpr int kBucketBits = 11;
// Passes over the items, for `progress`: check, pack, sort, compare, count, fill.
constexpr int64_t kPasses = 6;

int bit_width(uint64_t value) { return value == 0 ? 0 : 64 - __builtin_clzll(value); }

std::string describe(int64_t row, const std::string& problem) {
  return "trie_build: sids[" + std::to_string(row) + "] " + problem;
}

}  // namespace

TrieBuilder::TrieBuilder(const int64_t* sids, int64_t num_items, int64_t levels, int64_t num_sorted,
                         int threads)
    : sids_(sids),
      num_items_(num_items),
      levels_(levels),
      num_sorted_(num_sorted),
      threads_(threads) {
  num_chunks_ = (num_items + kChunk - 1) / kChunk;
}

double TrieBuilder::progress() const {
  return num_items_ == 0 ? 1.0 : static_cast<double>(done_) / (kPasses * num_items_);
}

int64_t TrieBuilder::chunk_begin(int64_t chunk) const {
  return std::min(chunk * kChunk, num_items_);
}

int64_t TrieBuilder::length(int64_t r) const {
  if (!ragged_) return levels_;
  const int64_t* end = row(r) + levels_;
  return std::find(row(r), end, int64_t{kEnd}) - row(r);
}

void TrieBuilder::sort() {
  check();
  pack();
  if (num_sorted_ < num_items_) {
    std::vector<Entry> added(entries_.begin() + num_sorted_, entries_.end());
    sort_entries(added);
    if (num_sorted_ == 0) {
      entries_.swap(added);
    } else {
      std::vector<Entry> merged(num_items_);
      std::merge(entries_.begin(), entries_.begin() + num_sorted_, added.begin(), added.end(),
                 merged.begin(), [this](const Entry& a, const Entry& b) { return less(a, b); });
      entries_.swap(merged);
    }
  }
  done_ = 3 * num_items_;
  compare_neighbours();
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
  parallel_for(threads_, num_chunks_, [&](int64_t c, int) {
    int64_t* highest = top.data() + c * levels_;
    for (int64_t i = chunk_begin(c); i < chunk_begin(c + 1) && bad[c] < 0; ++i) {
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
    done_ += chunk_begin(c + 1) - chunk_begin(c);
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
void TrieBuilder::pack() {
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
  int left = used;
  for (int64_t l = 0; l < packed_levels_; ++l) shift_[l] = left -= width[l];
  entries_.resize(num_items_);
  parallel_for(threads_, num_chunks_, [&](int64_t c, int) {
    for (int64_t i = chunk_begin(c); i < chunk_begin(c + 1); ++i) {
      uint64_t key = 0;
      for (int64_t l = 0; l < packed_levels_; ++l)
        key |= static_cast<uint64_t>(row(i)[l] + 1) << shift_[l];
      entries_[i] = {key, static_cast<uint32_t>(i)};
    }
  });
  done_ = 2 * num_items_;
}

// By key, then by the codes that did not fit, then by row: a stable sort.
bool TrieBuilder::less(const Entry& a, const Entry& b) const {
  if (a.key != b.key) return a.key < b.key;
  const int64_t *left = row(a.row), *right = row(b.row);
  for (int64_t l = packed_levels_; l < levels_; ++l)
    if (left[l] != right[l]) return left[l] < right[l];
  return a.row < b.row;
}

// One pass deals the entries out by their highest bits, then each bucket fits a cache.
void TrieBuilder::sort_entries(std::vector<Entry>& entries) {
  const int64_t size = static_cast<int64_t>(entries.size());
  uint64_t highest = 0;
  for (const Entry& e : entries) highest = std::max(highest, e.key);
  const int shift = std::max(0, bit_width(highest) - kBucketBits);
  constexpr int64_t kBuckets = 1 << kBucketBits;
  const int64_t chunks = (size + kChunk - 1) / kChunk;
  std::vector<int64_t> at(chunks * kBuckets, 0);
  parallel_for(threads_, chunks, [&](int64_t c, int) {
    for (int64_t i = c * kChunk; i < std::min(size, (c + 1) * kChunk); ++i)
      ++at[c * kBuckets + (entries[i].key >> shift)];
  });
  std::vector<int64_t> bounds(kBuckets + 1, 0);
  int64_t total = 0;
  for (int64_t b = 0; b < kBuckets; ++b) {
    bounds[b] = total;
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t count = at[c * kBuckets + b];
      at[c * kBuckets + b] = total;
      total += count;
    }
  }
  bounds[kBuckets] = total;
  std::vector<Entry> dealt(size);
  parallel_for(threads_, chunks, [&](int64_t c, int) {
    for (int64_t i = c * kChunk; i < std::min(size, (c + 1) * kChunk); ++i)
      dealt[at[c * kBuckets + (entries[i].key >> shift)]++] = entries[i];
  });
  parallel_for(threads_, kBuckets, [&](int64_t b, int) {
    std::sort(dealt.begin() + bounds[b], dealt.begin() + bounds[b + 1],
              [this](const Entry& x, const Entry& y) { return less(x, y); });
    done_ += bounds[b + 1] - bounds[b];
  });
  entries.swap(dealt);
}

int64_t TrieBuilder::common_levels(const Entry& a, const Entry& b) const {
  const uint64_t differ = a.key ^ b.key;
  int64_t l = 0;
  if (differ != 0) {
    const int highest = bit_width(differ) - 1;
    while (shift_[l] > highest) ++l;
    return l;
  }
  for (l = packed_levels_; l < levels_ && row(a.row)[l] == row(b.row)[l];) ++l;
  return l;
}

void TrieBuilder::compare_neighbours() {
  common_.resize(num_items_);
  if (num_items_ > 0) common_[0] = 0;
  std::atomic<bool> ordered{true};
  parallel_for(threads_, num_chunks_, [&](int64_t c, int) {
    bool here = true;
    for (int64_t i = std::max<int64_t>(1, chunk_begin(c)); i < chunk_begin(c + 1); ++i) {
      common_[i] = static_cast<uint8_t>(common_levels(entries_[i - 1], entries_[i]));
      here = here && less(entries_[i - 1], entries_[i]);
    }
    if (!here) ordered = false;
  });
  if (!ordered)
    throw std::invalid_argument(
        "trie_build: the first num_sorted = " + std::to_string(num_sorted_) +
        " rows must be in order (got others)");
  done_ = 4 * num_items_;
}

void TrieBuilder::count_nodes() {
  first_node_.assign(num_chunks_ * levels_, 0);
  parallel_for(threads_, num_chunks_, [&](int64_t c, int) {
    int64_t* count = first_node_.data() + c * levels_;
    for (int64_t i = chunk_begin(c); i < chunk_begin(c + 1); ++i) {
      const int64_t end = length(entries_[i].row);
      for (int64_t l = common_[i]; l < end; ++l) ++count[l];
    }
    done_ += chunk_begin(c + 1) - chunk_begin(c);
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
void TrieBuilder::fill_chunk(const TrieArrays& out, int32_t* order, int64_t chunk) {
  std::vector<int64_t> next(first_node_.begin() + chunk * levels_,
                            first_node_.begin() + (chunk + 1) * levels_);
  std::vector<uint64_t> word(levels_);
  const int64_t stop = chunk_begin(chunk + 1), stride = sizes_.words();
  for (int64_t base = chunk_begin(chunk); base < stop; base += 64) {
    for (int64_t l = 0; l < levels_; ++l) {
      word[l] = 0;
      out.rank[l * stride + base / 64] = static_cast<int32_t>(next[l]);
    }
    for (int64_t i = base; i < std::min(base + 64, stop); ++i) {
      constexpr int64_t kAhead = 16;
      if (i + kAhead < num_items_) __builtin_prefetch(row(entries_[i + kAhead].row));
      const int64_t r = entries_[i].row, end = length(r);
      const int64_t* codes = row(r);
      order[i] = static_cast<int32_t>(r);
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

void TrieBuilder::fill(const TrieArrays& out, int32_t* order) {
  sizes_.write(out.level);
  parallel_for(threads_, num_chunks_, [&](int64_t c, int) {
    if (sizes_.code_bytes == 1)
      fill_chunk<uint8_t>(out, order, c);
    else if (sizes_.code_bytes == 2)
      fill_chunk<uint16_t>(out, order, c);
    else
      fill_chunk<int32_t>(out, order, c);
    done_ += chunk_begin(c + 1) - chunk_begin(c);
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
