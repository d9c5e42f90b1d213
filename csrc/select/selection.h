// What selection asks of the instances of every GEMM family: their columns have the same names.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <tuple>

#include "instances/instances.h"
#include "kernel/gemm_params.h"
#include "kernel/params.h"
#include "layout/record.h"
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

// Whether an instance multiplies weights of this format in this operand type.
template <class Columns>
bool is_for(const Instance<Columns>& instance, const WeightDesc& desc) {
  return instance.columns.format == desc.format && instance.columns.operand == desc.operand;
}
inline bool is_for(const Instance<GemmAnyColumns>& instance, const WeightDesc& desc) {
  return instance.columns.operand == desc.operand;
}

inline const WeightDesc& weight_of(const GemmParams& problem) { return problem.desc; }

namespace selection {

inline constexpr int kReservedShared = 1024;  // what the system takes of a block's share of an SM

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

// Why a main loop of an operand does not take these tokens; nullptr if it does. token_groups: its tokens have a scale
// per 128 columns, else at most one.
inline const char* token_mismatch(Operand operand, bool token_groups, const GemmParams& p) {
  if (p.x_dtype != own_dtype(operand)) return "takes x of the operand's own type";
  if (p.x_scale.dtype != DType::fp32) return "takes fp32 scales of x";
  if (p.x_scale.group != (token_groups ? kTileK : 0)) {
    return token_groups ? "takes a scale per token and 128 columns" : "takes one scale per token or tensor";
  }
  if (!is_multiple(p.x_row_bytes, kRowAlign) || !is_multiple(reinterpret_cast<intptr_t>(p.x), kRowAlign)) {
    return "needs rows of x that begin at multiples of 16 bytes";
  }
  return nullptr;
}

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
  return token_mismatch(c.operand, c.token_groups, p);
}

// Where a kernel finds records of so many halves: halves of records that have nothing but codes are records too.
inline PackedRecords packed_records(const GemmParams& p, int halves) {
  const WeightDesc& desc = p.desc;
  const RecordGeometry full(desc, halves), tail(desc, 1);
  const bool half_tail = desc.k_tile_halves(desc.num_k_tiles() - 1) == 1;
  PackedRecords r{};
  r.packed = p.packed;
  r.strip_bytes = desc.strip_bytes();
  r.num_strips = static_cast<int>(desc.num_strips());
  r.num_k_tiles = static_cast<int>(halves == 2 ? desc.num_k_tiles() : 2 * desc.num_k_tiles() - half_tail);
  r.half_tail = halves == 2 && half_tail;
  r.record_bytes = full.bytes;
  r.tail_codes_bytes = tail.codes_bytes;
  r.tail_scale_bytes = tail.bytes - tail.codes_bytes;
  r.view = {full.groups, full.zero_groups, full.scale_offset, full.zero_offset, desc.scale_type == ScaleType::bf16};
  return r;
}

// Extents of a problem, as tuned rows have them.
struct Extents {
  int64_t n, k, experts, tokens;
};

inline double ratio(int64_t a, int64_t b) {
  return static_cast<double>(std::max<int64_t>({a, b, 1})) / static_cast<double>(std::max<int64_t>(std::min(a, b), 1));
}

// With experts, tokens are those of one: tiles are of one expert, and how many experts there are makes no other one
// better.
inline double tokens_of_one(int64_t tokens, int64_t experts) {
  return static_cast<double>(tokens) / static_cast<double>(std::max<int64_t>(experts, 1));
}

// Whether a row says anything about a problem: n times k within 2^2, and not a tile for more than 16 times the tokens.
// For more tokens than any row has, the tile of the most is right.
inline bool is_near(const TunedRow& row, const Extents& p) {
  constexpr double kMaxShapeRatio = 4, kMaxTokenRatio = 16;
  return ratio(row.n, p.n) * ratio(row.k, p.k) <= kMaxShapeRatio &&
         tokens_of_one(row.tokens, row.experts) <= kMaxTokenRatio * std::max(tokens_of_one(p.tokens, p.experts), 1.0);
}

// How far a row is from a problem, the lesser the nearer: shape; token counts below the problem's after all others;
// token count; number of experts; where weights with other scales have a row of the same place, the faster one.
using Distance = std::tuple<double, bool, double, double, float>;

inline Distance distance(const TunedRow& row, const Extents& p) {
  const double there = tokens_of_one(row.tokens, row.experts), here = tokens_of_one(p.tokens, p.experts);
  return {ratio(row.n, p.n) * ratio(row.k, p.k), there < here, std::abs(there - here), ratio(row.experts, p.experts),
          row.us};
}

template <class Columns, class Problem>
Choice<Columns> choose(const Problem& p, const Extents& extents, const DeviceInfo& device, Table<TunedRow> tuned) {
  Choice<Columns> nearest{}, cheapest{};
  Distance least_distance;
  double least_cycles = 0;
  const Table<Instance<Columns>> table = instances<Columns>();
  const TunedRow* row = tuned.begin();
  for (int i = 0; i < table.size; ++i) {
    const Instance<Columns>& instance = table.first[i];
    const bool runs = cannot_run(instance, p, device) == nullptr;
    for (; row != tuned.end() && row->instance == i; ++row) {
      if (!runs || !is_near(*row, extents)) continue;
      const Distance to_row = distance(*row, extents);
      if (nearest.row != nullptr && to_row >= least_distance) continue;
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

// token_groups: whether the main loop takes the scales of tokens.
inline EpilogueParams epilogue_params(const GemmParams& p, bool token_groups) {
  EpilogueParams e{};
  e.out = p.out;
  e.out_dtype = p.out_dtype;
  e.out_row_stride = p.out_row_stride;
  e.x_scale = token_groups ? nullptr : static_cast<const float*>(p.x_scale.data);
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

}  // namespace selection

}  // namespace humming
