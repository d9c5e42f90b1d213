// Bit and packed 16-bit operations of the GPU, each with a host twin of the same bits, so that a dequantisation
// sequence is written once and tested exhaustively on the CPU. The only file outside csrc/mainloop with inline
// assembly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/macros.h"

namespace humming {

HUMMING_HD float float_from_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

HUMMING_HD uint32_t bits_from_float(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

HUMMING_HD constexpr float power_of_two(int exponent) {
  float value = 1;
  for (; exponent > 0; --exponent) value *= 2;
  for (; exponent < 0; ++exponent) value /= 2;
  return value;
}

// Integers below 2^22 in magnitude as floats without a conversion, of which a multiprocessor has few. From 2^23 to 2^24
// one ulp is 1, so that the bits of 1.5 * 2^23, kIntegerOrigin, plus i are those of 1.5 * 2^23 + i as long as that
// stays between the two; the difference is exact. Sums that begin at kIntegerOrigin instead of 0 need no addition for
// it.
inline constexpr int kIntegerOrigin = 0x4B400000;
HUMMING_HD float float_from_origin(int sum) { return float_from_bits(static_cast<uint32_t>(sum)) - 12582912.0f; }

// ---- logic ---------------------------------------------------------------------------------------------------------

// Look-up tables of lop3: the function of three inputs, evaluated on these patterns, gives its table.
inline constexpr uint32_t kLutA = 0xF0, kLutB = 0xCC, kLutC = 0xAA;

// Any bitwise function of three words in one instruction; kLut as in PTX lop3.b32.
template <uint32_t kLut>
HUMMING_HD uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(kLut));
  return d;
#else
  uint32_t d = 0;
  for (int minterm = 0; minterm < 8; ++minterm) {
    if (kLut >> minterm & 1) d |= (minterm & 4 ? a : ~a) & (minterm & 2 ? b : ~b) & (minterm & 1 ? c : ~c);
  }
  return d;
#endif
}

HUMMING_HD uint32_t and_or(uint32_t a, uint32_t mask, uint32_t c) { return lop3<(kLutA & kLutB) | kLutC>(a, mask, c); }
HUMMING_HD uint32_t and_xor(uint32_t a, uint32_t mask, uint32_t c) { return lop3<(kLutA & kLutB) ^ kLutC>(a, mask, c); }

// Byte permute, PTX prmt.b32 in its default mode: nibble i of `selector` picks byte 0..7 of {b, a} for result byte i;
// its bit 3 replicates the sign of that byte over the result byte instead.
HUMMING_HD uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef __CUDA_ARCH__
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
  return d;
#else
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 0xF;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (nibble & 7))) & 0xFF;
    if (nibble & 8) byte = byte & 0x80 ? 0xFF : 0;
    d |= byte << (8 * i);
  }
  return d;
#endif
}

// ---- packed 16-bit arithmetic ---------------------------------------------------------------------------------------

#ifndef __CUDA_ARCH__
namespace host_twin {

// Rounds to a binary format of the IEEE kind (overflow becomes Inf), to nearest even. `value` holds the exact number or
// the exact number rounded to odd, which cannot lie on a tie of a format this narrow.
inline uint32_t round_to(double value, int exponent_bits, int mantissa_bits) {
  const uint32_t sign = std::signbit(value) ? 1u << (exponent_bits + mantissa_bits) : 0;
  const uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
  if (std::isnan(value)) return infinity | (infinity >> 1);
  if (std::isinf(value)) return sign | infinity;
  if (value == 0) return sign;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  int exponent = 0;
  std::frexp(value, &exponent);                        // |value| in [2^(exponent-1), 2^exponent)
  const int field = std::max(exponent - 1 + bias, 1);  // subnormals share the exponent of field 1
  // The significand counts units of 2^(field - bias - mantissa_bits). Adding (field - 1) << mantissa_bits carries a
  // significand that rounded up into the next exponent, and leaves field 0 for subnormals.
  const double significand = std::nearbyint(std::ldexp(std::fabs(value), bias + mantissa_bits - field));
  const uint32_t bits =
      (static_cast<uint32_t>(field - 1) << mantissa_bits) + static_cast<uint32_t>(static_cast<uint64_t>(significand));
  return sign | (bits < infinity ? bits : infinity);
}

// a * b + c rounded to odd in double: a and b have at most 11 significant bits, so the product is exact; the sum's
// lost part is found by the two-sum and made sticky.
inline double fma_to_odd(float a, float b, float c) {
  const double product = static_cast<double>(a) * b;
  const double sum = product + c;
  if (!std::isfinite(sum)) return sum;
  const double other = sum - product;
  const double lost = (product - (sum - other)) + (c - other);
  uint64_t bits;
  std::memcpy(&bits, &sum, sizeof bits);
  if (lost == 0 || bits & 1) return sum;
  const double infinity = std::numeric_limits<double>::infinity();
  return std::nextafter(sum, lost > 0 ? infinity : -infinity);
}

inline float float_from_f16(uint32_t bits) {
  const int exponent = bits >> 10 & 0x1F;
  const int mantissa = bits & 0x3FF;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 0x1F) {
    return mantissa ? std::numeric_limits<float>::quiet_NaN() : sign * std::numeric_limits<float>::infinity();
  }
  return sign * std::ldexp(static_cast<float>(exponent ? mantissa + 0x400 : mantissa), (exponent ? exponent : 1) - 25);
}

inline float float_from_bf16(uint32_t bits) { return float_from_bits(bits << 16); }

template <float (*kWiden)(uint32_t), int kExponentBits, int kMantissaBits>
inline uint32_t fma_x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const double exact =
        fma_to_odd(kWiden(a >> shift & 0xFFFF), kWiden(b >> shift & 0xFFFF), kWiden(c >> shift & 0xFFFF));
    d |= round_to(exact, kExponentBits, kMantissaBits) << shift;
  }
  return d;
}

}  // namespace host_twin
#endif

// a * b + c per half word, one rounding to nearest even, subnormals kept.
HUMMING_HD uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  return host_twin::fma_x2<host_twin::float_from_bf16, 8, 7>(a, b, c);
#endif
}

HUMMING_HD uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  return host_twin::fma_x2<host_twin::float_from_f16, 5, 10>(a, b, c);
#endif
}

// The same two with a * b alone (c = -0 leaves every product, signed zeros included, as it is), and with 1 * a + c.
inline constexpr uint32_t kNegativeZero16x2 = 0x80008000;
inline constexpr uint32_t kOneBf16x2 = 0x3F803F80;
inline constexpr uint32_t kOneF16x2 = 0x3C003C00;

HUMMING_HD uint32_t mul_bf16x2(uint32_t a, uint32_t b) { return fma_bf16x2(a, b, kNegativeZero16x2); }
HUMMING_HD uint32_t mul_f16x2(uint32_t a, uint32_t b) { return fma_f16x2(a, b, kNegativeZero16x2); }
HUMMING_HD uint32_t add_bf16x2(uint32_t a, uint32_t c) { return fma_bf16x2(a, kOneBf16x2, c); }
HUMMING_HD uint32_t add_f16x2(uint32_t a, uint32_t c) { return fma_f16x2(a, kOneF16x2, c); }

// Two fp32 values rounded to bf16 or fp16 (nearest even, overflow to Inf), `low` in the low half word.
HUMMING_HD uint32_t bf16x2_from_floats(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
#else
  return host_twin::round_to(low, 8, 7) | host_twin::round_to(high, 8, 7) << 16;
#endif
}

HUMMING_HD uint32_t f16x2_from_floats(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
#else
  return host_twin::round_to(low, 5, 10) | host_twin::round_to(high, 5, 10) << 16;
#endif
}

HUMMING_HD float float_from_f16(uint16_t bits) {
#ifdef __CUDA_ARCH__
  float d;
  asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(bits));
  return d;
#else
  return host_twin::float_from_f16(bits);
#endif
}

// Two fp16 values to two e4m3 bytes (low half word to low byte), nearest even, saturating to +-448; NaN stays NaN. One
// instruction from sm_89 on; older GPUs have no e4m3 operand and never run it.
HUMMING_HD uint32_t e4m3x2_from_f16x2(uint32_t a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t d;
  asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(d) : "r"(a));
  return d;
#elif defined(__CUDA_ARCH__)
  __trap();
  return 0;
#else
  uint32_t d = 0;
  for (int half = 0; half < 2; ++half) {
    const float value = host_twin::float_from_f16(a >> (16 * half) & 0xFFFF);
    uint32_t byte = 0x7F;
    if (!std::isnan(value)) {
      // Rounded as if the all-ones exponent were Inf's; what lies there is [256, 448] with steps of 32, or saturates.
      byte = std::fabs(value) < 248
                 ? host_twin::round_to(value, 4, 3)
                 : 0x78 | static_cast<uint32_t>(std::fmin(std::nearbyint(std::fabs(value) / 32) - 8, 6));
      byte |= std::signbit(value) ? 0x80 : 0;
    }
    d |= byte << (8 * half);
  }
  return d;
#endif
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
// Two fp32 values to two e4m3 bytes (`low` to the low byte), nearest even, saturating to +-448; NaN becomes 0x7F. Its
// twin is float_to_e4m3, for values that are no negative NaN.
__device__ __forceinline__ uint32_t e4m3x2_from_f32x2(float low, float high) {
  uint16_t d;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(high), "f"(low));
  return d;
}
#endif

// The inverse: two e4m3 bytes (low half word) to two fp16 values, exact.
HUMMING_HD uint32_t f16x2_from_e4m3x2(uint32_t a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t d;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(d) : "h"(static_cast<uint16_t>(a)));
  return d;
#elif defined(__CUDA_ARCH__)
  __trap();
  return 0;
#else
  uint32_t d = 0;
  for (int half = 0; half < 2; ++half) {
    const uint32_t byte = a >> (8 * half) & 0xFF;
    const int exponent = byte >> 3 & 0xF;
    const int mantissa = byte & 7;
    const double magnitude = std::ldexp(exponent ? mantissa + 8 : mantissa, (exponent ? exponent : 1) - 10);
    const uint32_t bits = (byte & 0x7F) == 0x7F ? 0x7FFF : host_twin::round_to(magnitude, 5, 10);
    d |= (bits | (byte & 0x80) << 8) << (16 * half);
  }
  return d;
#endif
}

}  // namespace humming
