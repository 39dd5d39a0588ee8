// The native module: its ops, and what it was built with.
#include "bindings.h"

#include <pybind11/stl.h>

#include "isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  bind_trie(m);
  bind_codebook(m);

  m.attr("isas") = crs::isas();
  m.attr("isa") = crs::isas().back();
  m.def("use_isa", [module = py::handle(m)](const std::string& name) {
    crs::use_isa(name);
    module.attr("isa") = name;
  });
  m.attr("cuda_architectures") = CRS_FAST_CUDA_ARCHITECTURES;
#if defined(_OPENMP)
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.attr("compiler") = CRS_FAST_COMPILER;
}
