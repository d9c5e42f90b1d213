// CUDA registration of fused_moe.
#include <torch/csrc/stable/library.h>

#include "ops/checked.h"
#include "ops/cuda/ops.h"
#include "ops/fused_moe.h"

namespace humming {
namespace {

void fused_moe_cuda(const Tensor& x, const FusedMoeParams& params) {
  run_fused_moe({quantize_activation_cuda, moe_align_cuda, moe_gemm_cuda, moe_reduce_cuda}, x, params);
}

}  // namespace
}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CUDA, m) {
  m.impl("fused_moe.out", HUMMING_CHECKED(check_fused_moe, fused_moe_cuda));
}
