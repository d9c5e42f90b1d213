#include "select/moe_gemm_sm90.h"

#include <algorithm>
#include <cmath>

#include "select/select_sm90.h"

namespace humming {
namespace {

using namespace select_sm90;

// Of weights, per SM, to ask for before the grid ahead has ended: as many as hide a copy's latency. What that grid
// still reads and writes queues behind them.
constexpr int kEarlyBytes = 32 << 10;

// Tokens in shared memory are those of a whole tile: a block may end anywhere in x.
int stages_for(const MoeGemmSm90Columns& c, const MoeProblem& p, const DeviceInfo& device) {
  const int record_bytes = record_bytes_of(c, p.gemm.desc);
  return stages_of(c, device,
                   [&](int stages) { return moe_shared_bytes(tile_of(c), stages, record_bytes, p.rows.experts); });
}

}  // namespace

const char* cannot_run(const MoeGemmSm90Instance& instance, const MoeProblem& p, const DeviceInfo& device) {
  if (!runs_on(instance.entry.arch, device.capability)) return "is compiled for another GPU";
  if (!is_for(instance, p.gemm.desc)) return "is for another format or operand";
  if (const char* reason = mismatch(instance.columns, p.gemm)) return reason;
  if (const char* reason = too_large(p)) return reason;
  if (stages_for(instance.columns, p, device) < 2) return "does not fit into shared memory";
  return nullptr;
}

// Rows are taken for random draws of an expert. A record (64 rows x 128 columns) takes what its bytes do, or its
// dequantisation and its MMAs, which share the SM's issue slots; too few warps cannot fill them. The constants are a
// fit to instances of every shape, 16 % off on average; tuned rows come first.
double estimate(const MoeGemmSm90Instance& instance, const MoeProblem& p, const DeviceInfo& device) {
  const MoeGemmSm90Columns& c = instance.columns;
  const Sm90Tile tile = tile_of(c);
  constexpr double kBytesPerCycle = 19;  // an SM's share of the memory bandwidth
  constexpr double kTile = 600;          // what a tile takes beside its records
  constexpr double kBusyWarps = 12;
  const bool wide = tile.value_bytes == 2;
  const double dequantise = tile.mma_patches > 0 ? 170 : wide ? 240 : 210;
  const double rows = std::max<double>(1, static_cast<double>(p.expected_rows));
  const double active = p.rows.experts * -std::expm1(-rows / p.rows.experts);
  const double per_expert = rows / active;
  const double blocks = active * (per_expert <= tile.tokens ? 1 : per_expert / tile.tokens + 0.5);
  int width = tile.first_width();
  while (width < tile.tokens && width < rows / blocks) width = tile.next_width(width);
  const double multiply = (wide ? 2.7 : 2.0) * width;
  const double tiles = blocks * std::ceil(static_cast<double>(p.gemm.desc.num_strips()) / tile.row_groups);
  const double per_sm = std::clamp<double>(tiles / device.num_sms, 1, c.ctas);
  const double warps = 4 * tile.consumer_groups() * per_sm;
  const double record = std::max(RecordGeometry(p.gemm.desc, 2).bytes / kBytesPerCycle, dequantise + multiply) *
                        std::max(1.0, kBusyWarps / warps);
  const double turns = std::max(1.0, tiles / (device.num_sms * per_sm));
  return turns * per_sm * (tile.row_groups * static_cast<double>(p.gemm.desc.num_k_tiles()) * record + kTile);
}

MoeGemmSm90Choice choose_moe_gemm_sm90(const MoeProblem& p, const DeviceInfo& device, Table<TunedRow> tuned) {
  const WeightDesc& desc = p.gemm.desc;
  return choose<MoeGemmSm90Columns>(p, {desc.n, desc.k, desc.experts, p.expected_rows}, device, tuned);
}

MoeGemmSm90Params params_of(const MoeGemmSm90Instance& instance, const MoeProblem& p, const DeviceInfo& device) {
  const MoeGemmSm90Columns& c = instance.columns;
  MoeGemmSm90Params params{};
  params.mainloop = mainloop_params(c, p.gemm, c.tokens, stages_for(c, p, device));
  params.mainloop.gathers_tokens = p.gathers();
  params.epilogue = moe_epilogue(p, epilogue_params(p.gemm, c.token_groups));
  params.rows = p.rows;
  params.expert_bytes = p.gemm.desc.strip_bytes() * p.gemm.desc.num_strips();
  params.x = p.gemm.x;
  params.x_row_bytes = p.gemm.x_row_bytes;
  params.num_ctas = device.num_sms * c.ctas;
  params.known_routing = p.known_routing;
  params.early_stages = std::max(1, kEarlyBytes / c.ctas / tile_of(c).weight_stage_bytes(params.mainloop.record_bytes));
  return params;
}

}  // namespace humming
