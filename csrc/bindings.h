// pybind11 bindings. Pointers and sizes only: the module knows nothing of torch, so one build
// serves every torch version.
#pragma once

#include <pybind11/pybind11.h>

void bind_trie(pybind11::module_& m);
void bind_codebook(pybind11::module_& m);
