// The extension module crs_fast._C; crs_fast/_C.pyi describes it.
#include "bindings.h"

PYBIND11_MODULE(_C, m) {
  bind_constants(m);
  bind_trie(m);
  bind_codebook(m);
  bind_item_ids(m);

  m.attr("cuda_architectures") = CRS_FAST_CUDA_ARCHITECTURES;
  m.attr("compiler") = CRS_FAST_COMPILER;
}
