// What selection asks of the GEMM instances of Ampere and Ada alone, dense and MoE: their columns have the same names.
#pragma once

#include <algorithm>
#include <cstring>

#include "instances/instances.h"
#include "layout/record.h"
#include "mainloop/sm80_params.h"
#include "mainloop/sm80_tile.h"
#include "select/device_info.h"
#include "select/moe_problem.h"
#include "select/selection.h"

namespace humming {

namespace select_sm80 {

using namespace selection;

template <class Columns>
Sm80Tile tile_of(const Columns& c) {
  return {c.row_groups, c.patches, c.split_k, c.tokens, 32 / values_per_register(order_of(c.operand))};
}

// Stages of the ring, and CTAs that a multiprocessor has room for: as many as the instance wants, fewer where not even
// two stages, without which nothing overlaps, would fit beside the others. No stages: not even of one CTA.
struct Fit {
  int ctas, stages;
};

// shared_bytes(stages): of a CTA.
template <class Columns, class SharedBytes>
Fit fit(const Columns& c, const DeviceInfo& device, SharedBytes shared_bytes) {
  for (int ctas = c.ctas; ctas > 0; --ctas) {
    const int limit = std::min(device.shared_per_block, device.shared_per_sm / ctas - kReservedShared);
    int stages = 0;
    while (stages < Sm80Tile::kMaxStages && shared_bytes(stages + 1) <= limit) ++stages;
    if (stages >= 2) return {ctas, stages};
  }
  return {0, 0};
}

// Code for sm_80 runs on sm_89 too, where the same instance may have code of its own.
template <class Columns>
bool has_nearer_code(const Instance<Columns>& instance, const DeviceInfo& device) {
  for (const Instance<Columns>& other : instances<Columns>()) {
    if (other.entry.arch > instance.entry.arch && runs_on(other.entry.arch, device.capability) &&
        std::strcmp(other.entry.name, instance.entry.name) == 0) {
      return true;
    }
  }
  return false;
}

// token_groups: as of epilogue_params.
inline Sm80MainloopParams mainloop_params(const GemmParams& p, bool token_groups, int stages) {
  Sm80MainloopParams m{};
  static_cast<PackedRecords&>(m) = packed_records(p, 2);
  m.x = static_cast<const uint8_t*>(p.x);
  m.x_row_bytes = p.x_row_bytes;
  m.x_bytes = (p.desc.k * dtype_bits(p.x_dtype) + 7) / 8;
  m.tokens = static_cast<int>(p.rows);
  m.token_scales = token_groups ? static_cast<const float*>(p.x_scale.data) : nullptr;
  m.token_scale_stride = p.x_scale.row_stride;
  m.stages = stages;
  return m;
}

// Of a product with experts.
template <class Columns>
Fit moe_fit(const Columns& c, const MoeProblem& p, const DeviceInfo& device) {
  const int record_bytes = RecordGeometry(p.gemm.desc, 2).bytes;
  return fit(c, device, [&](int stages) { return moe_shared_bytes(tile_of(c), stages, record_bytes, p.rows.experts); });
}

// All but the main loop's.
template <class Params>
Params moe_params(const MoeProblem& p, bool token_groups, const Fit& fit, const DeviceInfo& device) {
  Params params{};
  static_cast<Sm80MainloopParams&>(params.mainloop) = mainloop_params(p.gemm, token_groups, fit.stages);
  params.epilogue = moe_epilogue(p, epilogue_params(p.gemm, token_groups));
  params.rows = p.rows;
  params.expert_bytes = p.gemm.desc.strip_bytes() * p.gemm.desc.num_strips();
  params.num_ctas = device.num_sms * fit.ctas;
  return params;
}

}  // namespace select_sm80

}  // namespace humming
