#include "select/gemm_sm90.h"

#include <algorithm>
#include <cmath>

#include "select/rows.h"
#include "select/select_sm90.h"

namespace humming {
namespace {

using namespace select_sm90;

constexpr int kMaxScalarTokens = 64;  // larger tiles store aligned 16-bit vectors only (epilogue/sm90_store.cuh)

int stages_for(const GemmSm90Columns& c, const GemmParams& p, const DeviceInfo& device) {
  const Sm90Tile tile = tile_of(c);
  const int record_bytes = record_bytes_of(c, p.desc);
  return stages_of(c, device,
                   [&](int stages) { return tile.shared_bytes(stages, record_bytes, tile.token_rows(p.rows)); });
}

struct Grid {
  int64_t clusters;  // tiles of the problem
  int num_ctas;      // launched
};

Grid grid_of(const GemmSm90Columns& c, const GemmParams& p, const DeviceInfo& device) {
  const Sm90Tile tile = tile_of(c);
  const int strips = tile.row_groups * tile.cluster_rows();
  const int64_t clusters = (p.desc.num_strips() + strips - 1) / strips * ((p.rows + tile.tokens - 1) / tile.tokens);
  const int64_t resident = device.num_sms * c.ctas / tile.cluster();
  return {clusters, static_cast<int>((tile.reduces() ? clusters : std::min(clusters, resident)) * tile.cluster())};
}

}  // namespace

GemmParams typical_gemm(const WeightDesc& desc, DType x, int64_t tokens) {
  GemmParams problem{};
  problem.desc = desc;
  problem.x_dtype = x;
  problem.rows = problem.out_rows = tokens;
  problem.x_row_bytes = (desc.k * dtype_bits(x) / 8 + 127) / 128 * 128;
  problem.out_dtype = DType::bf16;
  problem.out_row_stride = problem.out_columns = desc.n;
  return reads_copies(problem) ? of_copies(problem, nullptr) : problem;
}

const char* cannot_run(const GemmSm90Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  if (!runs_on(instance.entry.arch, device.capability)) return "is compiled for another GPU";
  if (!is_for(instance, p.desc)) return "is for another format or operand";
  if (p.desc.experts != 0) return "is for dense weights";
  if (const char* reason = mismatch(instance.columns, p)) return reason;
  if (instance.columns.tokens > kMaxScalarTokens && !stores_vectors(p)) return "stores aligned 16-bit rows only";
  if (std::max(p.rows, p.desc.packed_rows()) > INT32_MAX) return "counts rows in 32 bits";
  if (stages_for(instance.columns, p, device) < 2) return "does not fit into shared memory";
  return nullptr;
}

// Waves of CTAs, each of which brings its weights from memory and multiplies. Their sum, not the larger: the two
// overlap, but the smaller tile of two that stream alike is the better one.
double estimate(const GemmSm90Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  const GemmSm90Columns& c = instance.columns;
  const Sm90Tile tile = tile_of(c);
  constexpr double kBytesPerCycle = 19;                               // an SM's share of the memory bandwidth
  const double multiplies = tile.value_bytes == 2 ? 2048.0 : 4096.0;  // multiply-adds per cycle and SM
  constexpr double kStart = 3000;                                     // launch, first bytes, epilogue
  const double ctas = static_cast<double>(grid_of(c, p, device).clusters) * tile.cluster();
  const double per_sm = std::min<double>(c.ctas, std::ceil(ctas / device.num_sms));
  const double waves = std::ceil(ctas / (device.num_sms / tile.cluster() * tile.cluster() * per_sm));
  const double share = std::min(1.0, ctas / device.num_sms) * per_sm;  // CTAs that compete for an SM's bandwidth
  const double memory = tile.row_groups * RecordGeometry(p.desc, 2).bytes / kBytesPerCycle * share;
  const double multiply = static_cast<double>(tile.rows()) * tile.tokens * kTileK / multiplies * per_sm;
  const double records = std::ceil(static_cast<double>(p.desc.num_k_tiles()) / tile.cluster_k);
  return waves * (kStart + records * (memory + multiply));
}

GemmSm90Choice choose_gemm_sm90(const GemmParams& p, const DeviceInfo& device, Table<TunedRow> tuned) {
  return choose<GemmSm90Columns>(p, {p.desc.n, p.desc.k, 0, p.rows}, device, tuned);
}

GemmSm90Params params_of(const GemmSm90Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  const GemmSm90Columns& c = instance.columns;
  GemmSm90Params params{};
  params.mainloop = mainloop_params(c, p, p.rows, stages_for(c, p, device));
  params.epilogue = epilogue_params(p, c.token_groups);
  params.x = p.x;
  params.x_row_bytes = p.x_row_bytes;
  params.raster = 4;
  params.num_ctas = grid_of(c, p, device).num_ctas;
  return params;
}

}  // namespace humming
