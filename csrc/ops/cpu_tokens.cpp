// CPU registration of quantize_activation, moe_align and moe_reduce.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "core/check.h"
#include "ops/checked.h"
#include "ops/cpu_dispatch.h"
#include "ops/cpu_ops.h"

namespace humming {
namespace {

// Rows per task so that a task is worth its start.
constexpr int64_t kElementsPerTask = 16384;
int64_t grain(int64_t columns) { return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, columns)); }

// Local expert of every pair, -1 for none.
std::vector<int32_t> local_experts(const MoeAlignParams& params) {
  const char* op = "humming::moe_align";
  std::vector<int32_t> experts(static_cast<size_t>(params.num_pairs));
  for (int64_t pair = 0; pair < params.num_pairs; ++pair) {
    const int64_t id = params.id_dtype == DType::int64 ? static_cast<const int64_t*>(params.topk_ids)[pair]
                                                       : static_cast<const int32_t*>(params.topk_ids)[pair];
    HUMMING_CHECK(id >= -1 && id < params.num_global_experts, op, ": topk_ids holds ", id, " at pair ", pair,
                  "; there are ", params.num_global_experts, " experts, -1 means none");
    const int64_t local = id >= 0 && params.expert_map ? params.expert_map[id] : id;
    HUMMING_CHECK(local >= -1 && local < params.num_experts, op, ": expert_map[", id, "] is ", local, "; there are ",
                  params.num_experts, " local experts, -1 means another rank's");
    experts[pair] = static_cast<int32_t>(local);
  }
  return experts;
}

}  // namespace

void quantize_activation_cpu(const Tensor&, const QuantizeParams& params) {
  if (params.static_scale) *static_cast<float*>(params.scale) = *params.static_scale;
  torch::stable::parallel_for(0, params.rows, grain(params.k),
                              [&](int64_t begin, int64_t end) { cpu_kernels().quantize(params, begin, end); });
}

void moe_align_cpu(const Tensor&, const MoeAlignParams& params) {
  const std::vector<int32_t> experts = local_experts(params);
  // After the loop: first row of each expert.
  std::vector<int64_t> next(static_cast<size_t>(params.num_experts) + 1, 0);
  for (const int32_t expert : experts) {
    if (expert >= 0) ++next[expert + 1];
  }
  for (int64_t expert = 0; expert < params.num_experts; ++expert) next[expert + 1] += next[expert];

  int64_t used = 0;
  const auto write_block = [&](int64_t expert, int64_t first, int64_t rows) {
    const int64_t values[4] = {expert, first, rows, 0};
    for (int i = 0; i < 4 && params.blocks; ++i) params.blocks[4 * used + i] = static_cast<int32_t>(values[i]);
    ++used;
  };
  for (int64_t expert = 0; expert < params.num_experts; ++expert) {
    const int64_t end = next[expert + 1];
    params.offsets[expert] = static_cast<int32_t>(next[expert]);
    for (int64_t first = next[expert]; first < end; first += params.block) {
      write_block(expert, first, std::min(params.block, end - first));
    }
  }
  params.offsets[params.num_experts] = static_cast<int32_t>(next[params.num_experts]);
  if (params.num_blocks) *params.num_blocks = static_cast<int32_t>(used);
  while (used < params.max_blocks) write_block(-1, 0, 0);

  std::fill_n(params.sorted_pairs, params.num_pairs, -1);
  for (int64_t pair = 0; pair < params.num_pairs; ++pair) {
    const int32_t expert = experts[pair];
    const int64_t row = expert >= 0 ? next[expert]++ : -1;
    params.positions[pair] = static_cast<int32_t>(row);
    if (row < 0) continue;
    params.sorted_pairs[row] = static_cast<int32_t>(pair);
  }
}

void moe_reduce_cpu(const Tensor&, const MoeReduceParams& params) {
  torch::stable::parallel_for(0, params.tokens, grain(params.top_k * params.hidden),
                              [&](int64_t begin, int64_t end) { cpu_kernels().moe_reduce(params, begin, end); });
}

}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CPU, m) {
  m.impl("quantize_activation.out", HUMMING_CHECKED(check_quantize_activation, quantize_activation_cpu));
  m.impl("moe_align.out", HUMMING_CHECKED(check_moe_align, moe_align_cpu));
  m.impl("moe_reduce.out", HUMMING_CHECKED(check_moe_reduce, moe_reduce_cpu));
}
