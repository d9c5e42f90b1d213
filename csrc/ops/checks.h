// From the arguments of an op to its torch-free parameters. Every dtype, device, shape, stride and number that can be
// checked on the host is checked here, once for the CPU and the CUDA registration; what fails throws std::runtime_error
// "humming::<op>: <argument> ...", with the value and the way out. Contents of tensors are not read.
//
// The parameters hold raw pointers: they are valid while the tensors are.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "kernel/params.h"

namespace humming {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

GemmParams check_gemm(const Tensor& x, const OptionalTensor& x_scale, const Tensor& packed,
                      const OptionalTensor& scale2, const OptionalTensor& bias, const std::vector<int64_t>& desc,
                      const Tensor& out, const Tensor& workspace);

MoeParams check_moe_gemm(const Tensor& x, const OptionalTensor& x_scale, const Tensor& packed,
                         const OptionalTensor& scale2, const OptionalTensor& bias, const std::vector<int64_t>& desc,
                         const std::string& layout, const OptionalTensor& sorted_token_ids,
                         const OptionalTensor& expert_ids, const OptionalTensor& num_tokens_post_padded,
                         const OptionalTensor& expert_offsets, const OptionalTensor& expert_counts,
                         const OptionalTensor& topk_weights, int64_t top_k, const std::string& activation,
                         const std::vector<double>& activation_args, std::optional<int64_t> expected_tokens,
                         const Tensor& out, const Tensor& workspace);

QuantizeParams check_quantize_activation(const Tensor& x, int64_t group, const std::string& activation,
                                         const std::vector<double>& activation_args, const OptionalTensor& static_scale,
                                         const OptionalTensor& positions, const Tensor& out, const Tensor& scale);

MoeAlignParams check_moe_align(const Tensor& topk_ids, int64_t num_experts, int64_t block,
                               const OptionalTensor& expert_map, const Tensor& sorted_pairs, const Tensor& positions,
                               const Tensor& blocks, const Tensor& num_blocks, const Tensor& expert_offsets);

MoeReduceParams check_moe_reduce(const Tensor& y, const Tensor& topk_weights, const OptionalTensor& topk_ids,
                                 const OptionalTensor& num_valid_tokens, double scale, const OptionalTensor& add,
                                 const Tensor& out);

FusedMoeParams check_fused_moe(const Tensor& x, const OptionalTensor& x_scale, const Tensor& w13,
                               const OptionalTensor& w13_scale2, const OptionalTensor& w13_bias,
                               const std::vector<int64_t>& w13_desc, const Tensor& w2, const OptionalTensor& w2_scale2,
                               const OptionalTensor& w2_bias, const std::vector<int64_t>& w2_desc,
                               const std::string& layout, const OptionalTensor& topk_weights,
                               const OptionalTensor& topk_ids, const OptionalTensor& expert_map,
                               const OptionalTensor& expert_offsets, const OptionalTensor& expert_counts,
                               const std::string& activation, const std::vector<double>& activation_args, int64_t group,
                               double scale, const OptionalTensor& add, bool apply_router_weight_on_input,
                               std::optional<int64_t> expected_tokens, const Tensor& out, const Tensor& workspace);

// Bytes of fused_moe's workspace without those of its products.
int64_t fused_moe_workspace(int64_t rows, int64_t top_k, torch::headeronly::ScalarType x_dtype,
                            torch::headeronly::ScalarType out_dtype, std::vector<int64_t> w13_desc,
                            std::vector<int64_t> w2_desc, std::string layout, int64_t group);

RepackParams check_prepack(const Tensor& codes, int64_t code_bits, const OptionalTensor& scale,
                           const OptionalTensor& zero, const std::vector<int64_t>& desc, const std::string& row_order,
                           const Tensor& packed, const Tensor& row_scale, const Tensor& stats);

DecodeParams check_decode_packed(const Tensor& packed, const OptionalTensor& scale2, const std::vector<int64_t>& desc,
                                 bool codes, const Tensor& out);

// How x of type `x_dtype` is multiplied by operand `desc.operand`; throws if it cannot be. Of the op's x_dtype
// argument: uint8 means int4.
DType check_x_dtype(const char* op, const WeightDesc& desc, torch::headeronly::ScalarType x_dtype);

}  // namespace humming
