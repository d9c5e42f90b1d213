// The end of every MoE GEMM kernel: that of the dense product with what an expert has, then an activation, a weight and
// another place.
#pragma once

#include "epilogue/activation.h"
#include "epilogue/gemm_epilogue.h"

namespace humming {

// Tokens whose results are on their way from registers to the output at a time.
inline constexpr int kMoeSliceTokens = 16;

// The epilogue of the dense product (gemm_epilogue.h) with the scales and biases of an expert, then
//
//   out(out_rows[row], column) = activation(...) * row_weights[row]
struct MoeEpilogueParams {
  EpilogueParams dense;
  int64_t scale2_expert_stride, bias_expert_stride;
  const int32_t* out_rows;   // row of out of every row of x; nullptr: the same
  const float* row_weights;  // of every row of x; nullptr: 1
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
