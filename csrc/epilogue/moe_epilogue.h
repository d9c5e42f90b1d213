// The end of every MoE GEMM kernel: that of the dense product with what an expert has, then an activation, a weight and
// another place.
#pragma once

#include "epilogue/activation.h"
#include "epilogue/gemm_epilogue.h"

namespace humming {

// Tokens whose results are on their way from registers to the output at a time.
inline constexpr int kMoeSliceTokens = 16;

// What the rows of a product with experts are: pairs (token, choice) sorted by expert, or without `sorted` rows of x.
struct MoePairs {
  const int32_t* sorted;
  int top_k;      // pair p is of row p / top_k of x
  int limit;      // p is below it; what is not is taken for the last pair, so that nothing is accessed outside of x
  bool in_order;  // its result goes where the pair stands in the order, else to row p of out

  struct Row {
    int pair, x, out;
  };
  HUMMING_HD Row row(int index, int pair) const {
    if (sorted == nullptr) return {index, index, index};
    if (static_cast<unsigned>(pair) >= static_cast<unsigned>(limit)) pair = limit - 1;
    return {pair, pair / top_k, in_order ? index : pair};
  }
};

// The epilogue of the dense product (gemm_epilogue.h) with the scales and biases of an expert, then
//
//   out(row, column) = activation(...) * row_weights[pair]
struct MoeEpilogueParams {
  EpilogueParams dense;
  int64_t scale2_expert_stride, bias_expert_stride;
  MoePairs pairs;
  const float* row_weights;  // of every pair; nullptr: 1
  Activation activation;
  ActivationArgs activation_args;

  HUMMING_HD EpilogueParams of_expert(int expert) const {
    EpilogueParams mine = dense;
    if (mine.scale2 != nullptr) mine.scale2 += expert * scale2_expert_stride;
    if (mine.bias != nullptr) {
      const int64_t bytes = expert * bias_expert_stride * (mine.bias_dtype == DType::fp32 ? 4 : 2);
      mine.bias = static_cast<const uint8_t*>(mine.bias) + bytes;
    }
    return mine;
  }
};

}  // namespace humming
