// As WeightTile (weight_tile.cuh), for weights of any format, scales and zero points: a lane works out code by code
// where its bits lie and what it stands for.
#pragma once

#include "core/bits.h"
#include "layout/number.h"
#include "mainloop/any_view.h"

namespace humming {

// The number of code `index` of lane `place` of a record's half. Apart: in every place that wants it, it would make a
// kernel of half a megabyte.
template <class Config>
HUMMING_HD_CALLED float any_number(const AnyView& view, const uint32_t* words, int half, int place, int index) {
  return code_value(view.format, view.code_at(words, half, place, index));
}

template <class Config>
struct AnyWeightTile {
  static constexpr Operand kOperand = Config::kOperand;
  static constexpr Order kOrder = order_of(kOperand);
  static constexpr int kValues = values_per_register(kOrder);
  static constexpr int kStepK = 8 * kValues;
  static constexpr int kSteps = kHalfK / kStepK;
  // Columns that share a scale, at the least: of 16-bit operands 16, of others those that join the sums a record, while
  // e8m0 scales of floats are part of the operand's values, as packing has made room for.
  static constexpr bool kWide = kOrder == Order::k16;
  static constexpr int kGroup = kWide ? 16 : kTileK;

  using Row = GroupNumbers;

  const AnyView* view;
  const uint8_t* record;
  int warp, lane;

  HUMMING_HD void load(const AnyView& records, const uint8_t* here, int of_warp, int of_lane) {
    view = &records;
    record = here;
    warp = of_warp;
    lane = of_lane;
  }

  HUMMING_HD static bool scales_sums(const AnyView& p) { return !kWide && p.scale_type != ScaleType::e8m0; }

  // What the sums of a record are multiplied by.
  HUMMING_HD float scale(const AnyView& p, int row_half, int group) const {
    if (!scales_sums(p)) return 1.0f;
    return stored_scale(p.scale_type, record + p.scale_offset, place(row_half) * p.groups + group);
  }

  // Reads what the rows of a new group of columns have, if one may begin at kColumn of the record.
  template <int kColumn>
  HUMMING_HD void begin_group(const AnyView& p, Row (&rows)[2]) const {
    if (kColumn > 0 && kColumn * p.groups % kTileK != 0) return;
    rows[0] = row(p, 0, kColumn);
    rows[1] = row(p, 1, kColumn);
  }

  // The registers of MMA step kStep of a half. Of 8-bit operands the last two are 16 columns on, where another group
  // may have begun.
  template <int kHalf, int kStep>
  HUMMING_HD void fragment(const Row (&rows)[2], uint32_t (&out)[4]) const {
    Row later[2] = {rows[0], rows[1]};
    if constexpr (!kWide) begin_group<kHalf * kHalfK + kStep * kStepK + 16>(*view, later);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Row& mine = i < 2 ? rows[i] : later[i - 2];
      float value[kValues];
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
        const uint32_t* words = reinterpret_cast<const uint32_t*>(record);
        const int index = kValues * (4 * kStep + i) + v;
        value[v] = mine(any_number<Config>(*view, words, kHalf, kLanes * warp + lane, index));
      }
      out[i] = to_register(value);
    }
  }

 private:
  HUMMING_HD int place(int row_half) const { return (8 * warp + lane / 4) * 2 + row_half; }

  HUMMING_HD Row row(const AnyView& p, int row_half, int column) const {
    const int at = place(row_half);
    GroupNumbers numbers = group_numbers(scales_sums(p) ? ScaleType::none : p.scale_type, p.zero,
                                         record + p.scale_offset, at * p.groups + column * p.groups / kTileK,
                                         record + p.zero_offset, at * p.zero_groups + column * p.zero_groups / kTileK);
    numbers.scale *= p.raise;
    return numbers;
  }

  HUMMING_HD static uint32_t to_register(const float (&value)[kValues]) {
    if constexpr (kOperand == Operand::bf16) return bf16x2_from_floats(value[0], value[1]);
    if constexpr (kOperand == Operand::fp16) return f16x2_from_floats(value[0], value[1]);
    uint32_t bytes = 0;
    if constexpr (kOrder == Order::k32) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
        const uint32_t byte = kOperand == Operand::e4m3 ? float_to_e4m3(value[v]) : static_cast<int>(value[v]) & 0xFF;
        bytes |= byte << (8 * v);
      }
    }
    return bytes;
  }
  static_assert(kOrder != Order::k64, "s4 has no kernel for any format");
};

}  // namespace humming
