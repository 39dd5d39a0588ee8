// pybind11 bindings. Addresses and sizes only: the module knows nothing of torch, so one build
// serves every torch version. What takes more than three of them takes them by name.
#pragma once

#include <pybind11/pybind11.h>

using Address = uintptr_t;

template <typename T>
T* as(Address address) {
  return reinterpret_cast<T*>(address);
}

// First: the others' arguments are of its types.
void bind_constants(pybind11::module_& m);
void bind_trie(pybind11::module_& m);
void bind_codebook(pybind11::module_& m);
void bind_item_ids(pybind11::module_& m);
