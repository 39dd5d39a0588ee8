// The instruction sets that the CPU kernels are compiled for, and the one in use.
//
// CMakeLists.txt compiles a kernel's file once per instruction set, into the namespace CRS_ISA,
// with flags that no other file gets. What it shares with the rest of the module is plain data and
// functions that are always inlined. A weak symbol there (an inline function that was not inlined,
// an instance of a std template) would be merged by the linker, and a CPU without AVX-512 might
// then run the AVX-512 copy: the build fails where a kernel's object holds any.
#pragma once

#include <string>
#include <vector>

// CRS_FOR_EACH_ISA(declaration) puts a function's declaration into the namespace of each
// instruction set; CRS_IN_USE(function) is the one to call.
#if defined(__x86_64__) && !defined(CRS_ONLY_PORTABLE)
#define CRS_FOR_EACH_ISA(...) \
  namespace portable {        \
  __VA_ARGS__                 \
  }                           \
  namespace avx2 {            \
  __VA_ARGS__                 \
  }                           \
  namespace avx512 {          \
  __VA_ARGS__                 \
  }
#define CRS_IN_USE(function)                            \
  (::crs::isa_in_use() == 2   ? ::crs::avx512::function \
   : ::crs::isa_in_use() == 1 ? ::crs::avx2::function   \
                              : ::crs::portable::function)
#else
#define CRS_FOR_EACH_ISA(...) \
  namespace portable {        \
  __VA_ARGS__                 \
  }
#define CRS_IN_USE(function) ::crs::portable::function
#endif

namespace crs {

// The names of those that this machine can run, the widest last.
const std::vector<std::string>& isas();
// The place in isas() of the one in use: the last, until `use_isa` chooses another.
int isa_in_use();
void use_isa(const std::string& name);

}  // namespace crs
