// CPU registration of fused_moe.
#include <torch/csrc/stable/library.h>

#include "ops/checked.h"
#include "ops/cpu_ops.h"
#include "ops/fused_moe.h"

namespace humming {
namespace {

void fused_moe_cpu(const Tensor& x, const FusedMoeParams& params) {
  run_fused_moe({quantize_activation_cpu, moe_align_cpu, moe_gemm_cpu, moe_reduce_cpu}, x, params);
}

}  // namespace
}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CPU, m) { m.impl("fused_moe.out", HUMMING_CHECKED(check_fused_moe, fused_moe_cpu)); }
