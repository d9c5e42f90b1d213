// A record of the packed layout to fp32 weights, 64 rows side by side: w[column][row].
//
//   w = (code_value - zero) * scale       integer or no zero point (zero 0, scale 1 where there is none)
//   w = fma(scale, code_value, offset)    float offset
//
// each with one rounding per operation, which is also what decode_packed returns. Symmetric integers are the first form
// with the code itself for a value and 2^(bits - 1) for a zero point, and int1 with 2 code and 1.
#pragma once

#include <cstdint>

#include "core/float_codec.h"
#include "core/math.h"
#include "layout/record.h"
#include "layout/tile_codec.h"
#include "ops/cpu/convert.h"

namespace humming::HUMMING_CPU_NAMESPACE {

inline constexpr int kMaxGroups = kTileK / 16;  // scale groups of a record

inline DType scale_dtype(ScaleType type) {
  switch (type) {
    case ScaleType::bf16: return DType::bf16;
    case ScaleType::fp16: return DType::fp16;
    case ScaleType::e8m0: return DType::e8m0;
    case ScaleType::e4m3: return DType::e4m3;
    case ScaleType::none:
    case ScaleType::fp32: break;
  }
  return DType::fp32;
}

// Scales and zero points (or offsets) of a record as [group][row], prepared with what holds where the record has none.
struct RecordScales {
  alignas(64) float scale[kMaxGroups][kStripRows];
  alignas(64) float zero[kMaxGroups][kStripRows];

  explicit RecordScales(const FormatTraits& format) {
    const float zero_point = format.kind == Kind::symmetric_int ? static_cast<float>(1 << (format.bits - 1)) : 0.0f;
    for (int group = 0; group < kMaxGroups; ++group) {
      for (int row = 0; row < kStripRows; ++row) {
        scale[group][row] = 1.0f;
        zero[group][row] = zero_point;
      }
    }
  }
};

struct RecordReader {
  const FormatTraits* format;
  RecordCodec codec;
  ScaleType scale_type;
  ZeroKind zero;
  int group;  // columns per group

  explicit RecordReader(const WeightDesc& desc)
      : format(&desc.format_traits()),
        codec(*format, desc.order()),
        scale_type(desc.scale_type),
        zero(desc.zero),
        group(desc.group ? desc.group : kTileK) {}

  void load_scales(const uint8_t* record, const RecordGeometry& geometry, RecordScales* out) const {
    alignas(64) float area[kMaxGroups * kStripRows];
    load_floats(scale_dtype(scale_type), record + geometry.scale_offset, 0, geometry.groups * kStripRows, area);
    spread(area, geometry.groups, out->scale);
    const uint8_t* zeros = record + geometry.zero_offset;
    if (zero == ZeroKind::integer) {
      for (int i = 0; i < geometry.zero_groups * kStripRows; ++i) area[i] = static_cast<float>(zeros[i]);
    } else {
      load_floats(scale_dtype(scale_type), zeros, 0, geometry.zero_groups * kStripRows, area);
    }
    spread(area, geometry.zero_groups, out->zero);
  }

  // Columns [begin, begin + columns) of the codes; `columns` divides 64 or is a multiple of it.
  void dequantise(const uint8_t* codes, const RecordScales& scales, int begin, int columns, float* w) const {
    const int step = columns < group ? columns : group;
    for (int column = begin; column < begin + columns; column += step) {
      const float* scale = scales.scale[column / group];
      const float* zero_row = scales.zero[column / group];
      dequantise_group(codes + column * kStripRows, scale, zero_row, step, w + (column - begin) * kStripRows);
    }
  }

 private:
  static void spread(const float* area, int groups, float (*out)[kStripRows]) {
    for (int group_idx = 0; group_idx < groups; ++group_idx) {
      for (int row = 0; row < kStripRows; ++row) {
        out[group_idx][row] = area[RecordGeometry::group_index(row, group_idx, groups)];
      }
    }
  }

  template <class Value>
  void apply(const uint8_t* codes, const float* scale, const float* zero_row, int columns, Value value,
             float* w) const {
    if (zero == ZeroKind::floating) {
      for (int column = 0; column < columns; ++column, codes += kStripRows, w += kStripRows) {
        for (int row = 0; row < kStripRows; ++row) w[row] = math::fma(scale[row], value(codes[row]), zero_row[row]);
      }
    } else {
      for (int column = 0; column < columns; ++column, codes += kStripRows, w += kStripRows) {
        for (int row = 0; row < kStripRows; ++row) w[row] = (value(codes[row]) - zero_row[row]) * scale[row];
      }
    }
  }

  void dequantise_group(const uint8_t* codes, const float* scale, const float* zero_row, int columns, float* w) const {
    if (format->kind == Kind::table) {
      const float* table = format->table;
      return apply(codes, scale, zero_row, columns, [=](uint8_t code) { return table[code]; }, w);
    }
    if (format->kind != Kind::floating) {
      const int doubling = format->id == static_cast<int>(Format::int1);
      return apply(
          codes, scale, zero_row, columns, [=](uint8_t code) { return static_cast<float>(code << doubling); }, w);
    }
    const int mantissa_bits = format->mantissa_bits, bias = format->bias(), sign_shift = 32 - format->bits;
    const uint32_t magnitude_mask = format->magnitude_mask();
    apply(
        codes, scale, zero_row, columns,
        [=](uint8_t code) {
          const float magnitude = codec::widen_magnitude(code & magnitude_mask, mantissa_bits, bias);
          const uint32_t sign = (static_cast<uint32_t>(code) << sign_shift) & 0x80000000;
          return float_from_bits(sign | bits_from_float(magnitude));
        },
        w);
  }
};

}  // namespace humming::HUMMING_CPU_NAMESPACE
