// One record in shared memory as MMA A fragments: what a lane reads and does to turn codes into operand registers.
// Shared by the Hopper and the Ampere main loops, whose fragments are the same.
//
//   record (64 rows, 128 columns)  ->  per warp 16 rows, per half 64 columns, per lane the registers n = 4 * step + i
//                                      of layout/word_codec.h
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/bits.h"
#include "dequant/dequant.h"
#include "dequant/scale.h"
#include "layout/record.h"
#include "mainloop/record_view.h"

namespace humming {

namespace weight_tile {

template <ScaleStorage kStorage>
__device__ __forceinline__ float load_scale(const uint8_t* scales, int index, bool is_bf16) {
  if constexpr (kStorage == ScaleStorage::half) {
    const uint16_t bits = reinterpret_cast<const uint16_t*>(scales)[index];
    return is_bf16 ? float_from_bits(static_cast<uint32_t>(bits) << 16) : float_from_f16(bits);
  } else if constexpr (kStorage == ScaleStorage::fp32) {
    return reinterpret_cast<const float*>(scales)[index];
  } else if constexpr (kStorage == ScaleStorage::e8m0) {
    const uint32_t code = scales[index];
    return float_from_bits(code ? code << 23 : 0x00400000u);  // 2^-127 is subnormal
  } else {
    // e4m3 in the upper byte of an fp16, one bit down, is 2^-8 times itself.
    const uint32_t code = scales[index];
    return 256.0f * float_from_f16(static_cast<uint16_t>((code & 0x80) << 8 | (code & 0x7F) << 7));
  }
}

// A lane's words of one plane and half, in loads of up to 128 bits.
template <int kWidth>
__device__ __forceinline__ void load_plane(const uint8_t* plane, int warp, int lane, uint32_t* words) {
  constexpr int kChunk = kWidth < 4 ? kWidth : 4;
#pragma unroll
  for (int chunk = 0; chunk < kWidth / kChunk; ++chunk) {
    const uint8_t* from = plane + ((chunk * 4 + warp) * kLanes + lane) * kChunk * 4;
    if constexpr (kChunk == 4) {
      const uint4 word = *reinterpret_cast<const uint4*>(from);
      words[4 * chunk] = word.x;
      words[4 * chunk + 1] = word.y;
      words[4 * chunk + 2] = word.z;
      words[4 * chunk + 3] = word.w;
    } else if constexpr (kChunk == 2) {
      const uint2 word = *reinterpret_cast<const uint2*>(from);
      words[0] = word.x;
      words[1] = word.y;
    } else {
      words[0] = *reinterpret_cast<const uint32_t*>(from);
    }
  }
}

template <int kBits, int kPlane = 0>
__device__ __forceinline__ void load_words(const uint8_t* half, int warp, int lane, uint32_t* words) {
  constexpr int kWidth = plane_width(kBits, kPlane);
  if constexpr (kWidth > 0) {
    load_plane<kWidth>(half, warp, lane, words);
    load_words<kBits, kPlane + 1>(half + 4 * kLanes * 4 * kWidth, warp, lane, words + kWidth);
  }
}

}  // namespace weight_tile

// Config has kFormat, kOperand, kZero, kScaleMode, kScaleStorage and kGroup, the finest scale granularity that the
// instance serves (16, 32, 128); coarser ones run too, with repeated loads.
template <class Config>
struct WeightTile {
  static constexpr FormatTraits kTraits = traits(Config::kFormat);
  static constexpr Operand kOperand = Config::kOperand;
  static constexpr ScaleMode kScaleMode = Config::kScaleMode;
  static constexpr int kBits = kTraits.bits;
  static constexpr Order kOrder = order_of(kOperand);
  static constexpr int kStepK = 8 * values_per_register(kOrder);  // columns of one MMA: 16, 32
  static constexpr int kSteps = kHalfK / kStepK;                  // MMAs of a half
  static constexpr int kHalfBytes = kStripRows * kHalfK * kBits / 8;
  static constexpr int kGroup = Config::kGroup;
  static constexpr bool kFolded = kScaleMode == ScaleMode::folded;
  static constexpr bool kZeroPoint = Config::kZero == ZeroKind::integer;
  static constexpr bool kOffset = Config::kZero == ZeroKind::floating;

  using Numbers = Dequant<Config::kFormat, kOperand, kZeroPoint>;
  using Folded = FoldedDequant<Config::kFormat, kOperand>;

  using Registers = std::conditional_t<kFolded, Folded, Numbers>;
  // e8m0 scales on an fp16 operand: the stored scale, at most 1, moves up into fp16's range (layout/rebase.h).
  static constexpr int kScaleExponent = [] {
    if constexpr (Config::kScaleStorage == ScaleStorage::e8m0 && kOperand == Operand::fp16) {
      constexpr RebaseRange kRange = rebase_range(kTraits, kOperand);
      return kRange.window - kRange.shift;
    } else {
      return 0;
    }
  }();
  static constexpr int kExponent = Registers::kExponent - kScaleExponent;  // number = operand * 2^kExponent

  static_assert(kScaleMode != ScaleMode::operand || kOrder == Order::k16,
                "8-bit operands have no room for a scale: use accumulator or folded");
  static_assert(!kOffset || kScaleMode == ScaleMode::operand, "a float offset is added to the 16-bit operand");
  static_assert(kGroup >= kStepK, "one group per MMA step: use a 16-bit operand for groups of 16");

  // What the codes of one row need: the dequantiser's parameter and, in mode operand, scale and offset.
  struct Row {
    decltype(Registers::param(0)) param;
    uint32_t scale, offset;
  };

  uint32_t words[2][kBits];
  const uint8_t* record;
  int first;  // group_index of the lane's row g in a record with one group: 2 * (8 * warp + g)

  __device__ __forceinline__ void load(const uint8_t* from, int warp, int lane) {
    record = from;
    first = 2 * (8 * warp + lane / 4);
    weight_tile::load_words<kBits>(record, warp, lane, words[0]);
    weight_tile::load_words<kBits>(record + kHalfBytes, warp, lane, words[1]);
  }

  // Groups of a row in a record. An instance for groups of 128 takes no others.
  __device__ __forceinline__ static int groups(const RecordView& view) { return kGroup == kTileK ? 1 : view.groups; }
  // Group of a column 0..127 of the record, and whether a new one may begin there.
  __device__ __forceinline__ static int group_of(const RecordView& view, int column) {
    return kGroup == kTileK ? 0 : column * view.groups / kTileK;
  }
  __device__ __forceinline__ static constexpr bool begins_group(int column) { return column % kGroup == 0; }

  // Group scale of row g + 8 * row_half as fp32.
  __device__ __forceinline__ float scale(const RecordView& view, int row_half, int group) const {
    return weight_tile::load_scale<Config::kScaleStorage>(
        record + view.scale_offset, (first + row_half) * groups(view) + group, view.scale_is_bf16);
  }

  __device__ __forceinline__ Row row(const RecordView& view, int row_half, int group) const {
    Row result{};
    if constexpr (kFolded) {
      result.param = Folded::param(record[view.scale_offset + (first + row_half) * groups(view) + group]);
      return result;
    } else {
      uint32_t zero = kOffset ? kCentre : dequant::implied_zero(kTraits);
      const int zero_index = (first + row_half) * view.zero_groups + (view.zero_groups == 1 ? 0 : group);
      if constexpr (kZeroPoint) zero = record[view.zero_offset + zero_index];
      result.param = Numbers::param(zero);
      if constexpr (kScaleMode == ScaleMode::operand) {
        const float factor = scale(view, row_half, group) * power_of_two(kScaleExponent);
        result.scale = to_operand(factor);
        if constexpr (kOffset) {
          // scale * (code - centre) + (offset + centre * scale): the centred form rounds a small offset instead of a
          // large one that cancels.
          const float offset =
              weight_tile::load_scale<Config::kScaleStorage>(record + view.zero_offset, zero_index, view.scale_is_bf16);
          result.offset = to_operand(__fmaf_rn(factor, static_cast<float>(kCentre), offset));
        }
      }
      return result;
    }
  }

  // The registers of MMA step kStep of a half.
  template <int kHalf, int kStep>
  __device__ __forceinline__ void fragment(const Row (&rows)[2], uint32_t (&out)[4]) const {
    reg<kHalf, 4 * kStep + 0>(rows[0], out[0]);
    reg<kHalf, 4 * kStep + 1>(rows[1], out[1]);
    reg<kHalf, 4 * kStep + 2>(rows[0], out[2]);
    reg<kHalf, 4 * kStep + 3>(rows[1], out[3]);
  }

 private:
  static constexpr uint32_t kCentre = 1u << (kBits - 1);

  __device__ __forceinline__ static uint32_t to_operand(float value) {
    return kOperand == Operand::bf16 ? bf16x2_from_floats(value, value) : f16x2_from_floats(value, value);
  }

  template <int kHalf, int n>
  __device__ __forceinline__ void reg(const Row& row, uint32_t& out) const {
    out = Registers::template reg<n>(words[kHalf], row.param);
    if constexpr (kScaleMode == ScaleMode::operand) {
      if constexpr (kOffset) {
        out = apply_scale_offset<kOperand>(out, row.scale, row.offset);
      } else {
        out = apply_scale<kOperand>(out, row.scale);
      }
    }
  }
};

}  // namespace humming
