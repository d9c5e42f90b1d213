// A product with experts, as selection sees it.
#pragma once

#include "kernel/moe_gemm_params.h"
#include "kernel/params.h"

namespace humming {

// What a MoE product wants of an instance. Of the layout "indexed" once its pairs are sorted.
struct MoeProblem {
  GemmParams gemm;
  MoeRows rows;
  MoePairs pairs;
  int64_t expected_rows;  // that experts have together, as far as the host knows
  bool known_routing;     // see MoeParams

  bool gathers() const { return pairs.sorted != nullptr; }  // rows of x, which lie anywhere
};

// As typical_gemm: so many rows, together.
MoeProblem typical_moe_gemm(const WeightDesc& desc, DType x, int64_t rows);

// Where blocks of pairs are sorted (MoeSortParams).
struct MoeWorkspace {
  int32_t *sorted, *offsets, *counts;
  int64_t bytes;  // of all
};
// `base`, at a multiple of 128, may be nullptr to ask only for the bytes.
MoeWorkspace moe_workspace(int64_t experts, int64_t pairs, void* base);

// What no kernel can count; nullptr if they can.
const char* too_large(const MoeProblem& problem);

// The end of every kernel: that of the dense product (selection.h) with what an expert has.
MoeEpilogueParams moe_epilogue(const MoeProblem& problem, const EpilogueParams& dense);

inline const WeightDesc& weight_of(const MoeProblem& problem) { return problem.gemm.desc; }

}  // namespace humming
