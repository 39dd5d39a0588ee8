// Gives items that collide SIDs of their own, group by group.
#include "collisions.h"

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace crs {
namespace {

// How many SIDs are held below every prefix that holds one. A node is a prefix; the root is 0.
class Occupancy {
 public:
  Occupancy(int64_t levels, int64_t codes) : levels_(levels), codes_(codes), held_(1, 0) {
    room_.assign(levels + 1, 1);
    for (int64_t depth = levels - 1; depth >= 0; --depth)
      room_[depth] = room_[depth + 1] > std::numeric_limits<int64_t>::max() / codes
                         ? std::numeric_limits<int64_t>::max()
                         : room_[depth + 1] * codes;
  }

  void reserve(int64_t sids) { children_.reserve(static_cast<size_t>(sids) * 2); }

  void add(const int64_t* sid, int64_t change) {
    int32_t node = 0;
    held_[0] += change;
    for (int64_t l = 0; l < levels_; ++l) {
      const auto [at, fresh] =
          children_.try_emplace(key(node, sid[l]), static_cast<int32_t>(held_.size()));
      if (fresh) held_.push_back(0);
      node = at->second;
      held_[node] += change;
    }
  }

  // -1: nothing is held below.
  int32_t child(int32_t node, int64_t code) const {
    if (node < 0) return -1;
    const auto at = children_.find(key(node, code));
    return at == children_.end() ? -1 : at->second;
  }
  bool full(int32_t node, int64_t depth) const { return node >= 0 && held_[node] >= room_[depth]; }

  int32_t find(const int64_t* sid, int64_t depth) const {
    int32_t node = 0;
    for (int64_t l = 0; l < depth; ++l) node = child(node, sid[l]);
    return node;
  }

 private:
  static uint64_t key(int32_t node, int64_t code) {
    return static_cast<uint64_t>(node) << 32 | static_cast<uint64_t>(code);
  }

  int64_t levels_, codes_;
  std::vector<int64_t> room_;  // SIDs below a prefix of each length
  std::unordered_map<uint64_t, int32_t> children_;
  std::vector<int64_t> held_;
};

class Resolver {
 public:
  explicit Resolver(const CollisionArgs& args)
      : a_(args),
        tree_(args.levels, args.codes),
        columns_(args.levels * args.dim * args.codes),
        rest_(args.dim),
        distance_(args.codes) {
    // Dimension by dimension, so that the codes of a level are measured side by side.
    for (int64_t l = 0; l < a_.levels; ++l)
      for (int64_t k = 0; k < a_.codes; ++k)
        for (int64_t d = 0; d < a_.dim; ++d)
          columns_[(l * a_.dim + d) * a_.codes + k] = a_.books[(l * a_.codes + k) * a_.dim + d];
  }

  bool run() {
    // Every SID counts once, however many rows wait for it.
    std::vector<char> member(a_.items, 0);
    const int64_t count = a_.groups ? a_.ends[a_.groups - 1] : 0;
    for (int64_t i = 0; i < count; ++i) member[a_.members[i]] = 1;
    tree_.reserve(a_.items + a_.num_occupied);
    for (int64_t i = 0; i < a_.num_occupied; ++i) tree_.add(a_.occupied + i * a_.levels, 1);
    for (int64_t i = 0; i < a_.items; ++i)
      if (!member[i]) tree_.add(sid(i), 1);
    std::vector<char> waits(a_.groups, 0);
    for (int64_t g = 0; g < a_.groups; ++g) {
      const int64_t* shared = sid(a_.members[g ? a_.ends[g - 1] : 0]);
      waits[g] = !tree_.full(tree_.find(shared, a_.levels), a_.levels);
      if (waits[g]) tree_.add(shared, 1);
    }
    std::vector<int64_t> shared(a_.levels);
    for (int64_t g = 0; g < a_.groups; ++g) {
      const int64_t begin = g ? a_.ends[g - 1] : 0;
      std::copy_n(sid(a_.members[begin]), a_.levels, shared.data());
      if (waits[g]) tree_.add(shared.data(), -1);
      std::vector<std::pair<double, int64_t>> order;
      for (int64_t i = begin; i < a_.ends[g]; ++i)
        order.emplace_back(confidence(a_.members[i], shared.data()), a_.members[i]);
      std::sort(order.begin(), order.end());
      for (const auto& [_, item] : order)
        if (!place(item, shared.data())) return false;
    }
    return true;
  }

 private:
  int64_t* sid(int64_t item) const { return a_.sids + item * a_.levels; }

  void start(int64_t item, const int64_t* prefix, int64_t depth) {
    std::copy_n(a_.x + item * a_.dim, a_.dim, rest_.data());
    for (int64_t l = 0; l < depth; ++l) leave(l, prefix[l]);
  }
  void leave(int64_t level, int64_t code) {
    const double* word = a_.books + (level * a_.codes + code) * a_.dim;
    for (int64_t d = 0; d < a_.dim; ++d) rest_[d] -= word[d];
  }
  void measure(int64_t level) {
    std::fill(distance_.begin(), distance_.end(), 0.0);
    for (int64_t d = 0; d < a_.dim; ++d) {
      const double* column = columns_.data() + (level * a_.dim + d) * a_.codes;
      const double value = rest_[d];
      double* to = distance_.data();
      for (int64_t k = 0; k < a_.codes; ++k) to[k] += (value - column[k]) * (value - column[k]);
    }
  }

  // Squared distance to the nearest last-level codeword.
  double confidence(int64_t item, const int64_t* shared) {
    start(item, shared, a_.levels - 1);
    measure(a_.levels - 1);
    return *std::min_element(distance_.begin(), distance_.end());
  }

  bool place(int64_t item, const int64_t* shared) {
    int64_t depth = a_.levels - 1;
    while (tree_.full(tree_.find(shared, depth), depth))
      if (depth-- == 0) return false;
    start(item, shared, depth);
    int64_t* to = sid(item);
    std::copy_n(shared, depth, to);
    int32_t node = tree_.find(shared, depth);
    for (int64_t l = depth; l < a_.levels; ++l) {
      measure(l);
      int64_t best = -1;
      for (int64_t k = 0; k < a_.codes; ++k)
        if ((best < 0 || distance_[k] < distance_[best]) &&
            !tree_.full(tree_.child(node, k), l + 1))
          best = k;
      to[l] = best;
      node = tree_.child(node, best);
      leave(l, best);
    }
    tree_.add(to, 1);
    return true;
  }

  const CollisionArgs& a_;
  Occupancy tree_;
  std::vector<double> columns_;  // [levels, dim, codes]
  std::vector<double> rest_, distance_;
};

}  // namespace

bool resolve_collisions(const CollisionArgs& args) { return Resolver(args).run(); }

}  // namespace crs
