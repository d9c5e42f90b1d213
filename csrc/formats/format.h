// What lives here: the weight formats and the tensor-core operand types, as constants and small functions.
// What may not: layouts, kernels, torch. The table itself is formats.toml, which generate.py turns into
// formats_generated.h (the enum `Format` and the array `kFormats`).
#pragma once

#include <cstdint>

#include "core/bits.h"
#include "core/macros.h"

namespace humming {

enum class Kind { symmetric_int, unsigned_int, floating, table };

// Codes that are no finite number: none; all-ones magnitude (e4m3fn); every code with an all-ones exponent (IEEE).
enum class Specials { none, fn, ieee };

// The tensor-core operand a packed weight is made for. Stored in weight descriptors: never renumber.
enum class Operand : int { bf16 = 1, fp16 = 2, e4m3 = 3, s8 = 4, s4 = 5 };

constexpr const char* operand_name(Operand operand) {
  switch (operand) {
    case Operand::bf16: return "bf16";
    case Operand::fp16: return "fp16";
    case Operand::e4m3: return "e4m3";
    case Operand::s8: return "s8";
    case Operand::s4: return "s4";
  }
  return "?";
}

HUMMING_HD constexpr uint32_t operand_bit(Operand operand) { return 1u << static_cast<int>(operand); }
inline constexpr uint32_t kOperands16 = operand_bit(Operand::bf16) | operand_bit(Operand::fp16);

struct FormatTraits {
  const char* name;
  int id;
  Kind kind;
  int bits;
  int exponent_bits;  // floating only
  int mantissa_bits;  // floating only
  Specials specials;
  uint32_t operands;  // operand_bit() of every operand type that holds all values exactly; of a table, rounded
  float table[16];    // table only: the values by code

  HUMMING_HD constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  HUMMING_HD constexpr uint32_t code_mask() const { return (1u << bits) - 1; }
  HUMMING_HD constexpr uint32_t magnitude_mask() const { return code_mask() >> 1; }
};

}  // namespace humming

#include "formats/formats_generated.h"

namespace humming {

// Traits of a format number from outside; nullptr if there is no such format.
constexpr const FormatTraits* find_format(int64_t id) {
  for (const FormatTraits& row : kFormats) {
    if (row.id == id) return &row;
  }
  return nullptr;
}

constexpr const FormatTraits& traits(Format format) { return *find_format(static_cast<int>(format)); }

// Whether a code is a finite number (only e4m3 and e5m2 have others).
HUMMING_HD bool is_finite_code(const FormatTraits& format, uint32_t code) {
  const uint32_t magnitude = code & format.magnitude_mask();
  if (format.specials == Specials::fn) return magnitude != format.magnitude_mask();
  if (format.specials == Specials::ieee) return magnitude >> format.mantissa_bits != (1u << format.exponent_bits) - 1;
  return true;
}

// The number that a code stands for, without zero point, scale or offset. Exact. Codes that are not finite have no
// meaning here: packing rejects them.
HUMMING_HD float code_value(const FormatTraits& format, uint32_t code) {
  if (format.kind == Kind::table) return format.table[code];
  if (format.kind == Kind::unsigned_int) return static_cast<float>(code);
  if (format.kind == Kind::symmetric_int) {
    if (format.bits == 1) return code ? 1.0f : -1.0f;
    return static_cast<float>(static_cast<int>(code) - (1 << (format.bits - 1)));
  }
  // A subnormal code has exponent field 0, the exponent of field 1, and no implicit one.
  const int exponent = static_cast<int>((code & format.magnitude_mask()) >> format.mantissa_bits);
  const uint32_t mantissa = code & ((1u << format.mantissa_bits) - 1);
  const uint32_t significand = exponent ? mantissa | 1u << format.mantissa_bits : mantissa;
  const float unit = float_from_bits(
      static_cast<uint32_t>(127 + (exponent ? exponent : 1) - format.bias() - format.mantissa_bits) << 23);
  const float value = static_cast<float>(significand) * unit;
  return code >> (format.bits - 1) ? -value : value;
}

}  // namespace humming
