// Items go into a trie and out of it by runs: bitmaps and codes are copied, only what stands at a
// changed item is looked at.
#include "trie_change.h"

#include <algorithm>

#include "threads.h"

namespace crs {
namespace {

constexpr int64_t kChunk = 256;  // changed items, of which each takes a walk along the trie

// Appends bits to a bitmap.
class BitWriter {
 public:
  explicit BitWriter(uint64_t* out) : out_(out) {}

  // The lowest `count` bits, 1 to 64; those above are 0.
  void append(uint64_t bits, int count) {
    word_ |= bits << used_;
    if (used_ + count < 64) {
      used_ += count;
      return;
    }
    *out_++ = word_;
    word_ = used_ == 0 ? 0 : bits >> (64 - used_);
    used_ += count - 64;
  }

  // The bits [from, to) of a bitmap; null: zeros.
  void run(const uint64_t* bits, int64_t from, int64_t to) {
    while (from < to) {
      const int count = static_cast<int>(std::min<int64_t>(64, to - from));
      uint64_t word = 0;
      if (bits) {
        const int shift = from & 63;
        word = bits[from >> 6] >> shift;
        if (shift + count > 64) word |= bits[(from >> 6) + 1] << (64 - shift);
        if (count < 64) word &= bits_below(count);
      }
      append(word, count);
      from += count;
    }
  }

  // Where the bits fill their last word, the position after them has one of its own.
  void finish() { *out_ = word_; }

 private:
  uint64_t* out_;
  uint64_t word_ = 0;
  int used_ = 0;
};

// What follows from the bitmap of a depth: ranks, and where its nodes begin if it keeps that.
void index(const uint64_t* bits, int64_t words, int32_t* rank, int32_t* starts) {
  int32_t count = 0;
  for (int64_t w = 0; w < words; ++w) {
    rank[w] = count;
    count += popcount(bits[w]);
    if (starts == nullptr) continue;
    for (uint64_t word = bits[w]; word != 0; word &= word - 1)
      *starts++ = static_cast<int32_t>(w * 64 + lowest_bit(word));
  }
}

template <typename Body>
void with_code_type(int bytes, const Body& body) {
  if (bytes == 1)
    body(uint8_t{});
  else if (bytes == 2)
    body(uint16_t{});
  else
    body(int32_t{});
}

int64_t num_nodes(const TrieView& trie, int64_t l) {
  return l < trie.levels ? trie.level[2 * (l + 1)] - trie.level[2 * l] : 0;
}

// Writes all arrays, a depth at a time: bits(l, out) its bitmap, codes(l, old, out) its codes.
template <typename Bits, typename Codes>
void fill_levels(const TrieView& trie, const TrieSizes& sizes, int threads, const TrieArrays& out,
                 const Bits& bits, const Codes& codes) {
  sizes.write(out.level);
  parallel_for(threads, sizes.levels(), [&](int64_t l, int) {
    const int64_t words = sizes.words(), table = out.level[2 * l + 1];
    uint64_t* bitmap = out.bits + l * words;
    bits(l, bitmap);
    index(bitmap, words, out.rank + l * words, table < 0 ? nullptr : out.starts + table);
    with_code_type(trie.code_bytes, [&](auto from) {
      using From = decltype(from);
      const From* old = static_cast<const From*>(trie.codes);
      if (l < trie.levels) old += trie.level[2 * l];
      with_code_type(sizes.code_bytes, [&](auto to) {
        using To = decltype(to);
        codes(l, old, static_cast<To*>(out.codes) + out.level[2 * l]);
      });
    });
  });
}

// The fewest bytes, at least `bytes`, that hold the codes of some depths. visit(l, any) calls
// any(first, last) for the codes that count until one says true.
template <typename Visit>
int fewest_bytes(const TrieView& trie, int bytes, const Visit& visit) {
  for (; bytes < trie.code_bytes; bytes *= 2) {
    const int64_t limit = bytes == 1 ? UINT8_MAX : INT16_MAX;  // 2^n - 1, so that an "or" tells
    bool above = false;
    with_code_type(trie.code_bytes, [&](auto zero) {
      using Code = decltype(zero);
      constexpr int64_t kBlock = 4096;
      const auto any = [&](int64_t first, int64_t last) {
        const Code* codes = static_cast<const Code*>(trie.codes);
        for (; first < last && !above; first += kBlock) {
          const int64_t end = std::min(last, first + kBlock);
          Code all = 0;
          for (int64_t i = first; i < end; ++i) all |= codes[i];
          above = all > limit;
        }
        return above;
      };
      for (int64_t l = 0; l < trie.levels && !above; ++l) visit(l, any);
    });
    if (!above) break;
  }
  return bytes;
}

}  // namespace

TrieInsertion::TrieInsertion(const TrieView& trie, const int64_t* rows, int64_t size,
                             int64_t levels, int threads)
    : trie_(trie), rows_(rows), size_(size), levels_(levels), threads_(threads), places_(size) {}

void TrieInsertion::plan(int64_t* at) {
  at_ = at;
  parallel_for(threads_, (size_ + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
    place(chunk * kChunk, std::min(size_, (chunk + 1) * kChunk), at);
  });
  sizes_.num_items = trie_.num_items() + size_;
  std::vector<int64_t> change(levels_ + 1, 0);  // of the number of new nodes, from level to level
  for (const Place& place : places_) {
    const int first = std::max(place.common, place.matched);
    if (first >= place.length) continue;
    ++change[first];
    --change[place.length];
  }
  int64_t added = 0, highest = 0;
  for (int64_t l = 0; l < levels_; ++l)
    sizes_.nodes.push_back(num_nodes(trie_, l) + (added += change[l]));
  for (int64_t i = 0; i < size_ * levels_; ++i) highest = std::max(highest, rows_[i]);
  sizes_.code_bytes = fewest_bytes(trie_, code_bytes_for(highest), [&](int64_t l, const auto& any) {
    any(trie_.level[2 * l], trie_.level[2 * (l + 1)]);
  });
}

// Where the rows [first, last) go. The path to the row before is where the next one's begins.
void TrieInsertion::place(int64_t first, int64_t last, int64_t* at) {
  std::vector<Node> path(trie_.levels + 1);
  path[0] = trie_.node(0);
  int64_t matched = 0;
  for (int64_t j = first; j < last; ++j) {
    const int64_t* codes = row(j);
    int64_t common = 0, length = levels_;
    if (j > 0)
      while (common < levels_ && codes[common] == row(j - 1)[common]) ++common;
    while (codes[length - 1] == kEnd) --length;
    if (j > first) matched = std::min(matched, common);
    for (;;) {
      const Children children(trie_, path[matched]);
      int64_t k = children.first;  // items whose SID ends here stand before the first child
      if (matched < std::min(length, trie_.levels)) {
        k = children.lower_bound(codes[matched]);
        if (k < children.last && children.code(k) == codes[matched]) {
          path[++matched] = children.child(k);
          continue;
        }
      }
      at[j] = children.begin_of(k);
      break;
    }
    int64_t taken = matched;
    while (taken > 0 && path[taken].begin == at[j]) --taken;
    places_[j] = {static_cast<uint8_t>(common), static_cast<uint8_t>(matched),
                  static_cast<uint8_t>(taken), static_cast<uint8_t>(length)};
  }
}

void TrieInsertion::fill(const TrieArrays& out) const {
  fill_levels(
      trie_, sizes_, threads_, out, [&](int64_t l, uint64_t* bits) { fill_bits(l, bits); },
      [&](int64_t l, const auto* old, auto* codes) { fill_codes(l, old, codes); });
}

void TrieInsertion::fill_bits(int64_t l, uint64_t* bits) const {
  const uint64_t* old = l < trie_.levels ? trie_.bits + l * trie_.words : nullptr;
  BitWriter out(bits);
  int64_t from = 0;
  bool taken = false;  // whether the node that began at `from` begins before it now
  const auto run = [&](int64_t to) {
    if (from == to) return;
    if (taken) out.append(0, 1);
    out.run(old, from + taken, to);
    from = to;
    taken = false;
  };
  for (int64_t j = 0; j < size_; ++j) {
    run(at_[j]);
    const Place& place = places_[j];
    const bool begins = place.common <= l && place.taken <= l && l < place.length;
    taken |= begins && l < place.matched;
    out.append(begins, 1);
  }
  run(trie_.num_items());
  out.finish();
}

template <typename From, typename To>
void TrieInsertion::fill_codes(int64_t l, const From* old, To* codes) const {
  int64_t from = 0;
  for (int64_t j = 0; j < size_; ++j) {
    const Place& place = places_[j];
    if (l < std::max(place.common, place.matched) || l >= place.length) continue;
    const int64_t to = l < trie_.levels ? trie_.before(l, at_[j]) : 0;
    codes = std::copy(old + from, old + to, codes);
    from = to;
    *codes++ = static_cast<To>(row(j)[l]);
  }
  std::copy(old + from, old + num_nodes(trie_, l), codes);
}

TrieRemoval::TrieRemoval(const TrieView& trie, const int64_t* items, int64_t size, int threads)
    : trie_(trie),
      items_(items),
      size_(size),
      threads_(threads),
      lowest_(size),
      lowest_next_(size),
      changes_(trie.levels) {}

int64_t TrieRemoval::lowest_begin(int64_t item) const {
  int64_t l = 0;
  while (l < trie_.levels && !trie_.begins(l, item)) ++l;
  return l;
}

void TrieRemoval::plan() {
  const int64_t num_items = trie_.num_items();
  parallel_for(threads_, (size_ + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
    for (int64_t j = chunk * kChunk; j < std::min(size_, (chunk + 1) * kChunk); ++j) {
      const int64_t next = items_[j] + 1;
      lowest_[j] = static_cast<uint8_t>(lowest_begin(items_[j]));
      // After the last item every node ends.
      if (ends_run(j))
        lowest_next_[j] = next == num_items ? 0 : static_cast<uint8_t>(lowest_begin(next));
    }
  });
  parallel_for(threads_, trie_.levels, [&](int64_t l, int) { plan_level(l); });
  sizes_.num_items = num_items - size_;
  for (int64_t l = 0; l < trie_.levels; ++l)
    sizes_.nodes.push_back(num_nodes(trie_, l) - static_cast<int64_t>(changes_[l].gone.size()));
  sizes_.code_bytes = fewest_bytes(trie_, 1, [&](int64_t l, const auto& any) {
    const int64_t base = trie_.level[2 * l];
    int64_t from = base;
    for (int32_t gone : changes_[l].gone) {
      if (any(from, base + gone)) return;
      from = base + gone + 1;
    }
    any(from, trie_.level[2 * (l + 1)]);
  });
}

// A node that begins at a removed item begins at the first that stays, if it holds one: if no node
// of this depth, or of one above, begins from there up to that item.
void TrieRemoval::plan_level(int64_t l) {
  Level& change = changes_[l];
  int64_t open = -1;  // the node that began last in this run of removed items, if it goes on
  const auto close = [&] {
    if (open >= 0) change.gone.push_back(static_cast<int32_t>(open));
    open = -1;
  };
  for (int64_t j = 0; j < size_; ++j) {
    if (lowest_[j] <= l) {
      close();
      if (trie_.begins(l, items_[j])) open = trie_.before(l, items_[j]);
    }
    if (!ends_run(j)) continue;
    if (lowest_next_[j] <= l)
      close();
    else if (open >= 0)
      change.begin.push_back(static_cast<int32_t>(items_[j] - j));
    open = -1;
  }
}

void TrieRemoval::fill(const TrieArrays& out) const {
  fill_levels(
      trie_, sizes_, threads_, out, [&](int64_t l, uint64_t* bits) { fill_bits(l, bits); },
      [&](int64_t l, const auto* old, auto* codes) { fill_codes(l, old, codes); });
}

void TrieRemoval::fill_bits(int64_t l, uint64_t* bits) const {
  const uint64_t* old = trie_.bits + l * trie_.words;
  BitWriter out(bits);
  int64_t from = 0;
  for (int64_t j = 0; j < size_; ++j) {
    out.run(old, from, items_[j]);
    from = items_[j] + 1;
  }
  out.run(old, from, trie_.num_items());
  out.finish();
  for (int32_t item : changes_[l].begin) bits[item >> 6] |= uint64_t{1} << (item & 63);
}

template <typename From, typename To>
void TrieRemoval::fill_codes(int64_t l, const From* old, To* codes) const {
  int64_t from = 0;
  for (int32_t gone : changes_[l].gone) {
    codes = std::copy(old + from, old + gone, codes);
    from = gone + 1;
  }
  std::copy(old + from, old + num_nodes(trie_, l), codes);
}

}  // namespace crs
