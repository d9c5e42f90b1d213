// What selection asks of Hopper's GEMM instances alone, dense and MoE: their columns have the same names.
#pragma once

#include <algorithm>
#include <type_traits>

#include "instances/instances.h"
#include "kernel/gemm_params.h"
#include "kernel/params.h"
#include "layout/record.h"
#include "mainloop/sm90_tile.h"
#include "select/device_info.h"
#include "select/selection.h"

namespace humming {

namespace select_sm90 {

using namespace selection;

inline constexpr int kMaxStages = 16;

template <class Columns>
Sm90Tile tile_of(const Columns& c) {
  Sm90Tile tile{};
  tile.row_groups = c.row_groups;
  tile.split_k = c.split_k;
  tile.cluster_k = c.cluster_k;
  tile.tokens = c.tokens;
  tile.k_tiles = c.k_tiles;
  tile.value_bytes = order_of(c.operand) == Order::k16 ? 2 : 1;
  tile.mma_patches = c.mma_patches;
  tile.token_groups = c.token_groups;
  if constexpr (std::is_same_v<Columns, GemmSm90Columns>) {
    tile.multicast = c.multicast;
    tile.half_records = c.half_records;
  } else {
    tile.two_strips = c.two_strips;
  }
  return tile;
}

// Bytes of a record in the ring.
template <class Columns>
int record_bytes_of(const Columns& c, const WeightDesc& desc) {
  return RecordGeometry(desc, tile_of(c).record_halves()).bytes;
}

// Stages that fit into a CTA's share of an SM, where `shared_bytes` says what a number of them takes; below 2 nothing
// overlaps. As many for each warpgroup of a split: one that waited for a stage after another's turn there could take
// the turn before for its own, of the same parity, because copies may end in another order than they began.
template <class Columns, class SharedBytes>
int stages_of(const Columns& c, const DeviceInfo& device, SharedBytes shared_bytes) {
  const int limit = std::min(device.shared_per_block, device.shared_per_sm / c.ctas - kReservedShared);
  int stages = 0;
  while (stages < kMaxStages && shared_bytes(stages + 1) <= limit) ++stages;
  return stages - stages % c.split_k;
}

// Stages of weights to ask for before the grid ahead has ended, two fifths of the ring: more delay the tokens behind
// them by more than they gain.
inline int early_stages_of(int stages) { return std::max(1, (2 * stages + 2) / 5); }

template <class Columns>
Sm90MainloopParams mainloop_params(const Columns& c, const GemmParams& p, int64_t rows, int stages) {
  const WeightDesc& desc = p.desc;
  Sm90MainloopParams m{};
  static_cast<PackedRecords&>(m) = packed_records(p, tile_of(c).record_halves());
  m.k = desc.k;
  m.tokens = static_cast<int>(p.rows);
  m.token_rows = tile_of(c).token_rows(rows);
  m.stages = stages;
  m.early_stages = early_stages_of(stages);
  m.token_scales = c.token_groups ? static_cast<const float*>(p.x_scale.data) : nullptr;
  m.token_scale_stride = p.x_scale.row_stride;
  m.dependent_launch = true;
  return m;
}

}  // namespace select_sm90

}  // namespace humming
