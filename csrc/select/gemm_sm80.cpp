#include "select/gemm_sm80.h"

#include <algorithm>
#include <cmath>

#include "select/select_sm80.h"

namespace humming {
namespace {

using namespace select_sm80;

constexpr int kRaster = 4;           // token tiles in a row of the grid
constexpr int kMaxGridRows = 65535;  // CUDA's limit

Fit fit_of(const GemmSm80Columns& c, const WeightDesc& desc, const DeviceInfo& device) {
  const int record_bytes = RecordGeometry(desc, 2).bytes;
  return fit(c, device, [&](int stages) { return tile_of(c).shared_bytes(stages, record_bytes); });
}

struct Tiles {
  int64_t row, token;
};

Tiles tiles_of(const GemmSm80Columns& c, const GemmParams& p) {
  return {(p.desc.num_strips() + c.row_groups - 1) / c.row_groups, (p.rows + c.tokens - 1) / c.tokens};
}

}  // namespace

const char* cannot_run(const GemmSm80Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  if (!runs_on(instance.entry.arch, device.capability)) return "is compiled for another GPU";
  if (!is_for(instance, p.desc)) return "is for another format or operand";
  if (p.desc.experts != 0) return "is for dense weights";
  if (const char* reason = mismatch(instance.columns, p)) return reason;
  if (std::max(p.rows, p.desc.packed_rows()) > INT32_MAX) return "counts rows in 32 bits";
  if (fit_of(instance.columns, p.desc, device).stages == 0) return "does not fit into shared memory";
  if (has_nearer_code(instance, device)) return "has code for a nearer GPU";
  return nullptr;
}

// What the busiest multiprocessor does, with the rates of an A100: it fetches its tiles, unless memory is slower for
// all of them together, and multiplies. Their sum, not the larger: the two overlap, but the smaller tile of two that
// stream alike is the better one.
double estimate(const GemmSm80Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  const GemmSm80Columns& c = instance.columns;
  const Sm80Tile tile = tile_of(c);
  constexpr double kMemoryRate = 10, kFetchRate = 25;       // bytes per cycle and SM, from memory and from L2
  const double multiplies = 16 * 1024.0 / tile.value_bits;  // multiply-adds per cycle and SM
  constexpr double kStart = 3000;                           // launch, first bytes, epilogue
  const Tiles tiles = tiles_of(c, p);
  const double busiest = std::ceil(static_cast<double>(tiles.row) * static_cast<double>(tiles.token) / device.num_sms);
  const double records = static_cast<double>(p.desc.num_k_tiles());
  const double tokens = static_cast<double>(std::min<int64_t>(tile.tokens, p.rows));
  const double bytes = tile.row_groups * RecordGeometry(p.desc, 2).bytes + tokens * tile.row_bytes();
  const double memory = static_cast<double>(p.desc.packed_bytes()) / (kMemoryRate * device.num_sms);
  const double fetch = busiest * records * bytes / kFetchRate;
  const double multiply = busiest * records * tile.rows() * tile.tokens * kTileK / multiplies;
  const double waves = std::ceil(busiest / fit_of(c, p.desc, device).ctas);
  return waves * kStart + std::max(memory, fetch) + multiply;
}

GemmSm80Choice choose_gemm_sm80(const GemmParams& p, const DeviceInfo& device, Table<TunedRow> tuned) {
  return choose<GemmSm80Columns>(p, {p.desc.n, p.desc.k, 0, p.rows}, device, tuned);
}

GemmSm80Params params_of(const GemmSm80Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  const GemmSm80Columns& c = instance.columns;
  const Tiles tiles = tiles_of(c, p);
  GemmSm80Params params{};
  params.mainloop = mainloop_params(p, c.token_groups, fit_of(c, p.desc, device).stages);
  params.epilogue = epilogue_params(p, c.token_groups);
  params.raster = static_cast<int>(
      std::max(std::min<int64_t>(kRaster, tiles.token), (tiles.token + kMaxGridRows - 1) / kMaxGridRows));
  params.grid_x = static_cast<int>(tiles.row * params.raster);
  params.grid_y = static_cast<int>((tiles.token + params.raster - 1) / params.raster);
  return params;
}

}  // namespace humming
