// What lives in csrc/dequant: the sequences that turn stored codes into MMA operands, each with its derivation, on bit
// operations that have host twins. What may not: memory accesses, CUDA headers, torch.
//
// This file: codes to operands, register by register.
//
//   Dequant<format, operand, zero>::reg<n>(words, param)   register n of a lane's patch (word_codec.h) from its words
//   Dequant<...>::param(zero point)                        what reg wants for a row; prepared once per group
//   Dequant<...>::kExponent                                number = operand * 2^kExponent, exactly
//
//   RawDequant<format, operand>::reg<n>(words)             moved only, for products that take the rest on themselves
//
// `number` is the code's value, less the zero point where there is one, without scales. For 16-bit operands kExponent
// is 0 and the group scale is applied by scale.h; for 8- and 4-bit operands the power of two joins the epilogue's
// scale. Every sequence below states why it is exact; tests/host runs all of them over every code in every position.
#pragma once

#include <cstdint>

#include "core/bits.h"
#include "dequant/gather.h"
#include "formats/format.h"
#include "layout/rebase.h"
#include "layout/weight_desc.h"
#include "layout/word_codec.h"

namespace humming {

HUMMING_HD constexpr uint32_t repeat16(uint32_t half) { return half * 0x00010001u; }
HUMMING_HD constexpr uint32_t repeat8(uint32_t byte) { return byte * 0x01010101u; }
HUMMING_HD constexpr uint32_t repeat4(uint32_t nibble) { return nibble * 0x11111111u; }

namespace dequant {

// What the sequences share: the format's constants and where its bits go.
template <Format kFormat, Operand kOperand>
struct Base {
  static constexpr FormatTraits kTraits = traits(kFormat);
  static_assert(kTraits.kind != Kind::table, "a table of values has no sequence: leave its products to gemm_any");
  static constexpr int kBits = kTraits.bits;
  static constexpr Order kOrder = order_of(kOperand);
  static constexpr int kUnit = 32 / values_per_register(kOrder);

  struct Low {  // the whole code at the low end of the unit
    static constexpr Destination kTo = place(0, kBits, 0);
  };
  struct Top {  // the whole code at the high end
    static constexpr Destination kTo = place(0, kBits, kUnit - kBits);
  };

  template <class Placement, int n>
  HUMMING_HD static uint32_t gather(const uint32_t* words, uint32_t base) {
    return Gather<codec_of(kTraits), kOrder, kBits, Placement, n>::run(words, base);
  }
};

// The zero point that turns a stored integer code into its number: 2^(bits-1) for offset binary, none for plain uint.
HUMMING_HD constexpr uint32_t implied_zero(const FormatTraits& format) {
  return format.kind == Kind::symmetric_int ? 1u << (format.bits - 1) : 0;
}

// Integers of up to 7 bits to bf16, up to 8 to fp16. Or-ing a code into the mantissa of 2^m, m the operand's mantissa
// bits, gives 2^m + code because one ulp of 2^m is 1. Adding -(2^m + zero) is exact: the constant is an integer of at
// most m + 1 bits and the result one of at most m.
template <Format kFormat, Operand kOperand>
struct IntToHalf : Base<kFormat, kOperand> {
  using B = Base<kFormat, kOperand>;
  static constexpr bool kBf16 = kOperand == Operand::bf16;
  static constexpr int kMantissa = kBf16 ? 7 : 10;
  static constexpr uint32_t kMagic = kBf16 ? 0x4300 : 0x6400;  // 128 in bf16, 1024 in fp16
  static constexpr int kExponent = 0;

  // -(2^m + zero): zero <= 2^bits <= 2^m, so the sum keeps the exponent of 2^m, or is 2^(m+1) itself.
  HUMMING_HD static uint32_t param(uint32_t zero) { return repeat16(0x8000 | (kMagic + zero)); }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, uint32_t param) {
    const uint32_t shifted_up = B::template gather<typename B::Low, n>(words, repeat16(kMagic));
    return kBf16 ? add_bf16x2(shifted_up, param) : add_f16x2(shifted_up, param);
  }
};

// 8-bit integers to bf16, whose mantissa has 7 bits: the low 7 bits give 128 + low as above; subtracting 256, or 128
// where the top bit is set, leaves code - 128 (an integer of at most 8 bits, exact). The two constants differ in one
// bit, which the code's top bit flips. Then 128 - zero is added; all integers up to 256 in magnitude are bf16 numbers.
template <Format kFormat>
struct Int8ToBf16 : Base<kFormat, Operand::bf16> {
  using B = Base<kFormat, Operand::bf16>;
  static constexpr int kExponent = 0;

  struct LowBits {
    static constexpr Destination kTo = place(0, 7, 0);
  };
  struct TopBit {
    static constexpr Destination kTo = place(7, 1, 7);
  };

  // 128 - zero as bf16: an integer of magnitude up to 128, so the upper half of the float is the number.
  HUMMING_HD static uint32_t param(uint32_t zero) {
    return repeat16(bits_from_float(static_cast<float>(128 - static_cast<int>(zero))) >> 16);
  }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, uint32_t param) {
    const uint32_t low = B::template gather<LowBits, n>(words, repeat16(0x4300));      // 128 + low
    const uint32_t constant = B::template gather<TopBit, n>(words, repeat16(0xC380));  // -256, or -128 = 0xC300
    const uint32_t centred = add_bf16x2(low, constant);
    if constexpr (B::kTraits.kind == Kind::symmetric_int) return centred;
    return add_bf16x2(centred, param);
  }
};

// Small floats to bf16 or fp16: sign to the sign, exponent field to the low end of the operand's field, mantissa to the
// high end of its mantissa. Read as the operand this is number * 2^(bias - operand bias), subnormals included: both
// formats give exponent field 0 the exponent of field 1 and no implicit one. The multiplication by the power of two is
// exact.
template <Format kFormat, Operand kOperand>
struct FloatToHalf : Base<kFormat, kOperand> {
  using B = Base<kFormat, kOperand>;
  static constexpr bool kBf16 = kOperand == Operand::bf16;
  static constexpr int kMantissa = kBf16 ? 7 : 10;
  static constexpr int kRebias = (kBf16 ? 127 : 15) - B::kTraits.bias();
  static constexpr uint32_t kFactor = static_cast<uint32_t>(kRebias + (kBf16 ? 127 : 15)) << kMantissa;  // 2^kRebias
  static constexpr int kExponent = 0;
  static_assert(kBf16 || kRebias <= 15, "2^kRebias must be a finite fp16 number");

  struct Placement {
    static constexpr Destination kTo =
        place(0, B::kBits - 1, kMantissa - B::kTraits.mantissa_bits, place(B::kBits - 1, 1, 15));
  };

  HUMMING_HD static uint32_t param(uint32_t) { return 0; }
  template <int n>
  HUMMING_HD static uint32_t placed(const uint32_t* words) {
    return B::template gather<Placement, n>(words, 0);
  }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, uint32_t) {
    if constexpr (kRebias == 0) return placed<n>(words);
    return kBf16 ? mul_bf16x2(placed<n>(words), repeat16(kFactor)) : mul_f16x2(placed<n>(words), repeat16(kFactor));
  }
};

// Symmetric integers to s8 or s4: the stored two's complement at the top of the unit is number * 2^(unit - bits). int1
// has the sign bit alone; a one below it makes -2^(unit-2) or +2^(unit-2).
template <Format kFormat, Operand kOperand>
struct IntToInteger : Base<kFormat, kOperand> {
  using B = Base<kFormat, kOperand>;
  static constexpr bool kSign = kFormat == Format::int1;
  static constexpr int kExponent = kSign ? 2 - B::kUnit : B::kBits - B::kUnit;
  static constexpr uint32_t kBase = !kSign ? 0 : B::kUnit == 8 ? repeat8(0x40) : repeat4(0x4);

  HUMMING_HD static uint32_t param(uint32_t) { return 0; }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, uint32_t) {
    return B::template gather<typename B::Top, n>(words, kBase);
  }
};

// Unsigned integers less their zero point to s8 or s4. With the unit's top bit set, half + code - zero stays within the
// unit (0 <= zero <= half), so one subtraction serves all units without borrows; flipping the top bit removes half
// again and leaves two's complement.
template <Format kFormat, Operand kOperand>
struct UintToInteger : Base<kFormat, kOperand> {
  using B = Base<kFormat, kOperand>;
  static constexpr uint32_t kHalf = B::kUnit == 8 ? repeat8(0x80) : repeat4(0x8);
  static constexpr int kExponent = 0;

  HUMMING_HD static uint32_t param(uint32_t zero) { return B::kUnit == 8 ? repeat8(zero) : repeat4(zero); }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, uint32_t param) {
    return (B::template gather<typename B::Low, n>(words, kHalf) - param) ^ kHalf;
  }
};

// Unsigned integers without a zero point, of fewer bits than the unit: they are the operand.
template <Format kFormat, Operand kOperand>
struct PlainUint : Base<kFormat, kOperand> {
  using B = Base<kFormat, kOperand>;
  // e4m3 bit patterns 0..15 read as 2^-9 times themselves: subnormals up to 7, and field 1 carries on in the same
  // steps.
  static constexpr int kExponent = kOperand == Operand::e4m3 ? 9 : 0;

  HUMMING_HD static uint32_t param(uint32_t) { return 0; }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, uint32_t) {
    return B::template gather<typename B::Low, n>(words, 0);
  }
};

// Integers to e4m3 through sign and magnitude: the byte pattern m <= 16 reads as m * 2^-9 (see PlainUint; 16 is 0x10,
// field 2 without mantissa, 2^-5). The signed byte comes as in UintToInteger, with zero 2^(bits-1) for symmetric
// formats, whose stored top bit is flipped back on the way. Negative bytes become their magnitude by complement plus
// one; no magnitude exceeds 16, so bytes do not carry into each other.
template <Format kFormat>
struct IntToE4m3 : Base<kFormat, Operand::e4m3> {
  using B = Base<kFormat, Operand::e4m3>;
  static constexpr bool kSymmetric = B::kTraits.kind == Kind::symmetric_int;
  static constexpr uint32_t kFlip = kSymmetric ? implied_zero(B::kTraits) : 0;
  static constexpr int kExponent = 9;

  HUMMING_HD static uint32_t param(uint32_t zero) { return repeat8(zero); }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, uint32_t param) {
    const uint32_t byte =
        (B::template gather<typename B::Low, n>(words, repeat8(0x80 | kFlip)) - param) ^ repeat8(0x80);
    const uint32_t negative = prmt(byte, byte, 0xBA98);  // 0xFF where the byte is negative
    const uint32_t magnitude = (byte ^ negative) + (negative & repeat8(1));
    return and_or(negative, repeat8(0x80), magnitude);
  }
};

// int1 to floats: the stored bit over the sign of one number, 1 for 16-bit operands and 2^-9 for e4m3. Stored for e4m3
// is the sign, for 16-bit operands the code, which is 0 for -1.
template <Operand kOperand>
struct Int1ToFloat : Base<Format::int1, kOperand> {
  using B = Base<Format::int1, kOperand>;
  static constexpr bool kFp8 = kOperand == Operand::e4m3;
  static constexpr int kExponent = kFp8 ? 9 : 0;
  static constexpr uint32_t kBase =
      kFp8 ? repeat8(0x01) : repeat16(0x8000 ^ (kOperand == Operand::bf16 ? 0x3F80 : 0x3C00));

  HUMMING_HD static uint32_t param(uint32_t) { return 0; }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, uint32_t) {
    return B::template gather<typename B::Top, n>(words, kBase);
  }
};

// Floats of at most 4 exponent and 3 mantissa bits to e4m3: placed as in FloatToHalf, number * 2^(bias - 7).
template <Format kFormat>
struct FloatToE4m3 : Base<kFormat, Operand::e4m3> {
  using B = Base<kFormat, Operand::e4m3>;
  static constexpr int kExponent = 7 - B::kTraits.bias();

  struct Placement {
    static constexpr Destination kTo = place(0, B::kBits - 1, 3 - B::kTraits.mantissa_bits, place(B::kBits - 1, 1, 7));
  };

  HUMMING_HD static uint32_t param(uint32_t) { return 0; }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, uint32_t) {
    return B::template gather<Placement, n>(words, 0);
  }
};

// The eight magnitudes of e2m1 as e4m3 bytes at exponent offset d, for PRMT.
struct E2m1Table {
  uint32_t low, high;  // 0, 0.5, 1, 1.5 and 2, 3, 4, 6, times 2^(d - 5)
};

// e2m1 to e4m3 by table. Magnitudes are PRMT selectors, four per half word (word_codec.h); the signs lie where one mask
// (slot 0) or one shift and mask (slot 1) finds them. The table's nonzero entries are normal numbers, so adding d to
// their exponent fields multiplies them by 2^d exactly for d in 0..11: 0.5 * 2^-5 = 2^-6 is the smallest normal, 6 *
// 2^6 = 384 is below 448. Zero has no exponent to add to and is left out of the sum.
struct E2m1ToE4m3 {
  static constexpr int kExponent = rebase_range(traits(Format::e2m1), Operand::e4m3).shift;
  static_assert(kExponent == 5, "the table below holds value * 2^-5");

  // d = stored - kZero. The difference is a constant of the sums, which are modulo 2^32.
  template <uint32_t kZero>
  HUMMING_HD static E2m1Table table(uint32_t stored) {
    constexpr uint32_t kLow = 0x08080800u, kHigh = 0x08080808u;
    return {stored * kLow + (0x14100800u - kZero * kLow), stored * kHigh + (0x24201C18u - kZero * kHigh)};
  }
  HUMMING_HD static E2m1Table param(uint32_t) { return table<0>(0); }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, E2m1Table table) {
    const uint32_t word = words[n / 2];
    const uint32_t selectors = word & repeat8(0x77);  // PRMT reads 16 bits of it
    if constexpr (n % 2 == 0) return and_or(word, repeat8(0x80), prmt(table.low, table.high, selectors));
    return and_or(word << 4, repeat8(0x80), prmt(table.low, table.high, prmt(selectors, 0, 0x4432)));
  }
};

template <Format kFormat, Operand kOperand, bool kZeroPoint>
constexpr auto select() {
  constexpr Kind kKind = traits(kFormat).kind;
  constexpr bool k16 = kOperand == Operand::bf16 || kOperand == Operand::fp16;
  constexpr bool kFp8 = kOperand == Operand::e4m3;
  if constexpr (kKind == Kind::floating) {
    if constexpr (k16)
      return FloatToHalf<kFormat, kOperand>{};
    else if constexpr (kFormat == Format::e2m1)
      return E2m1ToE4m3{};
    else
      return FloatToE4m3<kFormat>{};
  } else if constexpr (kFormat == Format::int1 && (k16 || kFp8)) {
    return Int1ToFloat<kOperand>{};
  } else if constexpr (k16) {
    if constexpr (kOperand == Operand::bf16 && traits(kFormat).bits == 8)
      return Int8ToBf16<kFormat>{};
    else
      return IntToHalf<kFormat, kOperand>{};
  } else if constexpr (kKind == Kind::unsigned_int && !kZeroPoint) {
    return PlainUint<kFormat, kOperand>{};
  } else if constexpr (kFp8) {
    return IntToE4m3<kFormat>{};
  } else if constexpr (kKind == Kind::unsigned_int) {
    return UintToInteger<kFormat, kOperand>{};
  } else {
    return IntToInteger<kFormat, kOperand>{};
  }
}

}  // namespace dequant

// The sequence of a legal (format, operand, integer zero point or not). Where there is no zero point, `param` wants
// implied_zero().
template <Format kFormat, Operand kOperand, bool kZeroPoint>
using Dequant = decltype(dequant::select<kFormat, kOperand, kZeroPoint>());

// Codes as 16-bit operands with nothing done to them but moves, for a product that takes the rest on itself:
//
//   number * 2^-kExponent = raw * 2^token_exponent(n) - centre(zero) * one(n) * 2^token_exponent(n)
//
// so that sum(number * x) = 2^kExponent * (sum(raw * x') - centre * sum(one * x')) with tokens x' = x *
// 2^token_exponent(n), exact as long as x' is a number. Where scales stand outside of the sums, this spares the
// arithmetic on every code; tokens are fewer.
//
// bf16: fields 0 and 1 of the exponent share their scale, 2^-133 a step, so bits 7..0 read as an integer in these
// steps. A code anywhere in them is its value * 2^(position - 133): one mask where word_codec.h puts it there. Small
// floats are placed as in FloatToHalf, number * 2^-rebias. Sums of these would lie below what fp32 holds in full; 2^80
// on the tokens leaves room on both sides: x up to 2^46, and sums of 24 bits down to x of 2^-49.
//
// fp16: the tokens have no room for a factor. Integers are 2^10 + code as in IntToHalf, floats number * 2^-rebias.
template <Format kFormat, Operand kOperand>
struct RawDequant : dequant::Base<kFormat, kOperand> {
  using B = dequant::Base<kFormat, kOperand>;
  static constexpr bool kBf16 = kOperand == Operand::bf16;
  static constexpr bool kFloat = B::kTraits.kind == Kind::floating;
  static constexpr bool kSign = kFormat == Format::int1;
  static constexpr int kUnitExponent = -133;  // of bit 0 of a bf16
  static constexpr int kTokenExponent = 80;   // of the tokens of codes at bit 0

  // Lowest bit of register n's codes.
  HUMMING_HD static constexpr int position(int n) {
    const int windowed = windowed_registers(B::kBits);
    const bool moved = !kBf16 || !lie_whole(Order::k16, B::kBits) || n >= B::kBits * windowed;
    return moved ? 0 : B::kBits * (n % windowed / 2);
  }
  template <int n>
  struct Placement {
    static constexpr Destination kTo = place(0, B::kBits, kBf16 ? position(n) : kSign);
  };
  static constexpr int float_exponent() {
    if constexpr (kFloat) return dequant::FloatToHalf<kFormat, kOperand>::kRebias;
    return 0;
  }
  // int1 is twice its code less one half.
  static constexpr int kExponent = kBf16 ? -kUnitExponent - kTokenExponent + kSign : float_exponent();

  HUMMING_HD static constexpr int token_exponent(int n) {
    return !kBf16 ? 0 : kFloat ? float_exponent() - kExponent : kTokenExponent - position(n);
  }
  static constexpr bool kHasCentre = !kFloat;
  HUMMING_HD static float centre(uint32_t zero) {
    if (kBf16) return kSign ? 0.5f : static_cast<float>(zero);
    return kSign ? 1025.0f : static_cast<float>(1024 + zero);
  }
  HUMMING_HD static constexpr uint32_t one(int n) { return repeat16(kBf16 ? 1u << position(n) : 0x3C00u); }
  HUMMING_HD static constexpr float row_factor(int) { return 1; }

  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words) {
    if constexpr (kFloat) return dequant::FloatToHalf<kFormat, kOperand>::template placed<n>(words);
    return B::template gather<Placement<n>, n>(words, kBf16 ? 0 : repeat16(0x6400));
  }
};

// e4m3, for tokens that are widened to fp16: of integers of four bits. Below 2^-14 fp16 has one scale, 2^-24 a step, so
// bits 9..0 read as an integer in these steps. A register of e4m3, four values of a row, gives two of fp16: values 0
// and 2 of its unit of 16 bits, and 1 and 3 a byte down; so register n = 4 * step + i here is part step % 2 of register
// 4 * (step / 2) + i there. Codes in the upper half of a byte are 16 times themselves. They are those of whole rows,
// whose sums row_factor(row half) corrects.
template <Format kFormat>
struct RawDequant<kFormat, Operand::e4m3> {
  static constexpr FormatTraits kTraits = traits(kFormat);
  static_assert(kTraits.bits == 4 && kTraits.kind != Kind::floating, "a code is half of a byte");
  static constexpr int kExponent = 24;
  static constexpr bool kHasCentre = true;

  HUMMING_HD static constexpr int position(int n) { return slot_of(Order::k32, 4, n % 4).bit; }
  HUMMING_HD static constexpr int token_exponent(int) { return 0; }
  HUMMING_HD static float centre(uint32_t zero) { return static_cast<float>(zero); }
  HUMMING_HD static constexpr uint32_t one(int n) { return repeat16(1u << position(n)); }
  HUMMING_HD static constexpr float row_factor(int row_half) { return 1.0f / (1 << position(row_half)); }

  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words) {
    constexpr int kRegister = n / 8 * 4 + n % 4;
    const uint32_t word = words[slot_of(Order::k32, 4, kRegister).word] >> n / 4 % 2 * 8;
    const uint32_t flipped = stored_code(kTraits, Order::k32, 0);
    return (word & repeat16(0xFu << position(n))) ^ repeat16(flipped << position(n));
  }
};

// Operands with the group's e8m0 scale folded in: number * 2^(stored scale - 127) = operand * 2^kExponent, exact for
// every scale that packing leaves (rebase.h). `param` takes the stored scale.
template <Format kFormat, Operand kOperand>
struct FoldedDequant;

// e4m3: the placed bytes through fp16 and back. The window was chosen so that every product is an e4m3 number: the
// conversion back does not round.
template <Format kFormat>
struct FoldedDequant<kFormat, Operand::e4m3> {
  static constexpr RebaseRange kRange = rebase_range(traits(kFormat), Operand::e4m3);
  static constexpr int kExponent = kRange.shift - kRange.window;
  using Plain = dequant::FloatToE4m3<kFormat>;

  // 2^(d - shift) over the power of two that Plain leaves, as fp16, d = stored - (127 - window): fields 1..30.
  HUMMING_HD static uint32_t param(uint32_t stored) {
    const int d = static_cast<int>(stored) - 127 + kRange.window;
    return repeat16(static_cast<uint32_t>(d - kRange.shift + Plain::kExponent + 15) << 10);
  }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, uint32_t param) {
    const uint32_t bytes = Plain::template reg<n>(words, 0);
    const uint32_t low = e4m3x2_from_f16x2(mul_f16x2(f16x2_from_e4m3x2(bytes), param));
    const uint32_t high = e4m3x2_from_f16x2(mul_f16x2(f16x2_from_e4m3x2(bytes >> 16), param));
    return low | high << 16;
  }
};

template <>
struct FoldedDequant<Format::e2m1, Operand::e4m3> : dequant::E2m1ToE4m3 {
  static constexpr RebaseRange kRange = rebase_range(traits(Format::e2m1), Operand::e4m3);
  static constexpr int kExponent = kRange.shift - kRange.window;
  HUMMING_HD static dequant::E2m1Table param(uint32_t stored) { return table<127 - kRange.window>(stored); }
};

// bf16: the factor that FloatToHalf multiplies by takes the scale along. 2^(127 - bias + stored - 127) is a normal bf16
// number because packing leaves stored <= 127.
template <Format kFormat>
struct FoldedDequant<kFormat, Operand::bf16> {
  static constexpr int kExponent = 0;
  using Plain = dequant::FloatToHalf<kFormat, Operand::bf16>;

  HUMMING_HD static uint32_t param(uint32_t stored) {
    return (stored + 127 - traits(kFormat).bias()) * repeat16(1 << 7);
  }
  template <int n>
  HUMMING_HD static uint32_t reg(const uint32_t* words, uint32_t param) {
    return mul_bf16x2(Plain::template placed<n>(words), param);
  }
};

}  // namespace humming
