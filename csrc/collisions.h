// A SID of its own for each item; see crs_fast/ops/collisions for the procedure.
#pragma once

#include <cstdint>

namespace crs {

struct CollisionArgs {
  const double* x;      // [items, dim]
  const double* books;  // [levels, codes, dim]
  int64_t items, levels, codes, dim;
  int64_t* sids;            // [items, levels]: as encoded, and on return all distinct
  const int64_t* occupied;  // [num_occupied, levels], all distinct: held by others, never given
  int64_t num_occupied;
  const int64_t* members;  // rows that must be given a SID afresh, group by group
  const int64_t* ends;     // [groups]: where each group, rows of one SID, ends among the members
  int64_t groups;
};

// False where a row found no free SID: more rows than SIDs.
bool resolve_collisions(const CollisionArgs& args);

}  // namespace crs
