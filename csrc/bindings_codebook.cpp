// The quantizers' ops for Python: codebook lookup, collisions.
#include "bindings.h"
#include "codebook.h"
#include "collisions.h"

namespace py = pybind11;
using py::arg;

namespace {

py::tuple residual_lookup(Address x, crs::DType dtype, int64_t rows, int64_t dim,
                          int64_t row_stride, Address books, int64_t levels, int64_t codes,
                          bool exact, int threads, Address out, Address residual, Address counts,
                          Address sums) {
  crs::LookupResult result;
  {
    py::gil_scoped_release release;
    result = crs::residual_lookup_cpu({as<const void>(x), dtype, rows, dim, row_stride,
                                       as<const float>(books), levels, codes, exact, threads,
                                       as<int64_t>(out), as<float>(residual), as<int64_t>(counts),
                                       as<double>(sums)});
  }
  return py::make_tuple(result.finite, result.rechecked);
}

bool resolve_collisions(Address x, Address books, int64_t items, int64_t levels, int64_t codes,
                        int64_t dim, Address sids, Address occupied, int64_t num_occupied,
                        Address members, Address ends, int64_t groups) {
  py::gil_scoped_release release;
  return crs::resolve_collisions({as<const double>(x), as<const double>(books), items, levels,
                                  codes, dim, as<int64_t>(sids), as<const int64_t>(occupied),
                                  num_occupied, as<const int64_t>(members), as<const int64_t>(ends),
                                  groups});
}

}  // namespace

void bind_codebook(py::module_& m) {
  m.def("residual_lookup", &residual_lookup, py::kw_only(), arg("x"), arg("dtype"), arg("rows"),
        arg("dim"), arg("row_stride"), arg("books"), arg("levels"), arg("codes"), arg("exact"),
        arg("threads"), arg("out"), arg("residual"), arg("counts"), arg("sums"));
  m.def("resolve_collisions", &resolve_collisions, py::kw_only(), arg("x"), arg("books"),
        arg("items"), arg("levels"), arg("codes"), arg("dim"), arg("sids"), arg("occupied"),
        arg("num_occupied"), arg("members"), arg("ends"), arg("groups"));
}
