// The extension module crs_fast._C; crs_fast/_C.pyi describes it.
#include "bindings.h"

PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  bind_constants(m);
  bind_trie(m);
  bind_codebook(m);
  bind_item_ids(m);

  m.attr("cuda_architectures") = CRS_FAST_CUDA_ARCHITECTURES;
  m.attr("compiler") = CRS_FAST_COMPILER;
}
