// The numbers that Python and C++ must agree on, and what this build runs with.
#include <pybind11/stl.h>

#include "bindings.h"
#include "dtype.h"
#include "isa.h"
#include "trie_ops.h"

namespace py = pybind11;
using py::arg;

void bind_constants(py::module_& m) {
  using crs::DType, crs::Normalize;
  py::enum_<DType>(m, "DType")
      .value("float32", DType::kFloat32)
      .value("bfloat16", DType::kBFloat16)
      .value("float16", DType::kFloat16);
  py::enum_<Normalize>(m, "Normalize")
      .value("vocab", Normalize::kVocab)
      .value("level", Normalize::kLevel)
      .value("legal", Normalize::kLegal);
  m.attr("isas") = crs::isas();
  m.attr("isa") = crs::isas().back();
  m.def(
      "use_isa",
      [module = py::handle(m)](const std::string& name) {
        crs::use_isa(name);
        module.attr("isa") = name;
      },
      arg("name"));
}
