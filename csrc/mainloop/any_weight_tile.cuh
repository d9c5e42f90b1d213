// As WeightTile (weight_tile.cuh), for weights of any format, scales and zero points: a lane works out code by code
// where its bits lie and what it stands for.
#pragma once

#include "core/bits.h"
#include "layout/number.h"
#include "mainloop/any_view.h"

namespace humming {

template <class Config>
struct AnyWeightTile {
  static constexpr Operand kOperand = Config::kOperand;
  static constexpr Order kOrder = Order::k16;
  static constexpr int kStepK = 8 * values_per_register(kOrder);
  static constexpr int kSteps = kHalfK / kStepK;
  static constexpr int kGroup = 16;  // the finest
  static constexpr int kExponent = 0;
  static_assert(order_of(kOperand) == kOrder);

  using Row = GroupNumbers;

  const AnyView* view;
  const uint8_t* record;
  int warp, lane;

  __device__ __forceinline__ void load(const AnyView& records, const uint8_t* here, int of_warp, int of_lane) {
    view = &records;
    record = here;
    warp = of_warp;
    lane = of_lane;
  }

  __device__ __forceinline__ Row row(const AnyView& p, int row_half, int column) const {
    const int at = (8 * warp + lane / 4) * 2 + row_half;
    const int group = column * p.groups / kTileK, zero_group = column * p.zero_groups / kTileK;
    return group_numbers(p.scale_type, p.zero, record + p.scale_offset, at * p.groups + group, record + p.zero_offset,
                         at * p.zero_groups + zero_group);
  }

  // Reads what the rows of a new group of columns have, if one may begin at kColumn of the record.
  template <int kColumn>
  __device__ __forceinline__ void begin_group(const AnyView& p, Row (&rows)[2]) const {
    static_assert(kColumn % kGroup == 0);
    if (kColumn > 0 && kColumn * p.groups % kTileK != 0) return;
    rows[0] = row(p, 0, kColumn);
    rows[1] = row(p, 1, kColumn);
  }

  // The registers of MMA step kStep of a half.
  template <int kHalf, int kStep>
  __device__ __forceinline__ void fragment(const Row (&rows)[2], uint32_t (&out)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int index = 2 * (4 * kStep + i);
      const float low = rows[i % 2](number(kHalf, index)), high = rows[i % 2](number(kHalf, index + 1));
      out[i] = kOperand == Operand::bf16 ? bf16x2_from_floats(low, high) : f16x2_from_floats(low, high);
    }
  }

 private:
  __device__ __forceinline__ float number(int half, int index) const {
    return code_value(view->format, view->code_at(reinterpret_cast<const uint32_t*>(record), half, warp, lane, index));
  }
};

}  // namespace humming
