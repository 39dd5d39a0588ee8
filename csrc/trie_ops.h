// The trie kernels' entry points. Every pointer is contiguous unless a stride is named; checks
// stand on the Python side, before the pointers cross.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"
#include "trie.h"

namespace crs {

// How token ids and codes relate, and what stands outside a SID.
struct TokenView {
  const int64_t* column;  // [levels, width]: logits column of code c at each level, -1 where none
  int64_t stride;         // from one level's row to the next; 0 when all levels share one
  int64_t width;
  int64_t terminator;     // column forced after a whole SID, -1 when there is none
  const int64_t* denied;  // [num_denied]: columns masked in rows outside a SID
  int64_t num_denied;

  CRS_HD int64_t at(int64_t depth, int64_t code) const {
    return code < width ? column[depth * stride + code] : -1;
  }
};

// nodes[r] = the node reached from the root by codes[r, :], stopping at the first -1; kNoNode when
// the trie has no such path.
void trie_walk_cpu(const TrieView& trie, const int64_t* codes, int64_t rows, int64_t length,
                   int64_t* nodes, int threads);

// codes[i, :] = the SID of the item at sorted position items[i], -1 after its end. Null items: of
// the first `size` items.
void trie_rows_cpu(const TrieView& trie, const int64_t* items, int64_t size, int64_t* codes,
                   int threads);

// out[r, v] = logits[r, v] where v is legal after nodes[r], or nodes[r] is kLeave, else -inf. A
// node that the trie cannot hold is an error on the CPU; on a GPU, where nobody waits to hear of
// it, its row is all -inf.
struct MaskArgs {
  TrieView trie;
  FilterView filter;
  TokenView tokens;
  int64_t rows_per_filter;       // row r takes bitmap r / rows_per_filter,
  const int64_t* filter_of_row;  // [rows]: or this one, -1 for none; may be null
  const void* logits;            // [rows, vocab], row_stride elements apart
  void* out;                     // likewise, out_stride apart; may be logits
  const int64_t* nodes;          // [rows]
  int64_t rows, vocab, row_stride, out_stride;
  DType dtype;  // of logits and out
  int threads;  // at most

  CRS_HD int64_t filter_of(int64_t row) const {
    return filter_of_row ? filter_of_row[row] : row / rows_per_filter;
  }
};
void trie_mask_cpu(const MaskArgs& args);

// One constrained beam step; see crs_fast/ops/trie for what it computes, step_rules.h for
// what the CPU and the CUDA code share. Normalize is exported to Python as `_C.Normalize`.
enum class Normalize : int { kVocab, kLevel, kLegal };
struct StepArgs {
  TrieView trie;
  FilterView filter;
  TokenView tokens;
  Normalize normalize;
  float inverse_temperature;
  const void* logits;  // [batch * beams, vocab], row_stride elements apart
  int64_t batch, beams, vocab, row_stride;
  DType dtype;
  const float* scores;       // [batch, beams]
  const int64_t* nodes;      // [batch, beams], kNoNode for a dead beam; see MaskArgs
  const float* normalizers;  // [batch * beams]: each row's log-sum-exp where it is known, else null
  int64_t out_beams;
  float* out_scores;     // [batch, out_beams]
  int64_t* out_nodes;    // [batch, out_beams]
  int64_t* out_parents;  // [batch, out_beams]
  int64_t* out_codes;    // [batch, out_beams]
  int threads;           // at most
};
void trie_step_cpu(const StepArgs& args);

// Throws std::invalid_argument at the first node that is neither one of `lowest` .. kNoNode nor one
// that the trie can hold.
void check_nodes(const char* op, const TrieView& trie, const int64_t* nodes, int64_t size,
                 int64_t lowest = kNoNode);

// What the functions above call.
CRS_FOR_EACH_ISA(void trie_walk(const TrieView& trie, const int64_t* codes, int64_t rows,
                                int64_t length, int64_t* nodes, int threads);
                 void trie_rows(const TrieView& trie, const int64_t* items, int64_t size,
                                int64_t* codes, int threads);
                 void trie_mask(const MaskArgs& args); void trie_step(const StepArgs& args);)

#if defined(CRS_FAST_WITH_CUDA)
// Return a cudaError_t; stream is a cudaStream_t.
int trie_walk_cuda(const TrieView& trie, const int64_t* codes, int64_t rows, int64_t length,
                   int64_t* nodes, void* stream);
int trie_mask_cuda(const MaskArgs& args, void* stream);
int64_t trie_step_workspace(const StepArgs& args);  // bytes, aligned to 8, that the step writes
int trie_step_cuda(const StepArgs& args, void* workspace, void* stream);
const char* cuda_error_string(int error);
#endif

}  // namespace crs
