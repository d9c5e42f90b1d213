// CUDA registration of quantize_activation, moe_align and moe_reduce.
#include <torch/csrc/stable/library.h>

#include "ops/checked.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/ops.h"

namespace humming {

void quantize_activation_cuda(const Tensor& x, const QuantizeParams& params) {
  launch<QuantizeColumns>("humming::quantize_activation", x, params);
}

void moe_align_cuda(const Tensor& topk_ids, const MoeAlignParams& params) {
  launch<MoeAlignColumns>("humming::moe_align", topk_ids, params);
}

void moe_reduce_cuda(const Tensor& y, const MoeReduceParams& params) {
  launch<MoeReduceColumns>("humming::moe_reduce", y, params);
}

}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CUDA, m) {
  m.impl("quantize_activation.out", HUMMING_CHECKED(check_quantize_activation, quantize_activation_cuda));
  m.impl("moe_align.out", HUMMING_CHECKED(check_moe_align, moe_align_cuda));
  m.impl("moe_reduce.out", HUMMING_CHECKED(check_moe_reduce, moe_reduce_cuda));
}
