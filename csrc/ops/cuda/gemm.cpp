// CUDA registration of gemm and moe_gemm. No build has instances of them: arguments are checked, calls without rows are
// no-ops, all others are refused.
#include <torch/csrc/stable/library.h>

#include "core/check.h"
#include "instances/instances.h"
#include "ops/checks.h"
#include "ops/tensor_check.h"

namespace humming {
namespace {

void refuse(const char* op, const GemmParams& params, const Tensor& x) {
  if (params.rows == 0 || params.out_rows == 0) return;
  HUMMING_CHECK(false, op, ": no CUDA instance in this build (preset ", kPreset, ", architectures ", kCudaArchs,
                ") for ", params.desc.format_traits().name, " weights x ", to_text(x.scalar_type()),
                params.x_dtype == DType::int4 ? " (two int4 per byte)" : "",
                "; move the tensors to the CPU, where every combination runs");
}

void gemm_cuda(const Tensor& x, const OptionalTensor& x_scale, const Tensor& packed, const OptionalTensor& scale2,
               const OptionalTensor& bias, std::vector<int64_t> desc, Tensor out, Tensor workspace) {
  refuse("humming::gemm", check_gemm(x, x_scale, packed, scale2, bias, desc, out, workspace), x);
}

void moe_gemm_cuda(const Tensor& x, const OptionalTensor& x_scale, const Tensor& packed, const OptionalTensor& scale2,
                   const OptionalTensor& bias, std::vector<int64_t> desc, std::string layout,
                   const OptionalTensor& sorted_token_ids, const OptionalTensor& expert_ids,
                   const OptionalTensor& num_tokens_post_padded, const OptionalTensor& expert_offsets,
                   const OptionalTensor& expert_counts, const OptionalTensor& topk_weights, int64_t top_k,
                   std::string activation, std::vector<double> activation_args, std::optional<int64_t> expected_tokens,
                   Tensor out, Tensor workspace) {
  const MoeParams params = check_moe_gemm(x, x_scale, packed, scale2, bias, desc, layout, sorted_token_ids, expert_ids,
                                          num_tokens_post_padded, expert_offsets, expert_counts, topk_weights, top_k,
                                          activation, activation_args, expected_tokens, out, workspace);
  refuse("humming::moe_gemm", params.gemm, x);
}

}  // namespace
}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CUDA, m) {
  m.impl("gemm.out", TORCH_BOX(&humming::gemm_cuda));
  m.impl("moe_gemm.out", TORCH_BOX(&humming::moe_gemm_cuda));
}
