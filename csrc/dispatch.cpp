// The kernels' entry points: each calls the copy for the instruction set in use.
#include "codebook.h"
#include "isa.h"
#include "trie_ops.h"

namespace crs {

LookupResult residual_lookup_cpu(const LookupArgs& args) {
  return CRS_IN_USE(residual_lookup)(args);
}

void trie_step_cpu(const StepArgs& args) { CRS_IN_USE(trie_step)(args); }

}  // namespace crs
