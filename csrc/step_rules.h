// What the CPU and the CUDA beam step must agree on: which beams are dead, what may follow a beam,
// how a candidate is scored, in which order ties break, and what is written for a beam.
#pragma once

#include <cmath>
#include <cstdint>

#include "trie_ops.h"

namespace crs {

constexpr float kMinusInf = -INFINITY;
// In place of a child: the beam ends its SID here or, where it has ended, waits.
constexpr int64_t kEndChild = -1;

// What may become a beam: a beam of the step before, and the child it goes on to.
struct Candidate {
  float score;
  int32_t parent;  // beam of the request
  int64_t child;   // index among the nodes of the next depth, or kEndChild
};

// Higher scores first; ties go to the lower parent, then to the lower code. Children stand in the
// order of their codes, and the end before them all.
CRS_HD bool better(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  return a.parent != b.parent ? a.parent < b.parent : a.child < b.child;
}

// -inf (a suppressed token, a dead beam) and NaN (a row that is no distribution) never become a
// beam.
CRS_HD bool can_be_a_beam(float score) { return score > kMinusInf; }

CRS_HD bool is_dead(const StepArgs& args, int64_t row) {
  return !args.trie.holds(args.nodes[row]) || args.scores[row] == kMinusInf;
}

CRS_HD Children children_of(const StepArgs& args, int64_t row) {
  return {args.trie, args.trie.node(args.nodes[row])};
}

// A beam may end its SID where an allowed item has just that SID. That costs nothing: its score
// stays as it is.
CRS_HD bool may_end(const StepArgs& args, const Children& children, int64_t request) {
  return children.may_end() && args.filter.any(request, children.end());
}

// Logits column of the child, -1 where it has none or where the filter allows nothing below it.
CRS_HD int64_t legal_column(const StepArgs& args, const Children& children, int64_t request,
                            int64_t child) {
  if (args.filter.words && !args.filter.any(request, children.child(child))) return -1;
  return args.tokens.at(children.parent.depth, children.code(child));
}

// The level whose codes Normalize::kLevel sums over. A whole SID has no next level; nothing is
// scored there.
CRS_HD int64_t scored_level(const StepArgs& args, const Node& node) {
  return node.depth < args.trie.levels ? node.depth : args.trie.levels - 1;
}

// The score of a beam that goes on with a token; `normalizer` is the row's log-sum-exp.
CRS_HD float score_of(const StepArgs& args, float parent_score, float logit, float normalizer) {
  return parent_score + (logit * args.inverse_temperature - normalizer);
}

// Beam `at` of the outputs.
CRS_HD void write_beam(const StepArgs& args, int64_t at, int64_t request, const Candidate& chosen) {
  const Children children = children_of(args, request * args.beams + chosen.parent);
  const bool ends = chosen.child == kEndChild;
  args.out_scores[at] = chosen.score;
  args.out_nodes[at] = (ends ? children.end() : children.child(chosen.child)).pack();
  args.out_parents[at] = chosen.parent;
  args.out_codes[at] = ends ? kEnd : children.code(chosen.child);
}

// Where there are fewer candidates than beams.
CRS_HD void write_dead_beam(const StepArgs& args, int64_t at) {
  args.out_scores[at] = kMinusInf;
  args.out_nodes[at] = kNoNode;
  args.out_parents[at] = 0;
  args.out_codes[at] = kEnd;
}

}  // namespace crs
