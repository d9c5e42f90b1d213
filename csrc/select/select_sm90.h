// What selection asks of Hopper's GEMM instances, dense and MoE: their columns have the same names.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <tuple>
#include <type_traits>

#include "instances/instances.h"
#include "kernel/gemm_params.h"
#include "kernel/params.h"
#include "layout/record.h"
#include "mainloop/sm90_tile.h"
#include "select/choice.h"
#include "select/device_info.h"

namespace humming {

// The type of x that an operand multiplies without widening.
inline DType own_dtype(Operand operand) {
  switch (operand) {
    case Operand::bf16: return DType::bf16;
    case Operand::fp16: return DType::fp16;
    case Operand::e4m3: return DType::e4m3;
    case Operand::s8: return DType::int8;
    case Operand::s4: break;
  }
  return DType::int4;
}

namespace select_sm90 {

inline constexpr int kMaxStages = 16;
inline constexpr int kReservedShared = 1024;  // what the system takes of a block's share of an SM

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

inline ScaleStorage storage_of(ScaleType type) {
  switch (type) {
    case ScaleType::none: return ScaleStorage::none;
    case ScaleType::bf16:
    case ScaleType::fp16: return ScaleStorage::half;
    case ScaleType::fp32: return ScaleStorage::fp32;
    case ScaleType::e8m0: return ScaleStorage::e8m0;
    case ScaleType::e4m3: return ScaleStorage::e4m3;
  }
  return ScaleStorage::none;
}

inline constexpr int kRowAlign = 16;  // bytes, of rows of x
inline bool is_multiple(int64_t value, int64_t of) { return value % of == 0; }

// Whether rows of `out` take 16-byte stores of 8 channels, with their bytes counted in 32 bits.
inline bool stores_vectors(const GemmParams& p) {
  const int64_t channels = p.desc.gate_up ? p.desc.n / 2 : p.desc.n;
  return p.out_dtype != DType::fp32 && is_multiple(channels, 8) && is_multiple(p.out_row_stride, 8) &&
         2 * p.out_row_stride <= UINT32_MAX && is_multiple(reinterpret_cast<intptr_t>(p.out), 16);
}

// Why an instance does not multiply these weights, tokens and scales; nullptr if it does.
template <class Columns>
const char* mismatch(const Columns& c, const GemmParams& p) {
  const WeightDesc& desc = p.desc;
  const ScaleStorage storage = storage_of(desc.scale_type);
  if (c.zero != desc.zero) return "is for another kind of zero point";
  if (c.scale_storage != storage) return "is for other scale types";
  if (storage != ScaleStorage::none &&
      (serves_coarser(storage, c.group) ? desc.group < c.group : desc.group != c.group)) {
    return "is for other groups";
  }
  if (p.x_dtype != own_dtype(c.operand)) return "takes x of the operand's own type";
  if (p.x_scale.dtype != DType::fp32) return "takes fp32 scales of x";
  if (p.x_scale.group != (c.token_groups ? kTileK : 0)) {
    return c.token_groups ? "takes a scale per token and 128 columns" : "takes one scale per token or tensor";
  }
  if (!is_multiple(p.x_row_bytes, kRowAlign) || !is_multiple(reinterpret_cast<intptr_t>(p.x), kRowAlign)) {
    return "needs rows of x that begin at multiples of 16 bytes";
  }
  return nullptr;
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
  const int halves = tile_of(c).record_halves();
  const RecordGeometry full(desc, halves), tail(desc, 1);
  const bool half_tail = desc.k_tile_halves(desc.num_k_tiles() - 1) == 1;
  Sm90MainloopParams m{};
  m.packed = p.packed;
  m.strip_bytes = desc.strip_bytes();
  m.num_strips = static_cast<int>(desc.num_strips());
  m.num_k_tiles = static_cast<int>(halves == 2 ? desc.num_k_tiles() : 2 * desc.num_k_tiles() - half_tail);
  m.half_tail = halves == 2 && half_tail;
  m.record_bytes = full.bytes;
  m.tail_codes_bytes = tail.codes_bytes;
  m.tail_scale_bytes = tail.bytes - tail.codes_bytes;
  m.view = {full.groups, full.zero_groups, full.scale_offset, full.zero_offset, desc.scale_type == ScaleType::bf16};
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

// Extents of a problem, as tuned rows have them.
struct Extents {
  int64_t n, k, experts, tokens;
};

// Rows further from a problem say nothing about it: the product of the ratios of extents, 2^2.
inline constexpr double kMaxShapeRatio = 4;

// How far a row is from a problem, the lesser the nearer: shape; token counts below the problem's after all others;
// token count; where weights with other scales have a row of the same place, the faster one.
inline std::tuple<double, bool, int64_t, float> distance(const TunedRow& row, const Extents& p) {
  const auto ratio = [](int64_t a, int64_t b) {
    return static_cast<double>(std::max<int64_t>({a, b, 1})) / std::max<int64_t>(std::min(a, b), 1);
  };
  return {ratio(row.n, p.n) * ratio(row.k, p.k) * ratio(row.experts, p.experts), row.tokens < p.tokens,
          std::abs(row.tokens - p.tokens), row.us};
}

template <class Columns, class Problem, class Estimate>
Choice<Columns> choose(const Problem& p, const Extents& extents, const DeviceInfo& device, Table<TunedRow> tuned,
                       Estimate estimate) {
  Choice<Columns> nearest{}, cheapest{};
  std::tuple<double, bool, int64_t, float> least_distance;
  double least_cycles = 0;
  const Table<Instance<Columns>> table = instances<Columns>();
  const TunedRow* row = tuned.begin();
  for (int i = 0; i < table.size; ++i) {
    const Instance<Columns>& instance = table.first[i];
    const bool runs = cannot_run(instance, p, device) == nullptr;
    for (; row != tuned.end() && row->instance == i; ++row) {
      if (!runs) continue;
      const auto to_row = distance(*row, extents);
      if (std::get<0>(to_row) > kMaxShapeRatio || (nearest.row != nullptr && to_row >= least_distance)) continue;
      nearest = {&instance, row};
      least_distance = to_row;
    }
    if (!runs) continue;
    const double cycles = estimate(instance, p, device);
    if (cheapest.instance != nullptr && cycles >= least_cycles) continue;
    cheapest.instance = &instance;
    least_cycles = cycles;
  }
  return nearest.row != nullptr ? nearest : cheapest;
}

template <class Columns>
EpilogueParams epilogue_params(const Columns& c, const GemmParams& p) {
  EpilogueParams e{};
  e.out = p.out;
  e.out_dtype = p.out_dtype;
  e.out_row_stride = p.out_row_stride;
  e.x_scale = c.token_groups ? nullptr : static_cast<const float*>(p.x_scale.data);
  e.x_scale_stride = static_cast<int>(p.x_scale.row_stride);
  e.scale2 = p.scale2.data;
  e.scale2_stride = static_cast<int>(p.scale2.row_stride);
  e.bias = p.bias.data;
  e.bias_dtype = p.bias.dtype;
  e.n = static_cast<int>(p.desc.n);
  e.gate_half = p.desc.gate_up ? static_cast<int>(p.desc.n / 2) : 0;
  e.vector = stores_vectors(p);
  return e;
}

}  // namespace select_sm90

}  // namespace humming
