// What lives in csrc/layout: where every bit of a packed weight lies, both directions, and the layout's version. What
// may not: kernels, ops, CUDA headers, torch. docs/weight_layout.md draws it.
//
// This file: the weight descriptor, all that an op must know of a packed weight, as the `int[] desc` of the op schemas.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "formats/format.h"
#include "layout/word_codec.h"

namespace humming {

// Version of the packed layout (word_codec.h, record.h). Any change of a byte's meaning needs a new number.
inline constexpr int64_t kLayoutVersion = 4;

inline constexpr int kStripRows = 64;  // packed rows of a record
inline constexpr int kTileK = 128;     // columns of a full record; the tail record may have half of them
inline constexpr int kHalfK = 64;

// Type of the group scales inside the records. Stored in descriptors: never renumber.
enum class ScaleType : int { none = 0, fp32 = 1, bf16 = 2, fp16 = 3, e8m0 = 4, e4m3 = 5 };
// What lies beside the scales: an integer zero point (one byte), or a float offset of the scales' type.
enum class ZeroKind : int { none = 0, integer = 1, floating = 2 };

constexpr int scale_bytes(ScaleType type) {
  switch (type) {
    case ScaleType::fp32: return 4;
    case ScaleType::bf16:
    case ScaleType::fp16: return 2;
    case ScaleType::e8m0:
    case ScaleType::e4m3: return 1;
    case ScaleType::none: break;
  }
  return 0;
}

struct WeightDesc {
  Format format;
  Operand operand;
  int64_t n;        // logical output channels; with gate_up gate and up together
  int64_t k;        // logical input channels
  int64_t experts;  // 0: a dense weight, packed as [strips, strip_bytes]
  ScaleType scale_type;
  int group;  // columns per group scale: 16, 32, 64 or 128; 0: no group scales
  ZeroKind zero;
  bool gate_up;  // rows of gate and up are interleaved in blocks of 8

  static constexpr size_t kInts = 10;

  // Reads and checks the ten integers {layout version, format, operand, n, k, experts, scale type, group, zero,
  // gate_up}. Throws std::runtime_error naming the field, its value and what is legal.
  static WeightDesc parse(const int64_t* ints, size_t count);

  const FormatTraits& format_traits() const { return traits(format); }
  Order order() const { return order_of(operand); }

  // Rows. gate_up pads gate and up separately: the packed rows of a 16-row patch are 8 gate rows, then their 8 up rows.
  int64_t packed_rows() const {
    const int64_t rows = gate_up ? 2 * ((n / 2 + 7) / 8 * 8) : n;
    return (rows + kStripRows - 1) / kStripRows * kStripRows;
  }
  int64_t num_strips() const { return packed_rows() / kStripRows; }
  // Packed row of logical channel `channel` (gate_up: [gate; up]), and back; -1 for a padding row.
  HUMMING_HD int64_t packed_row(int64_t channel) const {
    if (!gate_up) return channel;
    const int64_t up = channel >= n / 2;
    const int64_t index = channel - up * (n / 2);
    return index / 8 * 16 + index % 8 + 8 * up;
  }
  HUMMING_HD int64_t logical_row(int64_t packed_row) const {
    if (!gate_up) return packed_row < n ? packed_row : -1;
    const int64_t index = packed_row / 16 * 8 + packed_row % 8;
    return index < n / 2 ? index + (packed_row % 16 / 8) * (n / 2) : -1;
  }

  // Records along K: full ones of 128 columns, and a tail of 128 or, where 64 columns hold it, of 64.
  int64_t num_k_tiles() const { return (k + kTileK - 1) / kTileK; }
  int k_tile_halves(int64_t k_tile) const { return k - k_tile * kTileK > kHalfK ? 2 : 1; }
  int64_t record_offset(int64_t k_tile) const;  // bytes from the start of the strip
  int64_t strip_bytes() const { return record_offset(num_k_tiles()); }
  int64_t expert_bytes() const { return num_strips() * strip_bytes(); }
  int64_t packed_bytes() const { return (experts ? experts : 1) * expert_bytes(); }
  std::vector<int64_t> packed_shape() const;

  // Groups along K of the checkpoint's scales, and of its zero points (one where there are no group scales).
  int64_t num_groups() const { return group ? (k + group - 1) / group : 0; }
  int64_t num_zero_groups() const { return group ? num_groups() : 1; }
  int zero_bytes() const {
    return zero == ZeroKind::none ? 0 : zero == ZeroKind::integer ? 1 : scale_bytes(scale_type);
  }

  // e8m0 scales of floats are folded into the operand: packing moves a power of two per row into the secondary scale.
  bool rebased() const { return scale_type == ScaleType::e8m0 && format_traits().kind == Kind::floating; }
  std::vector<int64_t> row_scale_shape() const;  // of those powers of two: [experts?, n], or [0]
};

}  // namespace humming
