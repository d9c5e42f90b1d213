// Quantising one group of activations: the scale from the largest magnitude, and one value. Every rounding is fixed, so
// that CPU and GPU give the same bytes.
#pragma once

#include <cstdint>

#include "core/float_codec.h"
#include "core/math.h"

namespace humming {

// Largest magnitude of a quantised type; integers are symmetric.
HUMMING_HD constexpr float quantized_max(DType dtype) {
  return dtype == DType::e4m3 ? 448.0f : dtype == DType::e5m2 ? 57344.0f : dtype == DType::int8 ? 127.0f : 7.0f;
}

// Magnitudes are compared as integers: the maximum does not depend on the order, and NaN is above everything.
HUMMING_HD uint32_t magnitude_bits(float value) { return bits_from_float(value) & 0x7FFFFFFF; }

// Any NaN as the one positive quiet NaN: which sign and payload an operation leaves differs between CPUs and GPUs.
HUMMING_HD float one_nan(float value) { return value == value ? value : float_from_bits(0x7FC00000); }

// amax / qmax; 1 for a group of zeros (and where the quotient underflows to zero, whose values are zeros after scaling
// by anything).
HUMMING_HD float group_scale(uint32_t amax_bits, DType dtype) {
  const float scale = float_from_bits(amax_bits) / quantized_max(dtype);
  return scale == 0 ? 1.0f : one_nan(scale);
}

// Code of the smallest power of two >= group_scale. Exact although the quotient is rounded: no qmax is so near to a
// power of two that amax / qmax could round down to one.
HUMMING_HD uint8_t group_scale_e8m0(uint32_t amax_bits, DType dtype) {
  return float_to_e8m0_ceil(group_scale(amax_bits, dtype));
}

// round(quotient) saturated to the type; low bits of the result. NaN stays NaN in floats and is 0 in integers.
HUMMING_HD uint8_t quantize_quotient(float quotient, DType dtype) {
  const float v = one_nan(quotient);
  if (dtype == DType::e4m3) return float_to_e4m3(v);
  if (dtype == DType::e5m2) return float_to_e5m2(v);
  const float limit = quantized_max(dtype);
  const float finite = v == v ? v : 0.0f;
  const float clamped = finite > limit ? limit : finite < -limit ? -limit : finite;
  return static_cast<uint8_t>(static_cast<int32_t>(math::round_even(clamped)));
}
HUMMING_HD uint8_t quantize_value(float value, float scale, DType dtype) {
  return quantize_quotient(value / scale, dtype);
}

// Two at a time, to the low and the high byte: of e4m3 in one instruction where there is one.
template <DType kDType>
HUMMING_HD uint32_t quantize_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  if constexpr (kDType == DType::e4m3) return e4m3x2_from_f32x2(low, high);
#endif
  return quantize_quotient(low, kDType) | uint32_t{quantize_quotient(high, kDType)} << 8;
}

// Two int4 of one byte: the low nibble is the even column.
HUMMING_HD uint8_t pack_int4(uint8_t even, uint8_t odd) { return static_cast<uint8_t>((even & 0xF) | odd << 4); }

}  // namespace humming
