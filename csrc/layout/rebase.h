// e8m0 group scales of floating formats.
//
// A group's power of two is folded into the operand. Packing divides a row's scales by the largest of them, a power of
// two that becomes the row's secondary scale, so that stored scales are 127 - window .. 127 (1.0), d = stored - (127 -
// window) in 0..window. The window is chosen so that the operand value * 2^(d - shift) is exact for every value of the
// format at every d. Groups further below the row's largest are stored at d = 0 with their codes rounded to nearest
// even; packing counts those that changed.
//
// Bounds: the smallest magnitude of the format (its unit u, all values are multiples of it) lands on the operand's
// smallest magnitude at d = 0, the largest below the operand's largest at d = window. The e2m1 -> e4m3 table adds d to
// the exponent field of its entries, which is exact for normal numbers only, so there u lands on the smallest normal.
// bf16 has the exponents of e8m0 itself: its window is all that a stored byte can say.
#pragma once

#include <cstdint>

#include "formats/format.h"

namespace humming {

struct RebaseRange {
  int window;
  int shift;
};

// Operands bf16, fp16 and e4m3.
HUMMING_HD constexpr RebaseRange rebase_range(const FormatTraits& format, Operand operand) {
  if (operand == Operand::bf16) return {127, 127};
  const int unit_exponent = 1 - format.bias() - format.mantissa_bits;
  // Largest magnitude in units: e4m3fn loses its last mantissa to NaN, e5m2 its last exponent to Inf and NaN.
  const int top_field = (1 << format.exponent_bits) - (format.specials == Specials::ieee ? 2 : 1);
  const int top_significand = (2 << format.mantissa_bits) - (format.specials == Specials::fn ? 2 : 1);
  const bool table = operand == Operand::e4m3 && format.id == static_cast<int>(Format::e2m1);
  // The operand's largest magnitude as significand * 2^exponent, four bits of significand being enough to compare with.
  const int operand_unit = operand == Operand::fp16 ? -24 : table ? -6 : -9;
  const int operand_significand = operand == Operand::fp16 ? 15 : 14;  // 1.875 * 2^15 is below 65504; 448 = 14 * 2^5
  const int operand_exponent = operand == Operand::fp16 ? 12 : 5;
  const int shift = unit_exponent - operand_unit;
  int window = 0;
  // top_significand * 2^(top_field - 1) units, each 2^operand_unit in the operand at d = 0.
  const int align = 3 - format.mantissa_bits;  // makes the significand four bits
  while ((top_significand << align) <= operand_significand
             ? top_field - 1 - align + operand_unit + window + 1 <= operand_exponent
             : top_field - 1 - align + operand_unit + window + 1 <= operand_exponent - 1) {
    ++window;
  }
  return {window, shift};
}

// The secondary scale of a row whose largest e8m0 scale is `largest`: 2^(largest - 127).
HUMMING_HD float rebase_row_scale(int largest) {
  return float_from_bits(largest ? static_cast<uint32_t>(largest) << 23 : 0x00400000u);  // 2^-127 is subnormal
}
// The stored scale of a group, and by how many binades its codes must be rounded down to it.
HUMMING_HD constexpr int rebase_shift_down(RebaseRange range, int scale, int largest) {
  return largest - scale > range.window ? largest - scale - range.window : 0;
}
HUMMING_HD constexpr uint8_t rebased_scale(RebaseRange range, int scale, int largest) {
  return static_cast<uint8_t>(127 + scale - largest + rebase_shift_down(range, scale, largest));
}

// Code of the format nearest to code_value * 2^-down, ties to even; the sign is kept. The result is exact if
// code_value(result) * 2^down equals the value again.
HUMMING_HD uint32_t rebase_code(const FormatTraits& format, uint32_t code, int down) {
  const int exponent = static_cast<int>((code & format.magnitude_mask()) >> format.mantissa_bits);
  const uint32_t mantissa = code & ((1u << format.mantissa_bits) - 1);
  uint32_t significand = exponent ? mantissa | 1u << format.mantissa_bits : mantissa;
  // A normal number can first give its exponent field, down to field 1; the rest is shifted out of the significand.
  const int field = exponent ? exponent : 1;
  const int lowered = down < field - 1 ? down : field - 1;
  const int out = down - lowered;
  const uint32_t sign = code & ~format.magnitude_mask();
  if (out > format.mantissa_bits + 2) return sign;
  const uint32_t half = out ? 1u << (out - 1) : 0;
  const uint32_t rest = significand & ((1u << out) - 1);
  significand >>= out;
  significand += rest > half || (rest == half && out && (significand & 1)) ? 1 : 0;
  // Field 1 with the implicit one set is a normal number, without it a subnormal: the sum below is right for both.
  return sign | ((static_cast<uint32_t>(field - lowered - 1) << format.mantissa_bits) + significand);
}

}  // namespace humming
