// exp, sigmoid and erfc in fp32, of explicit fma, multiply, add and divide only: the same bits on host and device
// (host compiled with -ffp-contract=off, device with --fmad=false), and loops over them vectorise.
// Polynomials are least-squares fits in double, reweighted to equal relative error (Lawson), rounded to fp32; the
// errors given are those of the fp32 results against exact values over the whole range.
#pragma once

#include <cstdint>

#include "core/bits.h"
#include "core/macros.h"

namespace humming {
namespace math {

HUMMING_HD float fma(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

HUMMING_HD float abs(float x) { return float_from_bits(bits_from_float(x) & 0x7FFFFFFF); }

// condition ? a : b with both sides computed: a float operation that only one side needs would become a branch, and the
// loop around it scalar.
HUMMING_HD float select(bool condition, float a, float b) {
#ifdef __CUDA_ARCH__
  return condition ? a : b;
#else
  const uint32_t mask = condition ? ~0u : 0u;
  return float_from_bits((bits_from_float(a) & mask) | (bits_from_float(b) & ~mask));
#endif
}

// Nearest integer, ties to even, for |x| < 2^22: beyond 1.5 * 2^23 the unit of an fp32 is one.
inline constexpr float kRoundingBias = 12582912.0f;
HUMMING_HD float round_even(float x) { return (x + kRoundingBias) - kRoundingBias; }

// Quotients of many values by one divisor, as the division of each would round them, by multiplications: q0 = value / d
// within 1.5 ulp, as 1 / d is within half an ulp; then two steps q + (value - q d) / d. The first gives a q within one
// ulp, whose remainder is a number of fp32, so that the second rounds correctly (P. Markstein, IBM J. Res. Dev. 34,
// 1990).
//
// Where `works`, for quotients up to 2^60, so that nothing overflows. Of those below 2^-41, whose remainders may
// underflow, only the sign and that they are below is right.
struct Divisor {
  float divisor, reciprocal;
  bool works;  // d in [2^-60, 2^60], not of all ones

  HUMMING_HD explicit Divisor(float d) : divisor(d), reciprocal(1.0f / d) {
    const uint32_t bits = bits_from_float(d), ones = 0x7FFFFF;
    works = (127 - 60) << 23 <= bits && bits <= (127u + 60) << 23 && (bits & ones) != ones;
  }
  HUMMING_HD float quotient(float value) const {
    float q = value * reciprocal;
    q = fma(fma(-q, divisor, value), reciprocal, q);
    q = fma(fma(-q, divisor, value), reciprocal, q);
    const uint32_t sign = 0x80000000;  // of zeros, too
    return float_from_bits((bits_from_float(q) & ~sign) | (bits_from_float(value) & sign));
  }
};

// e^x, within 1.1 ulp; 0 below -104 and Inf above 89. x = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r), q of
// degree 4 (relative error 1.1e-8). ln 2 is split so that n times its upper part is exact. 2^n is applied in two
// factors, each a normal number, so that results in the denormal range are right.
HUMMING_HD float exp(float x) {
  constexpr float kLog2E = 1.44269502f, kLn2Upper = 0.693145752f, kLn2Lower = 1.42860677e-06f;
  const float clamped = x > 89.0f ? 89.0f : x < -104.0f ? -104.0f : x;
  const float biased = fma(clamped, kLog2E, kRoundingBias);
  const float n = biased - kRoundingBias;
  const float r = fma(n, -kLn2Lower, fma(n, -kLn2Upper, clamped));
  float q = 0.00139012875f;
  q = fma(q, r, 0.00836314633f);
  q = fma(q, r, 0.0416668542f);
  q = fma(q, r, 0.166665778f);
  q = fma(q, r, 0.5f);
  const float e_r = fma(r * r, q, r) + 1.0f;
  const int32_t exponent = static_cast<int32_t>(bits_from_float(biased) - bits_from_float(kRoundingBias));
  const int32_t half = exponent >> 1;
  const float scale0 = float_from_bits(static_cast<uint32_t>(half + 127) << 23);
  const float scale1 = float_from_bits(static_cast<uint32_t>(exponent - half + 127) << 23);
  return e_r * scale0 * scale1;
}

// 1 / (1 + e^-x), within 2.5 ulp: both signs go through e^-|x| <= 1, so nothing overflows or cancels.
HUMMING_HD float sigmoid(float x) {
  const float e = exp(-abs(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

namespace detail {

// erf(x) / x on [0, 1], a polynomial of degree 6 in x^2 (relative error 1.2e-9).
HUMMING_HD float erf_over_x(float x) {
  const float s = x * x;
  float p = 7.85386073e-05f;
  p = fma(p, s, -0.000801019371f);
  p = fma(p, s, 0.00518832775f);
  p = fma(p, s, -0.0268538129f);
  p = fma(p, s, 0.112835854f);
  p = fma(p, s, -0.37612626f);
  return fma(p, s, 1.12837911f);
}

// erfc(a) for a >= 1: e^(-a^2) / (1 + 2a) * p(t), t = (a - 2) / (a + 2), the form of Shepherd and Laframboise (Math.
// Comp. 36, 1981), p of degree 8 fitted for a in [1, 10.2] (relative error 1.2e-9). The rounding of a^2 is put back as
// e^-(s + d) = e^-s (1 - d).
HUMMING_HD float erfc_tail(float magnitude) {
  const float a = magnitude > 10.2f ? 10.2f : magnitude;  // erfc(10.2) < 2^-150
  const float t = (a - 2.0f) / (a + 2.0f);
  float p = -0.00150678132f;
  p = fma(p, t, 0.001096547f);
  p = fma(p, t, 0.00876815151f);
  p = fma(p, t, -0.00801225007f);
  p = fma(p, t, -0.0542261191f);
  p = fma(p, t, 0.164050251f);
  p = fma(p, t, -0.166030169f);
  p = fma(p, t, -0.0927638113f);
  p = fma(p, t, 1.27697837f);
  const float square = a * a;
  const float lost = fma(a, a, -square);
  const float e = exp(-square);
  return fma(-lost, e, e) * (p / fma(2.0f, a, 1.0f));
}

}  // namespace detail

// 1 - erf(x), within 7.5 ulp (just below 1, where 1 - erf still subtracts; 2 ulp elsewhere) where it is a normal
// number.
HUMMING_HD float erfc(float x) {
  const float a = abs(x);
  const float tail = detail::erfc_tail(a);
  const float core = fma(-x, detail::erf_over_x(x), 1.0f);
  return select(a > 1.0f, select(x < 0, 2.0f - tail, tail), core);
}

}  // namespace math
}  // namespace humming
