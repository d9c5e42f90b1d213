// Moving code bits from packed words to where an operand register wants them, with as few instructions as the placement
// allows: the moves are computed at compile time from layout/word_codec.h, bits that travel by the same distance
// together.
#pragma once

#include <cstdint>
#include <utility>

#include "core/bits.h"
#include "layout/word_codec.h"

namespace humming {

// Destination of every code bit: bit `to[j]` of each unit of the register for code bit j, or -1 to leave it out.
struct Destination {
  int to[8];
};

// `count` code bits from `first` up, to bits `low`, low + 1, ... of the unit.
HUMMING_HD constexpr Destination place(int first, int count, int low,
                                       Destination rest = {{-1, -1, -1, -1, -1, -1, -1, -1}}) {
  for (int j = 0; j < count; ++j) rest.to[first + j] = low + j;
  return rest;
}

// One shift (left if positive) and mask of one word.
struct Move {
  int word, shift;
  uint32_t mask;
};
struct MovePlan {
  Move move[8];
  int count;
};

// The moves that bring register n together. Fields of all V values of a register are `unit` bits apart, so the plan for
// v = 0 repeats over the units.
HUMMING_HD constexpr MovePlan make_plan(Codec codec, Order order, int bits, int n, Destination destination) {
  const int unit = 32 / values_per_register(order);
  MovePlan plan{{{0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}}, 0};
  const CodeFields fields = code_fields(codec, order, bits, n, 0);
  int below = bits;
  for (int f = 0; f < fields.count; ++f) {
    const Field field = fields.field[f];
    below -= field.width;
    for (int j = 0; j < field.width; ++j) {
      const int to = destination.to[below + j];
      if (to < 0) continue;
      const int shift = to - (field.bit + j);
      int at = 0;
      while (at < plan.count && (plan.move[at].word != field.word || plan.move[at].shift != shift)) ++at;
      if (at == plan.count) plan.move[plan.count++] = {field.word, shift, 0};
      for (int bit = to; bit < 32; bit += unit) plan.move[at].mask |= 1u << bit;
    }
  }
  return plan;
}

template <int kShift>
HUMMING_HD uint32_t shifted(uint32_t word) {
  if constexpr (kShift > 0) return word << kShift;
  if constexpr (kShift < 0) return word >> -kShift;
  return word;
}

// Register n's bits at their destination, exclusive-or `base`: ones of base outside the destination are set, inside it
// they flip. One shift and one logic operation per move. kPlacement is a class with `static constexpr Destination kTo`.
template <Codec kCodec, Order kOrder, int kBits, class Placement, int n>
struct Gather {
  static constexpr MovePlan kPlan = make_plan(kCodec, kOrder, kBits, n, Placement::kTo);

  template <int i>
  HUMMING_HD static uint32_t step(const uint32_t* words, uint32_t partial) {
    if constexpr (i == kPlan.count) {
      return partial;
    } else {
      constexpr Move kMove = kPlan.move[i];
      return step<i + 1>(words, and_xor(shifted<kMove.shift>(words[kMove.word]), kMove.mask, partial));
    }
  }
  HUMMING_HD static uint32_t run(const uint32_t* words, uint32_t base) { return step<0>(words, base); }
};

}  // namespace humming
