// mma.sync by operand: D[16 rows, 8 tokens] += A[16 rows, 32 bytes of columns] * B of as many bytes of 8 tokens.
//
//   thread 4g + t   a  registers i = 0..3 of a step of layout/word_codec.h
//                   b  word t of the first and of the second 16 bytes of token g
//                   d  rows g and g + 8, tokens 2t and 2t + 1: d[2 * row half + token bit]
#pragma once

#include <cstdint>
#include <type_traits>

#include "formats/format.h"
#include "mainloop/ptx.h"

namespace humming {

constexpr bool sums_are_integers(Operand operand) { return operand == Operand::s8 || operand == Operand::s4; }

template <Operand kOperand>
using MmaSum = std::conditional_t<sums_are_integers(kOperand), int, float>;

template <Operand kOperand>
__device__ __forceinline__ void mma_sync(MmaSum<kOperand>* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kOperand == Operand::bf16) ptx::mma_m16n8k16_bf16(d, a, b0, b1);
  if constexpr (kOperand == Operand::fp16) ptx::mma_m16n8k16_f16(d, a, b0, b1);
  if constexpr (kOperand == Operand::e4m3) ptx::mma_m16n8k32_e4m3(d, a, b0, b1);
  if constexpr (kOperand == Operand::s8) ptx::mma_m16n8k32_s8(d, a, b0, b1);
  if constexpr (kOperand == Operand::s4) ptx::mma_m16n8k64_s4(d, a, b0, b1);
}

}  // namespace humming
