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

// One turn of a word to the left, by 0 to 31 bits, and mask. A shift, where all bits go one way.
struct Move {
  int word, turn;
  uint32_t mask;
  bool left, right;  // whether bits go to the left, to the right
};
struct MovePlan {
  Move move[8];
  int count;
};

// The moves that bring register n together.
HUMMING_HD constexpr MovePlan make_plan(Codec codec, Order order, int bits, int n, Destination destination) {
  const int values = values_per_register(order);
  MovePlan plan{};
  for (int v = 0; v < values; ++v) {
    const CodeFields fields = code_fields(codec, order, bits, n, v);
    int below = bits;
    for (int f = 0; f < fields.count; ++f) {
      const Field field = fields.field[f];
      below -= field.width;
      for (int j = 0; j < field.width; ++j) {
        if (destination.to[below + j] < 0) continue;
        const int to = 32 / values * v + destination.to[below + j];
        const int from = field.bit + j;
        const int turn = (to - from + 32) % 32;
        int at = 0;
        while (at < plan.count && (plan.move[at].word != field.word || plan.move[at].turn != turn)) ++at;
        if (at == plan.count) plan.move[plan.count++] = {field.word, turn, 0, false, false};
        Move& move = plan.move[at];
        move.mask |= 1u << to;
        move.left |= to > from;
        move.right |= to < from;
      }
    }
  }
  return plan;
}

template <int kTurn, bool kLeft, bool kRight>
HUMMING_HD uint32_t turned(uint32_t word) {
  if constexpr (kLeft && kRight) return word << kTurn | word >> (32 - kTurn);
  if constexpr (kLeft) return word << kTurn;
  if constexpr (kRight) return word >> (32 - kTurn);
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
      const uint32_t word = turned<kMove.turn, kMove.left, kMove.right>(words[kMove.word]);
      return step<i + 1>(words, and_xor(word, kMove.mask, partial));
    }
  }
  HUMMING_HD static uint32_t run(const uint32_t* words, uint32_t base) { return step<0>(words, base); }
};

}  // namespace humming
