#include "select/moe_problem.h"

#include <algorithm>
#include <cstdint>

#include "select/gemm_sm90.h"

namespace humming {

MoeWorkspace moe_workspace(int64_t experts, int64_t pairs, void* base) {
  MoeWorkspace workspace{};
  const auto take = [&](int32_t** part, int64_t count) {
    if (base != nullptr) *part = reinterpret_cast<int32_t*>(static_cast<uint8_t*>(base) + workspace.bytes);
    workspace.bytes += (count * static_cast<int64_t>(sizeof(int32_t)) + 127) / 128 * 128;
  };
  take(&workspace.sorted, pairs);
  take(&workspace.offsets, experts + 1);
  take(&workspace.counts, 2 * experts);
  return workspace;
}

MoeProblem typical_moe_gemm(const WeightDesc& desc, DType x, int64_t rows) {
  MoeProblem problem{typical_gemm(desc, x, rows), {}, {}, rows, false};
  problem.rows.experts = static_cast<int>(desc.experts);
  problem.rows.rows = static_cast<int>(rows);
  return problem;
}

const char* too_large(const MoeProblem& p) {
  constexpr int kMaxExperts = 4096;  // whose list fits beside a ring
  if (std::max(p.gemm.rows, p.gemm.out_rows) > INT32_MAX) return "counts rows in 32 bits";
  if (p.gathers() && p.gemm.rows * p.gemm.x_row_bytes / 16 > UINT32_MAX) return "takes x of 64 GiB";
  if (p.rows.experts > kMaxExperts) return "takes at most 4096 experts";
  return nullptr;
}

MoeEpilogueParams moe_epilogue(const MoeProblem& p, const EpilogueParams& dense) {
  MoeEpilogueParams epilogue{};
  epilogue.dense = dense;
  epilogue.scale2_expert_stride = p.gemm.scale2.expert_stride;
  epilogue.bias_expert_stride = p.gemm.bias.expert_stride;
  epilogue.pairs = p.pairs;
  epilogue.row_weights = p.gemm.topk_weights;
  epilogue.activation = p.gemm.activation;
  epilogue.activation_args = p.gemm.activation_args;
  return epilogue;
}

}  // namespace humming
