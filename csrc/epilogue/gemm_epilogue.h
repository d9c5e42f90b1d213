// The end of every dense GEMM kernel: scales, bias, one rounding, and where values go.
//
//   out(token, channel) = sum * 2^exponent * x_scale[token] * scale2[channel] + bias[channel], in fp32, rounded once
#pragma once

#include <cstdint>

#include "core/bits.h"
#include "core/float_codec.h"
#include "core/macros.h"

namespace humming {

// Strides of 0 repeat one value; null pointers mean 1 (scales) or 0 (bias).
struct EpilogueParams {
  void* out;
  DType out_dtype;  // fp32, bf16, fp16
  int64_t out_row_stride;
  const float* x_scale;
  int x_scale_stride;
  const float* scale2;
  int scale2_stride;
  const void* bias;
  DType bias_dtype;
  int n;          // logical channels
  int gate_half;  // n / 2 if gate and up rows are interleaved, else 0
  bool vector;    // `out` is 16-bit and 16-byte aligned, n (gate and up each) and the row stride multiples of 8

  // Logical channel of a packed row, or -1 for padding.
  HUMMING_HD int channel_of(int row) const {
    if (gate_half == 0) return row < n ? row : -1;
    const int index = row / 16 * 8 + row % 8;
    return index < gate_half ? index + row % 16 / 8 * gate_half : -1;
  }

  // Of a padding channel: 0.
  HUMMING_HD float channel_bias(int channel) const {
    if (channel < 0 || bias == nullptr) return 0;
    if (bias_dtype == DType::fp32) return static_cast<const float*>(bias)[channel];
    const uint16_t bits = static_cast<const uint16_t*>(bias)[channel];
    return bias_dtype == DType::bf16 ? bf16_to_float(bits) : float_from_f16(bits);
  }

  HUMMING_HD float token_scale(int token) const {
    return x_scale == nullptr ? 1.0f : x_scale[static_cast<int64_t>(token) * x_scale_stride];
  }
};

// What a channel does to its sums.
struct ChannelEpilogue {
  float scale, bias;

  HUMMING_HD ChannelEpilogue(float scale, float bias) : scale(scale), bias(bias) {}
  // `unit` is the power of two that the dequantiser left. Padding channels get harmless values.
  HUMMING_HD ChannelEpilogue(const EpilogueParams& p, int channel, float unit)
      : scale(unit), bias(p.channel_bias(channel)) {
    if (channel >= 0 && p.scale2 != nullptr) scale *= p.scale2[static_cast<int64_t>(channel) * p.scale2_stride];
  }

  HUMMING_HD float operator()(float sum, float token_scale) const { return sum * token_scale * scale + bias; }
};

// Two values as two 16-bit numbers of the output's type.
HUMMING_HD uint32_t pack_pair(DType type, float low, float high) {
  return type == DType::bf16 ? bf16x2_from_floats(low, high) : f16x2_from_floats(low, high);
}

HUMMING_HD void store_value(const EpilogueParams& p, int token, int channel, float value) {
  const int64_t at = static_cast<int64_t>(token) * p.out_row_stride + channel;
  if (p.out_dtype == DType::fp32) {
    static_cast<float*>(p.out)[at] = value;
  } else {
    static_cast<uint16_t*>(p.out)[at] = static_cast<uint16_t>(pack_pair(p.out_dtype, value, 0.0f));
  }
}

}  // namespace humming
