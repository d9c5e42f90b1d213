// Storage types of tensors and their exact conversions to and from fp32: round to nearest even, the same bits on host
// and device, no denormal fp32 intermediates (so that flush-to-zero modes change nothing), and no float operation under
// a condition (which would keep the host compiler from vectorising loops: float operations can trap).
#pragma once

#include <cstdint>

#include "core/bits.h"
#include "core/macros.h"

namespace humming {

// int4: two per byte, the low nibble is the even index, two's complement.
enum class DType : int32_t { fp32, bf16, fp16, e4m3, e5m2, e8m0, int8, int4, int32, int64 };

// Bits per element.
HUMMING_HD constexpr int dtype_bits(DType dtype) {
  return dtype == DType::int64                           ? 64
         : dtype == DType::fp32 || dtype == DType::int32 ? 32
         : dtype == DType::bf16 || dtype == DType::fp16  ? 16
         : dtype == DType::int4                          ? 4
                                                         : 8;
}

namespace codec {

// Value of a sign-less code of a binary format with `mantissa_bits` mantissa bits and exponent bias `bias`. A subnormal
// code is read as if its exponent field were 1 and its implicit one there, which is then subtracted, exactly.
HUMMING_HD float widen_magnitude(uint32_t code, int mantissa_bits, int bias) {
  const uint32_t subnormal = code >> mantissa_bits ? 0u : ~0u;
  const uint32_t exponent_offset = static_cast<uint32_t>(127 - bias) << 23;
  const uint32_t implicit_one = exponent_offset + (1u << 23);  // 2^(1 - bias)
  const uint32_t bits = (code << (23 - mantissa_bits)) + exponent_offset + (subnormal & 1u << 23);
  return float_from_bits(bits) - float_from_bits(subnormal & implicit_one);
}

// The inverse: nearest-even code of the fp32 magnitude `bits`. What does not fit, NaN included, gives a code past the
// largest, which the caller clamps. Adding 2^(exponent + 23 - mantissa_bits) leaves the significand, rounded to the
// format, in the low bits of the sum; a significand that rounds up to the next power of two carries into the exponent.
template <int kMantissa, int kBias>
HUMMING_HD int32_t narrow_magnitude(uint32_t bits) {
  constexpr int32_t kLowestExponent = 127 + 1 - kBias;                        // subnormals share it
  constexpr int32_t kTooLarge = static_cast<int32_t>(127 + kBias + 2) << 23;  // keeps the sum finite
  const int32_t magnitude = static_cast<int32_t>(bits) < kTooLarge ? static_cast<int32_t>(bits) : kTooLarge;
  const int32_t field = magnitude >> 23;
  const int32_t exponent = field > kLowestExponent ? field : kLowestExponent;
  const uint32_t unit = static_cast<uint32_t>(exponent + 23 - kMantissa) << 23;
  const uint32_t sum = bits_from_float(float_from_bits(static_cast<uint32_t>(magnitude)) + float_from_bits(unit));
  return ((exponent - kLowestExponent) << kMantissa) + static_cast<int32_t>(sum - unit);
}

inline constexpr uint32_t kFloatInfinity = 0x7F800000;

}  // namespace codec

HUMMING_HD float bf16_to_float(uint16_t code) { return float_from_bits(static_cast<uint32_t>(code) << 16); }

// NaN keeps its sign and becomes quiet.
HUMMING_HD uint16_t float_to_bf16(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  const uint32_t nan = bits >> 16 | 0x40;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > codec::kFloatInfinity ? nan : rounded);
}

HUMMING_HD float fp16_to_float(uint16_t code) {
  const uint32_t magnitude = code & 0x7FFF;
  const uint32_t special = magnitude >= 0x7C00 ? codec::kFloatInfinity : 0;  // Inf and NaN keep their mantissa
  const uint32_t sign = static_cast<uint32_t>(code & 0x8000) << 16;
  return float_from_bits(sign | special | bits_from_float(codec::widen_magnitude(magnitude, 10, 15)));
}

// Overflow becomes Inf, as IEEE has it.
HUMMING_HD uint16_t float_to_fp16(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  int32_t code = codec::narrow_magnitude<10, 15>(magnitude);
  code = code < 0x7C00 ? code : 0x7C00;
  code = magnitude > codec::kFloatInfinity ? 0x7E00 : code;
  return static_cast<uint16_t>(static_cast<uint32_t>(code) | (bits >> 16 & 0x8000));
}

// The "fn" variant: no Inf, 0x7F and 0xFF are NaN.
HUMMING_HD float e4m3_to_float(uint8_t code) {
  const uint32_t magnitude = code & 0x7F;
  const uint32_t nan = magnitude == 0x7F ? 0x7FC00000 : 0;
  const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24;
  return float_from_bits(sign | nan | bits_from_float(codec::widen_magnitude(magnitude, 3, 7)));
}

// Saturates to +-448, Inf included; NaN stays NaN.
HUMMING_HD uint8_t float_to_e4m3(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  int32_t code = codec::narrow_magnitude<3, 7>(magnitude);
  code = code < 0x7E ? code : 0x7E;
  code = magnitude > codec::kFloatInfinity ? 0x7F : code;
  return static_cast<uint8_t>(static_cast<uint32_t>(code) | (bits >> 24 & 0x80));
}

HUMMING_HD float e5m2_to_float(uint8_t code) { return fp16_to_float(static_cast<uint16_t>(code << 8)); }

// Saturates to +-57344, Inf included; NaN stays NaN.
HUMMING_HD uint8_t float_to_e5m2(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  int32_t code = codec::narrow_magnitude<2, 15>(magnitude);
  code = code < 0x7B ? code : 0x7B;
  code = magnitude > codec::kFloatInfinity ? 0x7F : code;
  return static_cast<uint8_t>(static_cast<uint32_t>(code) | (bits >> 24 & 0x80));
}

// 2^(code - 127): 0 is 2^-127 (a denormal fp32), 255 is NaN.
HUMMING_HD float e8m0_to_float(uint8_t code) {
  const uint32_t normal = static_cast<uint32_t>(code) << 23;
  return float_from_bits(code == 0 ? 0x00400000 : code == 255 ? 0x7FC00000 : normal);
}

// Smallest power of two that is >= value, for finite value >= 0 (zero gives 2^-127); NaN and what passes 2^127 give
// NaN.
HUMMING_HD uint8_t float_to_e8m0_ceil(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t code = (bits >> 23) + (bits & 0x7FFFFF ? 1 : 0);
  // Denormals up to 2^-127 belong to code 0, the rest of them to code 1 (2^-126).
  const uint32_t ceiled = bits <= 0x00400000 ? 0 : code;
  return static_cast<uint8_t>(ceiled < 255 ? ceiled : 255);
}

}  // namespace humming
