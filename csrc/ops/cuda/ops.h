// The CUDA ops that a layer is made of: they launch on the device and torch's current stream of the tensor.
#pragma once

#include "ops/checks.h"

namespace humming {

void quantize_activation_cuda(const Tensor& x, const QuantizeParams& params);
void moe_align_cuda(const Tensor& topk_ids, const MoeAlignParams& params);
void moe_gemm_cuda(const Tensor& x, const MoeParams& params);
void moe_reduce_cuda(const Tensor& y, const MoeReduceParams& params);

}  // namespace humming
