// From the accumulators of a strip, acc[token][64 packed rows], to the output:
//   acc * x_scale * scale2 + bias, activation, * top-k weight, one rounding; fp32 in this order.
// Eight packed rows always belong to eight consecutive channels (WeightDesc::packed_row), so rows go in chunks of
// eight.
#pragma once

#include <cstdint>

#include "epilogue/activation.h"
#include "kernel/params.h"
#include "ops/cpu/convert.h"

namespace humming::HUMMING_CPU_NAMESPACE {

inline constexpr int kChunkRows = 8;
inline constexpr int kChunks = kStripRows / kChunkRows;

class StripEpilogue {
 public:
  StripEpilogue(const GemmParams& params, int64_t expert, int64_t strip) : params_(params) {
    const WeightDesc& desc = params.desc;
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int64_t packed = strip * kStripRows + chunk * kChunkRows;
      int count = 0;
      while (count < kChunkRows && desc.logical_row(packed + count) >= 0) ++count;
      const int64_t channel = count ? desc.logical_row(packed) : 0;
      channel_[chunk] = channel;
      count_[chunk] = count;
      for (int i = 0; i < kChunkRows; ++i) {
        const bool valid = i < count;
        const Scale2View& scale2 = params.scale2;
        const BiasView& bias = params.bias;
        const int row = chunk * kChunkRows + i;
        scale2_[row] = valid && scale2.data
                           ? scale2.data[expert * scale2.expert_stride + (channel + i) * scale2.row_stride]
                           : 1.0f;
        bias_[row] =
            valid && bias.data ? load_float(bias.dtype, bias.data, expert * bias.expert_stride + channel + i) : 0.0f;
      }
    }
  }

  // One token: `out_row` is its row of the output, x_scale and weight multiply it as a whole.
  void store(const float* acc, float x_scale, float topk_weight, int64_t out_row) const {
    alignas(64) float values[kStripRows];
    for (int row = 0; row < kStripRows; ++row) values[row] = acc[row] * x_scale * scale2_[row] + bias_[row];
    const bool gated = is_gated(params_.activation);
    alignas(64) float result[kStripRows];
    if (params_.activation == Activation::none) {
      for (int row = 0; row < kStripRows; ++row) result[row] = values[row];
    } else {
      activate_rows(values, result);
    }
    for (int row = 0; row < kStripRows; ++row) result[row] *= topk_weight;

    alignas(64) uint8_t rounded[kStripRows * sizeof(float)];
    store_floats(params_.out_dtype, result, kStripRows, rounded);
    const int64_t element_bytes = dtype_bits(params_.out_dtype) / 8;
    uint8_t* out = static_cast<uint8_t*>(params_.out) + out_row * params_.out_row_stride * element_bytes;
    for (int chunk = 0; chunk < kChunks; chunk += gated ? 2 : 1) {
      __builtin_memcpy(out + channel_[chunk] * element_bytes, rounded + chunk * kChunkRows * element_bytes,
                       static_cast<size_t>(count_[chunk] * element_bytes));
    }
  }

 private:
  // Gated: chunks alternate gate, up; the result takes the gate's place.
  template <Activation kActivation>
  void activate_all(const float* values, float* result) const {
    constexpr int kUp = is_gated(kActivation) ? kChunkRows : 0;
    for (int chunk = 0; chunk < kStripRows; chunk += kChunkRows + kUp) {
      for (int i = chunk; i < chunk + kChunkRows; ++i) {
        result[i] = activate<kActivation>(params_.activation_args, values[i], values[i + kUp]);
        if (kUp) result[i + kUp] = 0;
      }
    }
  }

  void activate_rows(const float* values, float* result) const {
    switch (params_.activation) {
      case Activation::none: return;
      case Activation::swiglu: return activate_all<Activation::swiglu>(values, result);
      case Activation::gelu: return activate_all<Activation::gelu>(values, result);
      case Activation::gelu_tanh: return activate_all<Activation::gelu_tanh>(values, result);
      case Activation::relu2: return activate_all<Activation::relu2>(values, result);
      case Activation::silu_no_mul: return activate_all<Activation::silu_no_mul>(values, result);
      case Activation::gelu_no_mul: return activate_all<Activation::gelu_no_mul>(values, result);
      case Activation::gelu_tanh_no_mul: return activate_all<Activation::gelu_tanh_no_mul>(values, result);
      case Activation::relu2_no_mul: return activate_all<Activation::relu2_no_mul>(values, result);
    }
  }

  const GemmParams& params_;
  int64_t channel_[kChunks];  // first channel of each chunk
  int count_[kChunks];        // channels of it that exist
  alignas(64) float scale2_[kStripRows];
  alignas(64) float bias_[kStripRows];
};

}  // namespace humming::HUMMING_CPU_NAMESPACE
