// The checks that products share; the building blocks of check_gemm, check_moe_gemm and check_fused_moe, and nobody
// else's. `op` begins every message.
#pragma once

#include "ops/checks.h"
#include "ops/tensor_check.h"

namespace humming {

// Whether x and x_scale, of an operand's own types, fit the weight. Set x_dtype before check_x_rows.
void check_x(const char* op, const Tensor& x, int64_t dims, const char* meaning, GemmParams* params);
void check_x_rows(const char* op, const Tensor& x, int64_t dims, const char* meaning, GemmParams* params);
void check_x_scale(const char* op, const OptionalTensor& x_scale, const Tensor& x, GemmParams* params);

// What the op calls the tensors of a weight.
struct WeightNames {
  const char *packed = "packed", *scale2 = "scale2", *bias = "bias";
};

// Of params->desc.
void check_weight(const char* op, const Tensor& packed, const OptionalTensor& scale2, const OptionalTensor& bias,
                  const Tensor& x, GemmParams* params, const WeightNames& names = {});

// The columns of out.
int64_t check_activation(const char* op, const std::string& name, const std::vector<double>& args, GemmParams* params);

void check_out(const char* op, const Tensor& out, const Sizes& shape, const char* meaning, const Tensor& workspace,
               const Tensor& x, GemmParams* params);

// A weight per row of out, or none.
void check_topk_weights(const char* op, const OptionalTensor& topk_weights, const Tensor& x, GemmParams* params);

MoeLayout parse_layout(const char* op, const std::string& name);

// The tensors of one layout must be there, those of the others must not.
const Tensor& required(const char* op, const char* name, const OptionalTensor& tensor, const std::string& layout,
                       const Tensor& x);
void forbidden(const char* op, const char* name, const OptionalTensor& tensor, const std::string& layout);

// expert_offsets if `offsets`, counts if the layout is masked, and that they are not there otherwise; params->layout
// and the weight are known. Masked x has the experts of the weight.
void check_expert_rows(const char* op, const std::string& layout, bool offsets, const OptionalTensor& expert_offsets,
                       const OptionalTensor& expert_counts, const Tensor& x, MoeParams* params);

// The shape of x and of out without their last dimension, as the layout has it; for messages.
inline const char* x_meaning(MoeLayout layout) {
  return layout == MoeLayout::masked ? "[experts, capacity, K]" : "[tokens, K]";
}

}  // namespace humming
