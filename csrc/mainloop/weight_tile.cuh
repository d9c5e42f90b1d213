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

HUMMING_HD constexpr int bytes_of(ScaleStorage storage) {
  switch (storage) {
    case ScaleStorage::none: return 0;
    case ScaleStorage::half: return 2;
    case ScaleStorage::fp32: return 4;
    case ScaleStorage::e8m0:
    case ScaleStorage::e4m3: return 1;
  }
  return 0;
}

template <ScaleStorage kStorage>
__device__ __forceinline__ float scale_from_bits(uint32_t bits, bool is_bf16) {
  if constexpr (kStorage == ScaleStorage::half) {
    return is_bf16 ? float_from_bits(bits << 16) : float_from_f16(static_cast<uint16_t>(bits));
  } else if constexpr (kStorage == ScaleStorage::fp32) {
    return float_from_bits(bits);
  } else if constexpr (kStorage == ScaleStorage::e8m0) {
    return float_from_bits(bits ? bits << 23 : 0x00400000u);  // 2^-127 is subnormal
  } else {
    // e4m3 in the upper byte of an fp16, one bit down, is 2^-8 times itself.
    return 256.0f * float_from_f16(static_cast<uint16_t>((bits & 0x80) << 8 | (bits & 0x7F) << 7));
  }
}

// kBytes in one load, 2 to 16 of them and a power of two, into whole words.
template <int kBytes>
__device__ __forceinline__ void load_vector(const uint8_t* from, uint32_t* words) {
  if constexpr (kBytes == 16) {
    const uint4 vector = *reinterpret_cast<const uint4*>(from);
    words[0] = vector.x;
    words[1] = vector.y;
    words[2] = vector.z;
    words[3] = vector.w;
  } else if constexpr (kBytes == 8) {
    const uint2 vector = *reinterpret_cast<const uint2*>(from);
    words[0] = vector.x;
    words[1] = vector.y;
  } else if constexpr (kBytes == 4) {
    words[0] = *reinterpret_cast<const uint32_t*>(from);
  } else {
    static_assert(kBytes == 2);
    words[0] = *reinterpret_cast<const uint16_t*>(from);
  }
}

// What a record has for a lane's two rows in every group, kCount elements of kBytes side by side: scales, zero points,
// offsets. kLoaded: all of them are read at once, into registers; else one at a time, where they are. kAdded: to each
// of them, which are bytes with room for it.
template <int kBytes, int kCount, bool kLoaded, uint32_t kAdded = 0>
struct RowData {
  static_assert(kBytes == 1 || kAdded == 0);
  static constexpr int kTotal = kBytes * kCount;
  uint32_t words[kLoaded && kTotal > 0 ? (kTotal + 3) / 4 : 1];
  const uint8_t* place;

  // `area` in the record; `count`: elements that a lane has there, kCount if kLoaded.
  __device__ __forceinline__ void load(const uint8_t* area, int row_pair, int count) {
    if constexpr (kTotal > 0) {
      place = area + row_pair * count * kBytes;
      if constexpr (kLoaded) {
        constexpr int kVector = kTotal < 16 ? kTotal : 16;
#pragma unroll
        for (int i = 0; i < kTotal / kVector; ++i) load_vector<kVector>(place + kVector * i, words + kVector / 4 * i);
        if constexpr (kAdded > 0) {
#pragma unroll
          for (uint32_t& word : words) word += repeat8(kAdded);
        }
      }
    }
  }
  __device__ __forceinline__ uint32_t operator[](int index) const {
    if constexpr (kTotal == 0) return 0;
    if constexpr (kLoaded && kBytes == 1) return prmt(words[index / 4], 0, 0x4440 + index % 4);  // one instruction
    if constexpr (kLoaded) {
      const uint32_t bits = words[index * kBytes / 4] >> index * kBytes % 4 * 8;
      return kBytes == 4 ? bits : bits & ((1u << 8 * kBytes % 32) - 1);
    }
    if constexpr (kBytes == 1) return place[index] + kAdded;
    if constexpr (kBytes == 2) return reinterpret_cast<const uint16_t*>(place)[index];
    return reinterpret_cast<const uint32_t*>(place)[index];
  }
};

// A lane's words of one plane and half, in loads of up to 128 bits.
template <int kWidth>
__device__ __forceinline__ void load_plane(const uint8_t* plane, int warp, int lane, uint32_t* words) {
  constexpr int kChunk = kWidth < 4 ? kWidth : 4;
#pragma unroll
  for (int chunk = 0; chunk < kWidth / kChunk; ++chunk) {
    load_vector<kChunk * 4>(plane + ((chunk * 4 + warp) * kLanes + lane) * kChunk * 4, words + kChunk * chunk);
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

// Config has kFormat, kOperand, kZero, kScaleMode, kScaleStorage and kGroup, the scale granularity (serves_coarser()).
template <class Config>
struct WeightTile {
  static constexpr FormatTraits kTraits = traits(Config::kFormat);
  static constexpr Operand kOperand = Config::kOperand;
  static constexpr ScaleMode kScaleMode = Config::kScaleMode;
  static constexpr int kBits = kTraits.bits;
  static constexpr Order kOrder = order_of(kOperand);
  static constexpr int kStepK = 8 * values_per_register(kOrder);  // columns of one MMA: 16, 32, 64
  static constexpr int kSteps = kHalfK / kStepK;                  // MMAs of a half
  static constexpr int kHalfBytes = kStripRows * kHalfK * kBits / 8;
  static constexpr int kGroup = Config::kGroup;
  static constexpr bool kFolded = kScaleMode == ScaleMode::folded;
  static constexpr bool kZeroPoint = Config::kZero == ZeroKind::integer;
  static constexpr bool kOffset = Config::kZero == ZeroKind::floating;

  using Numbers = Dequant<Config::kFormat, kOperand, kZeroPoint>;
  using Folded = FoldedDequant<Config::kFormat, kOperand>;

  using Registers = std::conditional_t<kFolded, Folded, Numbers>;
  // Scales that packing has rebased (layout/rebase.h) are at most 1. They move up by 2^64, so that 2^-127 is no special
  // case, and on an fp16 operand into its range.
  static constexpr bool kRebased = Config::kScaleStorage == ScaleStorage::e8m0 && kTraits.kind == Kind::floating;
  static constexpr int kRaised = kRebased && !kFolded ? 64 : 0;
  static constexpr int kScaleExponent = [] {
    if constexpr (kRebased && kOperand == Operand::fp16 && kScaleMode == ScaleMode::operand) {
      constexpr RebaseRange kRange = rebase_range(kTraits, kOperand);
      return kRange.window - kRange.shift;
    } else {
      return kRaised;
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

  // Whether the groups of a record are a constant, so that what they have is loaded at once.
  static constexpr bool kExact = !serves_coarser(Config::kScaleStorage, kGroup);
  static constexpr int kGroups = kTileK / kGroup;

  uint32_t words[2][kBits];
  weight_tile::RowData<weight_tile::bytes_of(Config::kScaleStorage), 2 * kGroups, kExact, kRaised> scales;
  weight_tile::RowData<kZeroPoint ? 1
                       : kOffset  ? weight_tile::bytes_of(Config::kScaleStorage)
                                  : 0,
                       2 * kGroups, kExact>
      zeros;

  // kHalves: of the record that are there.
  template <int kHalves = 2>
  __device__ __forceinline__ void load(const RecordView& view, const uint8_t* record, int warp, int lane) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      weight_tile::load_words<kBits>(record + half * kHalfBytes, warp, lane, words[half]);
    }
    const int row_pair = 8 * warp + lane / 4;
    scales.load(record + view.scale_offset, row_pair, 2 * groups(view));
    zeros.load(record + view.zero_offset, row_pair, 2 * (kExact ? kGroups : view.zero_groups));
  }

  // Groups of a row in a record.
  __device__ __forceinline__ static int groups(const RecordView& view) { return kExact ? kGroups : view.groups; }
  // Group of a column 0..127 of the record, and whether a new one may begin there.
  __device__ __forceinline__ static int group_of(const RecordView& view, int column) {
    return kExact ? column / kGroup : column * view.groups / kTileK;
  }
  __device__ __forceinline__ static constexpr bool begins_group(int column) { return column % kGroup == 0; }

  // Group scale of row g + 8 * row_half as fp32, times 2^kRaised.
  __device__ __forceinline__ float scale(const RecordView& view, int row_half, int group) const {
    const uint32_t bits = scales[row_half * groups(view) + group];
    if constexpr (kRaised > 0) return float_from_bits(bits << 23);
    return weight_tile::scale_from_bits<Config::kScaleStorage>(bits, view.scale_is_bf16);
  }

  // What its codes are counted from.
  __device__ __forceinline__ uint32_t zero(const RecordView& view, int row_half, int group) const {
    if constexpr (kZeroPoint) return zeros[zero_index(view, row_half, group)];
    return kOffset ? kCentre : dequant::implied_zero(kTraits);
  }

  __device__ __forceinline__ Row row(const RecordView& view, int row_half, int group) const {
    Row result{};
    if constexpr (kFolded) {
      result.param = Folded::param(scales[row_half * groups(view) + group]);
      return result;
    } else {
      result.param = Numbers::param(zero(view, row_half, group));
      if constexpr (kScaleMode == ScaleMode::operand) {
        const float factor = scale(view, row_half, group) * power_of_two(kScaleExponent - kRaised);
        result.scale = to_operand(factor);
        if constexpr (kOffset) {
          // scale * (code - centre) + (offset + centre * scale): the centred form rounds a small offset instead of a
          // large one that cancels.
          const uint32_t stored = zeros[zero_index(view, row_half, group)];
          const float offset = weight_tile::scale_from_bits<Config::kScaleStorage>(stored, view.scale_is_bf16);
          result.offset = to_operand(__fmaf_rn(factor, static_cast<float>(kCentre), offset));
        }
      }
      return result;
    }
  }

  // Reads what the rows of a new group of columns have, if one may begin at kColumn of the record.
  template <int kColumn>
  __device__ __forceinline__ void begin_group(const RecordView& view, Row (&rows)[2]) const {
    if constexpr (begins_group(kColumn)) {
      const int group = group_of(view, kColumn);
      rows[0] = row(view, 0, group);
      rows[1] = row(view, 1, group);
    }
  }

  // The registers of MMA step kStep of a half, and those of RawDequant.
  template <int kHalf, int kStep>
  __device__ __forceinline__ void fragment(const Row (&rows)[2], uint32_t (&out)[4]) const {
    reg<kHalf, 4 * kStep + 0>(rows[0], out[0]);
    reg<kHalf, 4 * kStep + 1>(rows[1], out[1]);
    reg<kHalf, 4 * kStep + 2>(rows[0], out[2]);
    reg<kHalf, 4 * kStep + 3>(rows[1], out[3]);
  }
  template <int kHalf, int kStep>
  __device__ __forceinline__ void raw_fragment(uint32_t (&out)[4]) const {
    using Raw = RawDequant<Config::kFormat, kOperand>;
    out[0] = Raw::template reg<4 * kStep + 0>(words[kHalf]);
    out[1] = Raw::template reg<4 * kStep + 1>(words[kHalf]);
    out[2] = Raw::template reg<4 * kStep + 2>(words[kHalf]);
    out[3] = Raw::template reg<4 * kStep + 3>(words[kHalf]);
  }

 private:
  static constexpr uint32_t kCentre = 1u << (kBits - 1);

  __device__ __forceinline__ static int zero_index(const RecordView& view, int row_half, int group) {
    const int zero_groups = kExact ? kGroups : view.zero_groups;
    return row_half * zero_groups + (zero_groups == 1 ? 0 : group);
  }

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
