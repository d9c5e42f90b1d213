// The quantised matrix product for one strip of 64 packed weight rows and a list of token rows.
//
//   acc[token][row] = 0                           tokens x 64, fp32
//   for each record (128 columns of K)            codes[column][row]  128 x 64
//     x tile to fp32                              x[token][column]    tokens x 128
//     for each half: w[column][row], 64 x 64;     acc += x w
//   epilogue, store
//
// Integer operands: products and sums of one record are exact in fp32 (|w|, |x| <= 128, and 128 products stay below
// 2^24); they are added as int32, or with group scales promoted by an fma with w_scale * x_scale.
#include "ops/cpu/convert.h"
#include "ops/cpu/dequant.h"
#include "ops/cpu/epilogue.h"
#include "ops/cpu/kernel_set.h"
#include "ops/cpu/multiply.h"

namespace humming::HUMMING_CPU_NAMESPACE {
namespace {

// How the sum over a record joins the sum over K.
enum class Accumulation { in_place, int32_sum, promoted };

struct Tile {
  alignas(64) float acc[kMaxGemmRows][kStripRows];
  alignas(64) float partial[kMaxGemmRows][kStripRows];
  alignas(64) int32_t integer[kMaxGemmRows][kStripRows];
  alignas(64) float x[kMaxGemmRows][kTileK];
  alignas(64) float w[kHalfK][kStripRows];
  alignas(64) uint8_t codes[kTileK * kStripRows];
  RecordScales scales;

  explicit Tile(const FormatTraits& format) : scales(format) {}
};

int64_t pair_at(const GemmRows& rows, int64_t index) { return rows.ids ? rows.ids[index] : rows.first + index; }

float x_scale_at(const XScaleView& view, int64_t row, int64_t group) {
  if (!view.data) return 1.0f;
  return load_float(view.dtype, view.data, row * view.row_stride + group * view.group_stride);
}

// Columns [begin, begin + count) of x row `row`, zeros up to the end of the record; with `scaled`, times the scales of
// its groups.
void load_x(const GemmParams& params, int64_t row, int64_t begin, int64_t count, bool scaled, float* out) {
  const void* from = static_cast<const uint8_t*>(params.x) + row * params.x_row_bytes;
  load_floats(params.x_dtype, from, begin, count, out);
  for (int64_t i = count; i < kTileK; ++i) out[i] = 0;
  if (!scaled) return;
  const int64_t group = params.x_scale.group;
  for (int64_t first = 0; first < count; first += group) {
    const float scale = x_scale_at(params.x_scale, row, (begin + first) / group);
    for (int64_t i = first; i < first + group; ++i) out[i] *= scale;
  }
}

template <class T>
void clear(T (*rows)[kStripRows], int64_t count) {
  __builtin_memset(rows, 0, static_cast<size_t>(count) * sizeof *rows);
}

}  // namespace

void gemm(const GemmParams& params, const GemmRows& rows, int64_t strip) {
  const WeightDesc& desc = params.desc;
  const RecordReader reader(desc);
  const XScaleView& x_scale = params.x_scale;
  const bool integer = desc.operand == Operand::s8 || desc.operand == Operand::s4;
  const bool grouped_x = x_scale.data && x_scale.group;
  const Accumulation accumulation = !integer                  ? Accumulation::in_place
                                    : desc.group || grouped_x ? Accumulation::promoted
                                                              : Accumulation::int32_sum;
  const uint8_t* strip_data = params.packed + rows.expert * desc.expert_bytes() + strip * desc.strip_bytes();

  const int64_t tokens = rows.count;
  Tile tile(*reader.format);
  clear(tile.acc, tokens);
  if (accumulation == Accumulation::int32_sum) clear(tile.integer, tokens);
  for (int64_t k_tile = 0; k_tile < desc.num_k_tiles(); ++k_tile) {
    const int halves = desc.k_tile_halves(k_tile);
    const RecordGeometry geometry(desc, halves);
    const uint8_t* record = strip_data + desc.record_offset(k_tile);
    reader.codec.decode(record, halves, tile.codes);
    reader.load_scales(record, geometry, &tile.scales);
    alignas(64) float group_scale[kStripRows];
    if (accumulation == Accumulation::promoted) {
      // The scale (one group of 128, or none) goes to the sum, not to the weight.
      for (int row = 0; row < kStripRows; ++row) {
        group_scale[row] = tile.scales.scale[0][row];
        tile.scales.scale[0][row] = 1.0f;
      }
    }

    const int64_t begin = k_tile * kTileK;
    const int64_t columns = desc.k - begin < kTileK ? desc.k - begin : kTileK;
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t row = pair_at(rows, t) / rows.top_k;
      load_x(params, row, begin, columns, grouped_x && !integer, tile.x[t]);
    }
    float (*sums)[kStripRows] = integer ? tile.partial : tile.acc;
    if (integer) clear(sums, tokens);
    for (int half = 0; half < halves; ++half) {
      reader.dequantise(tile.codes, tile.scales, half * kHalfK, kHalfK, tile.w[0]);
      multiply(tile.x[0] + half * kHalfK, kTileK, tile.w[0], static_cast<int>(tokens), sums[0]);
    }

    if (accumulation == Accumulation::int32_sum) {
      for (int64_t t = 0; t < tokens; ++t) {
        for (int row = 0; row < kStripRows; ++row) tile.integer[t][row] += static_cast<int32_t>(sums[t][row]);
      }
    } else if (accumulation == Accumulation::promoted) {
      for (int64_t t = 0; t < tokens; ++t) {
        const float token_scale =
            grouped_x ? x_scale_at(x_scale, pair_at(rows, t) / rows.top_k, begin / x_scale.group) : 1.0f;
        for (int row = 0; row < kStripRows; ++row) {
          tile.acc[t][row] = math::fma(sums[t][row], group_scale[row] * token_scale, tile.acc[t][row]);
        }
      }
    }
  }

  const StripEpilogue epilogue(params, rows.expert, strip);
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t pair = pair_at(rows, t);
    if (accumulation == Accumulation::int32_sum) {
      for (int row = 0; row < kStripRows; ++row) tile.acc[t][row] = static_cast<float>(tile.integer[t][row]);
    }
    epilogue.store(tile.acc[t], grouped_x ? 1.0f : x_scale_at(x_scale, pair / rows.top_k, 0),
                   params.topk_weights ? params.topk_weights[pair] : 1.0f, rows.in_order ? rows.first + t : pair);
  }
}

}  // namespace humming::HUMMING_CPU_NAMESPACE
