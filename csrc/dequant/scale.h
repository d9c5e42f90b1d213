// Group scales on 16-bit operands: one rounding of the scale (and offset) to the operand type, one of the weight.
#pragma once

#include <cstdint>

#include "core/bits.h"
#include "formats/format.h"

namespace humming {

// number * scale per half word; `scale` is the operand-typed scale in both halves.
template <Operand kOperand>
HUMMING_HD uint32_t apply_scale(uint32_t number, uint32_t scale) {
  static_assert(kOperand == Operand::bf16 || kOperand == Operand::fp16,
                "8- and 4-bit operands take their scales later");
  return kOperand == Operand::bf16 ? mul_bf16x2(number, scale) : mul_f16x2(number, scale);
}

// code * scale + offset, the float-offset form, in one rounding.
template <Operand kOperand>
HUMMING_HD uint32_t apply_scale_offset(uint32_t code, uint32_t scale, uint32_t offset) {
  static_assert(kOperand == Operand::bf16 || kOperand == Operand::fp16, "float offsets need a 16-bit operand");
  return kOperand == Operand::bf16 ? fma_bf16x2(code, scale, offset) : fma_f16x2(code, scale, offset);
}

}  // namespace humming
