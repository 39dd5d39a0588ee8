// The look-up of item ids for Python.
#include "bindings.h"
#include "text_table.h"

namespace py = pybind11;
using py::arg;

namespace {

int64_t text_table(Address text, Address offsets, int64_t count, Address slots, int64_t num_slots) {
  py::gil_scoped_release release;
  return crs::text_table({as<const uint8_t>(text), as<const int64_t>(offsets), count},
                         as<uint64_t>(slots), num_slots);
}

void text_find(Address text, Address offsets, int64_t count, Address slots, int64_t num_slots,
               Address wanted, Address wanted_offsets, int64_t num_wanted, Address positions) {
  py::gil_scoped_release release;
  crs::text_find({as<const uint8_t>(text), as<const int64_t>(offsets), count},
                 as<const uint64_t>(slots), num_slots,
                 {as<const uint8_t>(wanted), as<const int64_t>(wanted_offsets), num_wanted},
                 as<int64_t>(positions));
}

}  // namespace

void bind_text_table(py::module_& m) {
  m.def("text_table", &text_table, py::kw_only(), arg("text"), arg("offsets"), arg("count"),
        arg("slots"), arg("num_slots"));
  m.def("text_find", &text_find, py::kw_only(), arg("text"), arg("offsets"), arg("count"),
        arg("slots"), arg("num_slots"), arg("wanted"), arg("wanted_offsets"), arg("num_wanted"),
        arg("positions"));
}
