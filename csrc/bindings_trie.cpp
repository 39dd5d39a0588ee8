// The trie ops for Python.
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "bindings.h"
#include "trie_build.h"
#include "trie_change.h"
#include "trie_ops.h"

namespace py = pybind11;
using py::arg;

namespace {

// Classes of Python for views that the op's arguments are made of.
struct Trie {
  crs::TrieView view;
};
struct Filter {
  crs::FilterView view;
};
struct Tokens {
  crs::TokenView view;
};

Trie trie(Address codes, Address bits, Address rank, Address starts, Address level, int64_t levels,
          int64_t words, int code_bytes) {
  return {{as<const void>(codes), as<const uint64_t>(bits), as<const int32_t>(rank),
           as<const int32_t>(starts), as<const int64_t>(level), levels, words, code_bytes}};
}

Filter filter(Address words, Address rank, int64_t stride) {
  return {{as<const uint64_t>(words), as<const int32_t>(rank), stride}};
}

Tokens tokens(Address column, int64_t stride, int64_t width, int64_t terminator, Address denied,
              int64_t num_denied) {
  return {{as<const int64_t>(column), stride, width, terminator, as<const int64_t>(denied),
           num_denied}};
}

crs::MaskArgs mask_args(const Trie& trie, const Filter& filter, const Tokens& tokens,
                        int64_t rows_per_filter, Address filter_of_row, Address logits, Address out,
                        Address nodes, int64_t rows, int64_t vocab, int64_t row_stride,
                        int64_t out_stride, crs::DType dtype, int threads) {
  return {trie.view,
          filter.view,
          tokens.view,
          rows_per_filter,
          as<const int64_t>(filter_of_row),
          as<const void>(logits),
          as<void>(out),
          as<const int64_t>(nodes),
          rows,
          vocab,
          row_stride,
          out_stride,
          dtype,
          threads};
}

crs::StepArgs step_args(const Trie& trie, const Filter& filter, const Tokens& tokens,
                        crs::Normalize normalize, float inverse_temperature, Address logits,
                        int64_t batch, int64_t beams, int64_t vocab, int64_t row_stride,
                        crs::DType dtype, Address scores, Address nodes, Address normalizers,
                        int64_t out_beams, Address out_scores, Address out_nodes,
                        Address out_parents, Address out_codes, int threads) {
  return {trie.view,
          filter.view,
          tokens.view,
          normalize,
          inverse_temperature,
          as<const void>(logits),
          batch,
          beams,
          vocab,
          row_stride,
          dtype,
          as<const float>(scores),
          as<const int64_t>(nodes),
          as<const float>(normalizers),
          out_beams,
          as<float>(out_scores),
          as<int64_t>(out_nodes),
          as<int64_t>(out_parents),
          as<int64_t>(out_codes),
          threads};
}

crs::TrieArrays arrays(Address codes, Address bits, Address rank, Address starts, Address level) {
  return {as<void>(codes), as<uint64_t>(bits), as<int32_t>(rank), as<int32_t>(starts),
          as<int64_t>(level)};
}

// Called between the passes of a build, with the interpreter's lock released: takes Ctrl-C and
// reports progress. What either raises ends the build.
class Poll {
 public:
  Poll(py::function report, double seconds) : report_(std::move(report)), seconds_(seconds) {}

  void operator()() const {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::duration<double>(seconds_)) return;
    last_ = now;
    const py::gil_scoped_acquire locked;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    report_();
  }

 private:
  py::function report_;
  double seconds_;
  mutable std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

void bind_builder(py::module_& m) {
  using crs::TrieArrays, crs::TrieBuilder, crs::TrieInsertion, crs::TrieRemoval, crs::TrieSizes;
  const py::call_guard<py::gil_scoped_release> unlocked;
  py::class_<TrieSizes>(m, "TrieSizes")
      .def(py::init<>())
      .def_property_readonly("codes", &TrieSizes::num_codes)
      .def_property_readonly("starts", &TrieSizes::num_starts)
      .def_property_readonly("words", &TrieSizes::words)
      .def_readonly("code_bytes", &TrieSizes::code_bytes);
  py::class_<TrieArrays>(m, "TrieArrays")
      .def(py::init(&arrays), py::kw_only(), arg("codes"), arg("bits"), arg("rank"), arg("starts"),
           arg("level"));
  py::class_<TrieBuilder>(m, "TrieBuilder")
      .def(py::init([](Address sids, int64_t num_items, int64_t levels, int64_t num_sorted,
                       int threads, py::function poll, double poll_seconds) {
             return std::make_unique<TrieBuilder>(as<const int64_t>(sids), num_items, levels,
                                                  num_sorted, threads,
                                                  Poll(std::move(poll), poll_seconds));
           }),
           py::kw_only(), arg("sids"), arg("num_items"), arg("levels"), arg("num_sorted"),
           arg("threads"), arg("poll"), arg("poll_seconds"))
      .def(
          "sort", [](TrieBuilder& b, Address order) { b.sort(as<int32_t>(order)); }, py::kw_only(),
          arg("order"), unlocked)
      .def("fill", &TrieBuilder::fill, arg("arrays"), unlocked)
      .def("progress", &TrieBuilder::progress)
      .def_property_readonly("sizes", &TrieBuilder::sizes);
  py::class_<TrieInsertion>(m, "TrieInsertion")
      .def(py::init([](const Trie& trie, Address rows, int64_t size, int64_t levels, int threads) {
             return std::make_unique<TrieInsertion>(trie.view, as<const int64_t>(rows), size,
                                                    levels, threads);
           }),
           py::kw_only(), arg("trie"), arg("rows"), arg("size"), arg("levels"), arg("threads"))
      .def(
          "plan", [](TrieInsertion& change, Address at) { change.plan(as<int64_t>(at)); },
          py::kw_only(), arg("at"), unlocked)
      .def("fill", &TrieInsertion::fill, arg("arrays"), unlocked)
      .def_property_readonly("sizes", &TrieInsertion::sizes);
  py::class_<TrieRemoval>(m, "TrieRemoval")
      .def(py::init([](const Trie& trie, Address items, int64_t size, int threads) {
             return std::make_unique<TrieRemoval>(trie.view, as<const int64_t>(items), size,
                                                  threads);
           }),
           py::kw_only(), arg("trie"), arg("items"), arg("size"), arg("threads"))
      .def("plan", &TrieRemoval::plan, unlocked)
      .def("fill", &TrieRemoval::fill, arg("arrays"), unlocked)
      .def_property_readonly("sizes", &TrieRemoval::sizes);
}

void bind_arguments(py::module_& m) {
  py::class_<Trie>(m, "Trie").def(py::init(&trie), py::kw_only(), arg("codes"), arg("bits"),
                                  arg("rank"), arg("starts"), arg("level"), arg("levels"),
                                  arg("words"), arg("code_bytes"));
  py::class_<Filter>(m, "Filter")
      .def(py::init(&filter), py::kw_only(), arg("words"), arg("rank"), arg("stride"));
  py::class_<Tokens>(m, "Tokens")
      .def(py::init(&tokens), py::kw_only(), arg("column"), arg("stride"), arg("width"),
           arg("terminator"), arg("denied"), arg("num_denied"));
  py::class_<crs::MaskArgs>(m, "MaskArgs")
      .def(py::init(&mask_args), py::kw_only(), arg("trie"), arg("filter"), arg("tokens"),
           arg("rows_per_filter"), arg("filter_of_row"), arg("logits"), arg("out"), arg("nodes"),
           arg("rows"), arg("vocab"), arg("row_stride"), arg("out_stride"), arg("dtype"),
           arg("threads"));
  py::class_<crs::StepArgs>(m, "StepArgs")
      .def(py::init(&step_args), py::kw_only(), arg("trie"), arg("filter"), arg("tokens"),
           arg("normalize"), arg("inverse_temperature"), arg("logits"), arg("batch"), arg("beams"),
           arg("vocab"), arg("row_stride"), arg("dtype"), arg("scores"), arg("nodes"),
           arg("normalizers"), arg("out_beams"), arg("out_scores"), arg("out_nodes"),
           arg("out_parents"), arg("out_codes"), arg("threads"));
}

#if defined(CRS_FAST_WITH_CUDA)
void check_cuda(const char* op, int error) {
  if (error != 0)
    throw std::runtime_error(std::string(op) + ": CUDA: " + crs::cuda_error_string(error));
}

void bind_cuda(py::module_& m) {
  m.def(
      "trie_walk_cuda",
      [](const Trie& trie, Address codes, int64_t rows, int64_t length, Address nodes,
         Address stream) {
        check_cuda("trie_walk", crs::trie_walk_cuda(trie.view, as<const int64_t>(codes), rows,
                                                    length, as<int64_t>(nodes), as<void>(stream)));
      },
      py::kw_only(), arg("trie"), arg("codes"), arg("rows"), arg("length"), arg("nodes"),
      arg("stream"));
  m.def(
      "trie_mask_cuda",
      [](const crs::MaskArgs& args, Address stream) {
        check_cuda("trie_mask", crs::trie_mask_cuda(args, as<void>(stream)));
      },
      arg("args"), arg("stream"));
  m.def("trie_step_workspace", &crs::trie_step_workspace, arg("args"));
  m.def(
      "trie_step_cuda",
      [](const crs::StepArgs& args, Address workspace, Address stream) {
        check_cuda("trie_step", crs::trie_step_cuda(args, as<void>(workspace), as<void>(stream)));
      },
      arg("args"), arg("workspace"), arg("stream"));
}
#endif

}  // namespace

void bind_trie(py::module_& m) {
  bind_arguments(m);
  bind_builder(m);
  m.def(
      "trie_walk",
      [](const Trie& trie, Address codes, int64_t rows, int64_t length, Address nodes,
         int threads) {
        py::gil_scoped_release release;
        crs::trie_walk_cpu(trie.view, as<const int64_t>(codes), rows, length, as<int64_t>(nodes),
                           threads);
      },
      py::kw_only(), arg("trie"), arg("codes"), arg("rows"), arg("length"), arg("nodes"),
      arg("threads"));
  m.def(
      "trie_rows",
      [](const Trie& trie, Address items, int64_t size, Address codes, int threads) {
        py::gil_scoped_release release;
        crs::trie_rows_cpu(trie.view, as<const int64_t>(items), size, as<int64_t>(codes), threads);
      },
      py::kw_only(), arg("trie"), arg("items"), arg("size"), arg("codes"), arg("threads"));
  m.def(
      "trie_mask",
      [](const crs::MaskArgs& args) {
        py::gil_scoped_release release;
        crs::trie_mask_cpu(args);
      },
      arg("args"));
  m.def(
      "trie_step",
      [](const crs::StepArgs& args) {
        py::gil_scoped_release release;
        crs::trie_step_cpu(args);
      },
      arg("args"));
#if defined(CRS_FAST_WITH_CUDA)
  bind_cuda(m);
#endif
}
