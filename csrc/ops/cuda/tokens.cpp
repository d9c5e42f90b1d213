// CUDA registration of quantize_activation, moe_align and moe_reduce.
#include <torch/csrc/stable/library.h>

#include "ops/checks.h"
#include "ops/cuda/launch.h"

namespace humming {
namespace {

void quantize_activation_cuda(const Tensor& x, int64_t group, std::string activation,
                              std::vector<double> activation_args, const OptionalTensor& static_scale, Tensor out,
                              Tensor scale) {
  const QuantizeParams params =
      check_quantize_activation(x, group, activation, activation_args, static_scale, out, scale);
  launch<QuantizeColumns>("humming::quantize_activation", x, params);
}

void moe_align_cuda(const Tensor& topk_ids, int64_t num_experts, int64_t block, const OptionalTensor& expert_map,
                    Tensor sorted_pairs, Tensor positions, Tensor blocks, Tensor num_blocks) {
  const MoeAlignParams params =
      check_moe_align(topk_ids, num_experts, block, expert_map, sorted_pairs, positions, blocks, num_blocks);
  launch<MoeAlignColumns>("humming::moe_align", topk_ids, params);
}

void moe_reduce_cuda(const Tensor& y, const Tensor& topk_weights, const OptionalTensor& topk_ids,
                     const OptionalTensor& num_valid_tokens, double scale, const OptionalTensor& add, Tensor out) {
  const MoeReduceParams params = check_moe_reduce(y, topk_weights, topk_ids, num_valid_tokens, scale, add, out);
  launch<MoeReduceColumns>("humming::moe_reduce", y, params);
}

}  // namespace
}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CUDA, m) {
  m.impl("quantize_activation.out", TORCH_BOX(&humming::quantize_activation_cuda));
  m.impl("moe_align.out", TORCH_BOX(&humming::moe_align_cuda));
  m.impl("moe_reduce.out", TORCH_BOX(&humming::moe_reduce_cuda));
}
