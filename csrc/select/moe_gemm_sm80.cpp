#include "select/moe_gemm_sm80.h"

#include <algorithm>
#include <cmath>

#include "select/select_sm80.h"

namespace humming {
using namespace select_sm80;

const char* cannot_run(const MoeGemmSm80Instance& instance, const MoeProblem& p, const DeviceInfo& device) {
  if (!runs_on(instance.entry.arch, device.capability)) return "is compiled for another GPU";
  if (!is_for(instance, p.gemm.desc)) return "is for another format or operand";
  if (const char* reason = mismatch(instance.columns, p.gemm)) return reason;
  if (const char* reason = too_large(p)) return reason;
  if (moe_fit(instance.columns, p, device).stages == 0) return "does not fit into shared memory";
  if (has_nearer_code(instance, device)) return "has code for a nearer GPU";
  return nullptr;
}

// As estimate, of as many tiles as random draws of an expert for every row make.
double estimate(const MoeGemmSm80Instance& instance, const MoeProblem& p, const DeviceInfo& device) {
  const Sm80Tile tile = tile_of(instance.columns);
  constexpr double kFetchRate = 15;                         // bytes per cycle and SM
  const double multiplies = 16 * 1024.0 / tile.value_bits;  // multiply-adds per cycle and SM
  constexpr double kTile = 2500;                            // its table, first bytes, epilogue
  const double rows = std::max<double>(1, static_cast<double>(p.expected_rows));
  const double active = p.rows.experts * -std::expm1(-rows / p.rows.experts);
  const double per_expert = rows / active;
  const double blocks = active * (per_expert <= tile.tokens ? 1 : per_expert / tile.tokens + 0.5);
  const double tiles = blocks * std::ceil(static_cast<double>(p.gemm.desc.num_strips()) / tile.row_groups);
  const double turns = std::max(1.0, tiles / device.num_sms);
  const double tokens = std::min<double>(tile.tokens, per_expert);
  const double fetch =
      (tile.row_groups * RecordGeometry(p.gemm.desc, 2).bytes + tokens * tile.row_bytes()) / kFetchRate;
  const double multiply = static_cast<double>(tile.rows()) * tile.tokens * kTileK / multiplies;
  const double start = kTile / moe_fit(instance.columns, p, device).ctas;  // others work meanwhile
  return turns * (start + static_cast<double>(p.gemm.desc.num_k_tiles()) * (fetch + multiply));
}

MoeGemmSm80Choice choose_moe_gemm_sm80(const MoeProblem& p, const DeviceInfo& device, Table<TunedRow> tuned) {
  const WeightDesc& desc = p.gemm.desc;
  return choose<MoeGemmSm80Columns>(p, {desc.n, desc.k, desc.experts, p.expected_rows}, device, tuned);
}

MoeGemmSm80Params params_of(const MoeGemmSm80Instance& instance, const MoeProblem& p, const DeviceInfo& device) {
  const MoeGemmSm80Columns& c = instance.columns;
  return moe_params<MoeGemmSm80Params>(p, c.token_groups, moe_fit(c, p, device), device);
}

}  // namespace humming
