#include "select/moe_gemm_sm90.h"

#include <algorithm>
#include <cmath>

#include "select/gemm_sm90.h"
#include "select/select_sm90.h"

namespace humming {
namespace {

using namespace select_sm90;

constexpr int kMaxExperts = 4096;  // whose table fits beside the ring

// Tokens in shared memory are those of a whole tile: a block may end anywhere in x.
int stages_for(const MoeGemmSm90Columns& c, const MoeProblem& p, const DeviceInfo& device) {
  return stages_of(c, p.gemm, c.tokens, moe_table_bytes(tile_of(c), p.rows.experts), device);
}

}  // namespace

MoeProblem typical_moe_gemm(const WeightDesc& desc, DType x, int64_t rows) {
  MoeProblem problem{typical_gemm(desc, x, rows), {}, nullptr, rows};
  problem.rows.layout = MoeLayout::contiguous;
  problem.rows.experts = static_cast<int>(desc.experts);
  problem.rows.rows = static_cast<int>(rows);
  return problem;
}

bool is_for(const MoeGemmSm90Instance& instance, const WeightDesc& desc) {
  return instance.columns.format == desc.format && instance.columns.operand == desc.operand;
}

const char* cannot_run(const MoeGemmSm90Instance& instance, const MoeProblem& p, const DeviceInfo& device) {
  if (!runs_on(instance.entry.arch, device.capability)) return "is compiled for another GPU";
  if (!is_for(instance, p.gemm.desc)) return "is for another format or operand";
  if (const char* reason = mismatch(instance.columns, p.gemm)) return reason;
  if (std::max(p.gemm.rows, p.gemm.out_rows) > INT32_MAX) return "counts rows in 32 bits";
  if (p.rows.experts > kMaxExperts) return "takes at most 4096 experts";
  if (stages_for(instance.columns, p, device) < 2) return "does not fit into shared memory";
  return nullptr;
}

// Every expert that has rows brings its weights once for each of its blocks; the rows are spread evenly.
double estimate_moe_gemm_sm90(const MoeGemmSm90Instance& instance, const MoeProblem& p, const DeviceInfo& device) {
  const MoeGemmSm90Columns& c = instance.columns;
  const Sm90Tile tile = tile_of(c);
  constexpr double kBytesPerCycle = 19;                               // an SM's share of the memory bandwidth
  const double multiplies = tile.value_bytes == 2 ? 2048.0 : 4096.0;  // multiply-adds per cycle and SM
  constexpr double kStart = 1500;  // of a tile: what its epilogue and first bytes take
  const double rows = std::max<double>(1, static_cast<double>(p.expected_rows));
  const double active = std::min<double>(p.rows.experts, rows);
  const double blocks = active * std::ceil(rows / active / tile.tokens);
  const double tiles = blocks * std::ceil(static_cast<double>(p.gemm.desc.num_strips()) / tile.row_groups);
  const double per_sm = std::min<double>(c.ctas, std::ceil(tiles / device.num_sms));
  const double memory = tile.row_groups * RecordGeometry(p.gemm.desc, 2).bytes / kBytesPerCycle * per_sm;
  const double multiply = static_cast<double>(tile.rows()) * tile.tokens * kTileK / multiplies * per_sm;
  const double turns = std::ceil(tiles / (device.num_sms * per_sm));
  return turns * (kStart + static_cast<double>(p.gemm.desc.num_k_tiles()) * (memory + multiply));
}

MoeGemmSm90Choice choose_moe_gemm_sm90(const MoeProblem& p, const DeviceInfo& device, Table<TunedRow> tuned) {
  const WeightDesc& desc = p.gemm.desc;
  return choose<MoeGemmSm90Columns>(p, {desc.n, desc.k, desc.experts, p.expected_rows}, device, tuned,
                                    estimate_moe_gemm_sm90);
}

MoeGemmSm90Params params_moe_gemm_sm90(const MoeGemmSm90Instance& instance, const MoeProblem& p,
                                       const DeviceInfo& device) {
  const MoeGemmSm90Columns& c = instance.columns;
  MoeGemmSm90Params params{};
  params.mainloop = mainloop_params(c, p.gemm, c.tokens, stages_for(c, p, device));
  params.epilogue.dense = epilogue_params(c, p.gemm);
  params.epilogue.scale2_expert_stride = p.gemm.scale2.expert_stride;
  params.epilogue.bias_expert_stride = p.gemm.bias.expert_stride;
  params.epilogue.out_rows = p.out_rows;
  params.epilogue.row_weights = p.gemm.topk_weights;
  params.epilogue.activation = p.gemm.activation;
  params.epilogue.activation_args = p.gemm.activation_args;
  params.rows = p.rows;
  params.expert_bytes = p.gemm.desc.strip_bytes() * p.gemm.desc.num_strips();
  params.x = p.gemm.x;
  params.x_row_bytes = p.gemm.x_row_bytes;
  params.num_ctas = device.num_sms * c.ctas;
  return params;
}

}  // namespace humming
