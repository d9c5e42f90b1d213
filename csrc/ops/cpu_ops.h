// The CPU ops that a layer is made of. The tensor only tells the device.
#pragma once

#include "ops/checks.h"

namespace humming {

void quantize_activation_cpu(const Tensor&, const QuantizeParams& params);
void moe_align_cpu(const Tensor&, const MoeAlignParams& params);
void moe_gemm_cpu(const Tensor&, const MoeParams& params);
void moe_reduce_cpu(const Tensor&, const MoeReduceParams& params);

}  // namespace humming
