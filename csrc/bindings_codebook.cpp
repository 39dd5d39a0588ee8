// The quantizers' ops for Python: codebook lookup, collisions.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "codebook.h"
#include "collisions.h"

namespace py = pybind11;

void bind_codebook(py::module_& m) {
  using Address = uintptr_t;
  m.def("residual_lookup", [](Address x, int dtype, int64_t rows, int64_t dim, int64_t row_stride,
                              Address books, int64_t levels, int64_t codes, bool exact, int threads,
                              Address out, Address residual, Address counts, Address sums) {
    py::gil_scoped_release release;
    const crs::LookupResult result = crs::residual_lookup_cpu(
        {reinterpret_cast<const void*>(x), static_cast<crs::DType>(dtype), rows, dim, row_stride,
         reinterpret_cast<const float*>(books), levels, codes, exact, threads,
         reinterpret_cast<int64_t*>(out), reinterpret_cast<float*>(residual),
         reinterpret_cast<int64_t*>(counts), reinterpret_cast<double*>(sums)});
    return std::pair(result.finite, result.rechecked);
  });
  m.def("resolve_collisions", [](Address x, Address books, int64_t items, int64_t levels,
                                 int64_t codes, int64_t dim, Address sids, Address occupied,
                                 int64_t num_occupied, Address members, Address ends,
                                 int64_t groups) {
    py::gil_scoped_release release;
    return crs::resolve_collisions(
        {reinterpret_cast<const double*>(x), reinterpret_cast<const double*>(books), items, levels,
         codes, dim, reinterpret_cast<int64_t*>(sids), reinterpret_cast<const int64_t*>(occupied),
         num_occupied, reinterpret_cast<const int64_t*>(members),
         reinterpret_cast<const int64_t*>(ends), groups});
  });
}
