#include "select/gemm_sm90.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "layout/record.h"
#include "mainloop/sm90_tile.h"

namespace humming {
namespace {

constexpr int kMaxStages = 16;
constexpr int kReservedShared = 1024;  // what the system takes of a block's share of an SM
constexpr int kMaxScalarTokens = 64;   // larger tiles store aligned 16-bit vectors only (epilogue/sm90_store.cuh)

Sm90Tile tile_of(const GemmSm90Columns& c) {
  const int value_bytes = order_of(c.operand) == Order::k16 ? 2 : 1;
  return {c.row_groups, c.split_k, c.cluster_k, c.tokens, c.k_tiles, value_bytes, c.mma_patches, c.token_groups};
}

ScaleStorage storage_of(ScaleType type) {
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

bool is_multiple(int64_t value, int64_t of) { return value % of == 0; }

// Whether rows of `out` take 16-byte stores of 8 channels.
bool stores_vectors(const GemmParams& p) {
  const int64_t channels = p.desc.gate_up ? p.desc.n / 2 : p.desc.n;
  return p.out_dtype != DType::fp32 && is_multiple(channels, 8) && is_multiple(p.out_row_stride, 8) &&
         is_multiple(reinterpret_cast<intptr_t>(p.out), 16);
}

// Stages that fit into a CTA's share of an SM; below 2 nothing overlaps. As many for each warpgroup of a split: one
// that waited for a stage after another's turn there could take the turn before for its own, of the same parity,
// because copies may end in another order than they began.
int stages_of(const GemmSm90Columns& c, const GemmParams& p, const DeviceInfo& device) {
  const int limit = std::min(device.shared_per_block, device.shared_per_sm / c.ctas - kReservedShared);
  const Sm90Tile tile = tile_of(c);
  const int record_bytes = RecordGeometry(p.desc, 2).bytes;
  int stages = 0;
  while (stages < kMaxStages && tile.shared_bytes(stages + 1, record_bytes, tile.token_rows(p.rows)) <= limit) ++stages;
  return stages - stages % c.split_k;
}

// Stages of weights to ask for before the grid ahead has ended, two fifths of the ring: more delay the tokens behind
// them by more than they gain.
int early_stages_of(int stages) { return std::max(1, (2 * stages + 2) / 5); }

struct Grid {
  int64_t clusters;  // tiles of the problem
  int num_ctas;      // launched
};

Grid grid_of(const GemmSm90Columns& c, const GemmParams& p, const DeviceInfo& device) {
  const Sm90Tile tile = tile_of(c);
  const int64_t clusters =
      (p.desc.num_strips() + tile.row_groups - 1) / tile.row_groups * ((p.rows + tile.tokens - 1) / tile.tokens);
  const int64_t resident = device.num_sms * c.ctas / tile.cluster_k;
  return {clusters, static_cast<int>((tile.reduces() ? clusters : std::min(clusters, resident)) * tile.cluster_k)};
}

// Rows further from a problem say nothing about it: the product of the two ratios of extents, 2^2.
constexpr double kMaxShapeRatio = 4;

// How far a row is from a problem, the lesser the nearer: shape; token counts below the problem's after all others;
// token count; where weights with other scales have a row of the same place, the faster one.
std::tuple<double, bool, int64_t, float> distance(const TunedRow& row, const GemmParams& p) {
  const auto ratio = [](int64_t a, int64_t b) { return static_cast<double>(std::max(a, b)) / std::min(a, b); };
  return {ratio(row.n, p.desc.n) * ratio(row.k, p.desc.k), row.tokens < p.rows, std::abs(row.tokens - p.rows), row.us};
}

}  // namespace

DType own_dtype(Operand operand) {
  switch (operand) {
    case Operand::bf16: return DType::bf16;
    case Operand::fp16: return DType::fp16;
    case Operand::e4m3: return DType::e4m3;
    case Operand::s8: return DType::int8;
    case Operand::s4: break;
  }
  return DType::int4;
}

GemmParams typical_gemm(const WeightDesc& desc, DType x, int64_t tokens) {
  GemmParams problem{};
  problem.desc = desc;
  problem.x_dtype = x;
  problem.rows = problem.out_rows = tokens;
  problem.x_row_bytes = (desc.k * dtype_bits(x) / 8 + 127) / 128 * 128;
  problem.out_dtype = DType::bf16;
  problem.out_row_stride = problem.out_columns = desc.n;
  return problem;
}

bool is_for(const GemmSm90Instance& instance, const WeightDesc& desc) {
  return instance.columns.format == desc.format && instance.columns.operand == desc.operand;
}

const char* cannot_run(const GemmSm90Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  if (!runs_on(instance.entry.arch, device.capability)) return "is compiled for another GPU";
  const GemmSm90Columns& c = instance.columns;
  const WeightDesc& desc = p.desc;
  const ScaleStorage storage = storage_of(desc.scale_type);
  if (!is_for(instance, desc)) return "is for another format or operand";
  if (desc.experts != 0) return "is for dense weights";
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
  if (!is_multiple(p.x_row_bytes, 16) || !is_multiple(reinterpret_cast<intptr_t>(p.x), 16)) {
    return "needs rows of x that begin at multiples of 16 bytes";
  }
  if (c.tokens > kMaxScalarTokens && !stores_vectors(p)) return "stores aligned 16-bit rows only";
  if (std::max(p.rows, desc.packed_rows()) > INT32_MAX) return "counts rows in 32 bits";
  if (stages_of(c, p, device) < 2) return "does not fit into shared memory";
  return nullptr;
}

// Waves of CTAs, each of which brings its weights from memory and multiplies. Their sum, not the larger: the two
// overlap, but the smaller tile of two that stream alike is the better one.
double estimate_gemm_sm90(const GemmSm90Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  const GemmSm90Columns& c = instance.columns;
  const Sm90Tile tile = tile_of(c);
  constexpr double kBytesPerCycle = 19;                               // an SM's share of the memory bandwidth
  const double multiplies = tile.value_bytes == 2 ? 2048.0 : 4096.0;  // multiply-adds per cycle and SM
  constexpr double kStart = 3000;                                     // launch, first bytes, epilogue
  const double ctas = static_cast<double>(grid_of(c, p, device).clusters) * tile.cluster_k;
  const double per_sm = std::min<double>(c.ctas, std::ceil(ctas / device.num_sms));
  const double waves = std::ceil(ctas / (device.num_sms / tile.cluster_k * tile.cluster_k * per_sm));
  const double share = std::min(1.0, ctas / device.num_sms) * per_sm;  // CTAs that compete for an SM's bandwidth
  const double memory = tile.row_groups * RecordGeometry(p.desc, 2).bytes / kBytesPerCycle * share;
  const double multiply = static_cast<double>(tile.rows()) * tile.tokens * kTileK / multiplies * per_sm;
  const double records = std::ceil(static_cast<double>(p.desc.num_k_tiles()) / tile.cluster_k);
  return waves * (kStart + records * (memory + multiply));
}

GemmSm90Choice choose_gemm_sm90(const GemmParams& p, const DeviceInfo& device, Table<TunedRow> tuned) {
  GemmSm90Choice nearest{}, cheapest{};
  std::tuple<double, bool, int64_t, float> least_distance;
  double least_cycles = 0;
  const Table<GemmSm90Instance> table = instances<GemmSm90Columns>();
  const TunedRow* row = tuned.begin();
  for (int i = 0; i < table.size; ++i) {
    const GemmSm90Instance& instance = table.first[i];
    const bool runs = cannot_run(instance, p, device) == nullptr;
    for (; row != tuned.end() && row->instance == i; ++row) {
      if (!runs) continue;
      const auto to_row = distance(*row, p);
      if (std::get<0>(to_row) > kMaxShapeRatio || (nearest.row != nullptr && to_row >= least_distance)) continue;
      nearest = {&instance, row};
      least_distance = to_row;
    }
    if (!runs) continue;
    const double cycles = estimate_gemm_sm90(instance, p, device);
    if (cheapest.instance != nullptr && cycles >= least_cycles) continue;
    cheapest.instance = &instance;
    least_cycles = cycles;
  }
  return nearest.row != nullptr ? nearest : cheapest;
}

GemmSm90Params params_gemm_sm90(const GemmSm90Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  GemmSm90Params params{};
  const WeightDesc& desc = p.desc;
  const RecordGeometry full(desc, 2), tail(desc, 1);
  Sm90MainloopParams& m = params.mainloop;
  m.packed = p.packed;
  m.strip_bytes = desc.strip_bytes();
  m.num_strips = static_cast<int>(desc.num_strips());
  m.num_k_tiles = static_cast<int>(desc.num_k_tiles());
  m.half_tail = desc.k_tile_halves(desc.num_k_tiles() - 1) == 1;
  m.record_bytes = full.bytes;
  m.tail_codes_bytes = tail.codes_bytes;
  m.tail_scale_bytes = tail.bytes - tail.codes_bytes;
  m.view = {full.groups, full.zero_groups, full.scale_offset, full.zero_offset, desc.scale_type == ScaleType::bf16};
  m.k = desc.k;
  m.tokens = static_cast<int>(p.rows);
  m.token_rows = tile_of(instance.columns).token_rows(p.rows);
  m.stages = stages_of(instance.columns, p, device);
  m.early_stages = early_stages_of(m.stages);
  m.dependent_launch = true;

  EpilogueParams& e = params.epilogue;
  e.out = p.out;
  e.out_dtype = p.out_dtype;
  e.out_row_stride = p.out_row_stride;
  const auto* x_scale = static_cast<const float*>(p.x_scale.data);
  m.token_scales = instance.columns.token_groups ? x_scale : nullptr;
  m.token_scale_stride = p.x_scale.row_stride;
  e.x_scale = instance.columns.token_groups ? nullptr : x_scale;
  e.x_scale_stride = static_cast<int>(p.x_scale.row_stride);
  e.scale2 = p.scale2.data;
  e.scale2_stride = static_cast<int>(p.scale2.row_stride);
  e.bias = p.bias.data;
  e.bias_dtype = p.bias.dtype;
  e.n = static_cast<int>(desc.n);
  e.gate_half = desc.gate_up ? static_cast<int>(desc.n / 2) : 0;
  e.vector = stores_vectors(p);

  params.x = p.x;
  params.x_row_bytes = p.x_row_bytes;
  params.raster = 4;
  params.num_ctas = grid_of(instance.columns, p, device).num_ctas;
  return params;
}

}  // namespace humming
