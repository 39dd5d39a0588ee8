// The ops on lists of item ids for Python.
#include "bindings.h"
#include "number_find.h"
#include "splice.h"
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
               Address wanted, Address wanted_offsets, int64_t num_wanted, Address positions,
               int threads) {
  py::gil_scoped_release release;
  crs::text_find({as<const uint8_t>(text), as<const int64_t>(offsets), count},
                 as<const uint64_t>(slots), num_slots,
                 {as<const uint8_t>(wanted), as<const int64_t>(wanted_offsets), num_wanted},
                 as<int64_t>(positions), threads);
}

void number_find(Address numbers, int64_t size, int number_bytes, Address wanted,
                 int64_t num_wanted, Address positions, int threads) {
  py::gil_scoped_release release;
  crs::number_find(as<const void>(numbers), size, number_bytes, as<const int64_t>(wanted),
                   num_wanted, as<int64_t>(positions), threads);
}

void splice(Address values, Address begin, Address end, Address added, Address bounds,
            Address shift, Address out, int64_t size, int64_t count, int64_t item_bytes,
            int threads) {
  py::gil_scoped_release release;
  crs::splice({as<const void>(values), as<const int64_t>(begin), as<const int64_t>(end),
               as<const void>(added), as<const int64_t>(bounds), as<const int64_t>(shift),
               as<void>(out), size, count, item_bytes, threads});
}

}  // namespace

void bind_item_ids(py::module_& m) {
  m.def("text_table", &text_table, py::kw_only(), arg("text"), arg("offsets"), arg("count"),
        arg("slots"), arg("num_slots"));
  m.def("text_find", &text_find, py::kw_only(), arg("text"), arg("offsets"), arg("count"),
        arg("slots"), arg("num_slots"), arg("wanted"), arg("wanted_offsets"), arg("num_wanted"),
        arg("positions"), arg("threads"));
  m.def("number_find", &number_find, py::kw_only(), arg("numbers"), arg("size"),
        arg("number_bytes"), arg("wanted"), arg("num_wanted"), arg("positions"), arg("threads"));
  m.def("splice", &splice, py::kw_only(), arg("values"), arg("begin"), arg("end"), arg("added"),
        arg("bounds"), arg("shift"), arg("out"), arg("size"), arg("count"), arg("item_bytes"),
        arg("threads"));
}
