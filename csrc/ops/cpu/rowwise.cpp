// Row-wise kernels: quantize_activation and moe_reduce.
#include "epilogue/quantize.h"
#include "epilogue/reduce.h"
#include "ops/cpu/convert.h"
#include "ops/cpu/kernel_set.h"

namespace humming::HUMMING_CPU_NAMESPACE {
namespace {

constexpr int64_t kChunk = 128;  // columns in flight; no group of scales is wider unless it is the whole row

template <Activation kActivation>
void activate_chunk(const ActivationArgs& args, const float* up, int64_t n, float* values) {
  for (int64_t i = 0; i < n; ++i) values[i] = activate<kActivation>(args, values[i], up[i]);
}

// Columns [begin, begin + n) of a row, after the activation.
void load_values(const QuantizeParams& params, int64_t row, int64_t begin, int64_t n, float* values) {
  const uint8_t* from =
      static_cast<const uint8_t*>(params.x) + row * params.x_row_stride * dtype_bits(params.x_dtype) / 8;
  load_floats(params.x_dtype, from, begin, n, values);
  alignas(64) float up[kChunk] = {};
  if (is_gated(params.activation)) load_floats(params.x_dtype, from, params.k + begin, n, up);
  const ActivationArgs& args = params.activation_args;
  switch (params.activation) {
    case Activation::none: return;
    case Activation::swiglu: return activate_chunk<Activation::swiglu>(args, up, n, values);
    case Activation::gelu: return activate_chunk<Activation::gelu>(args, up, n, values);
    case Activation::gelu_tanh: return activate_chunk<Activation::gelu_tanh>(args, up, n, values);
    case Activation::relu2: return activate_chunk<Activation::relu2>(args, up, n, values);
    case Activation::silu_no_mul: return activate_chunk<Activation::silu_no_mul>(args, up, n, values);
    case Activation::gelu_no_mul: return activate_chunk<Activation::gelu_no_mul>(args, up, n, values);
    case Activation::gelu_tanh_no_mul: return activate_chunk<Activation::gelu_tanh_no_mul>(args, up, n, values);
    case Activation::relu2_no_mul: return activate_chunk<Activation::relu2_no_mul>(args, up, n, values);
  }
}

void quantize_chunk(DType dtype, const float* values, float scale, int64_t n, uint8_t* out) {
  // The type is a constant of each loop, so that the loops vectorise.
  if (dtype == DType::e4m3) {
    for (int64_t i = 0; i < n; ++i) out[i] = quantize_value(values[i], scale, DType::e4m3);
    return;
  }
  if (dtype == DType::e5m2) {
    for (int64_t i = 0; i < n; ++i) out[i] = quantize_value(values[i], scale, DType::e5m2);
    return;
  }
  if (dtype == DType::int8) {
    for (int64_t i = 0; i < n; ++i) out[i] = quantize_value(values[i], scale, DType::int8);
    return;
  }
  uint8_t nibbles[kChunk];
  for (int64_t i = 0; i < n; ++i) nibbles[i] = quantize_value(values[i], scale, DType::int4);
  for (int64_t i = 0; i < n / 2; ++i) out[i] = pack_int4(nibbles[2 * i], nibbles[2 * i + 1]);
}

// The scale of a group, stored, as fp32.
float make_scale(const QuantizeParams& params, uint32_t amax_bits, int64_t row, int64_t group) {
  if (params.scale_dtype == DType::e8m0) {
    const uint8_t code = group_scale_e8m0(amax_bits, params.out_dtype);
    params.copies.visit(
        row, [&](int64_t to) { static_cast<uint8_t*>(params.scale)[to * params.num_groups + group] = code; });
    return e8m0_to_float(code);
  }
  const float scale = group_scale(amax_bits, params.out_dtype);
  const float stored = params.row_factors ? scale * params.row_factors[row] : scale;
  params.copies.visit(row,
                      [&](int64_t to) { static_cast<float*>(params.scale)[to * params.num_groups + group] = stored; });
  return scale;
}

}  // namespace

void quantize(const QuantizeParams& params, int64_t begin, int64_t end) {
  alignas(64) float values[kChunk];
  for (int64_t row = begin; row < end; ++row) {
    if (!params.used.has(row)) continue;
    for (int64_t group = 0; group < params.num_groups; ++group) {
      const int64_t first = group * params.group;
      const int64_t last = first + params.group < params.k ? first + params.group : params.k;
      const auto for_chunks = [&](auto body) {
        for (int64_t at = first; at < last; at += kChunk) {
          const int64_t n = last - at < kChunk ? last - at : kChunk;
          load_values(params, row, at, n, values);
          body(at, n);
        }
      };
      float scale;
      if (params.static_scale) {
        scale = *params.static_scale;
      } else {
        uint32_t amax_bits = 0;
        for_chunks([&](int64_t, int64_t n) {
          for (int64_t i = 0; i < n; ++i) {
            const uint32_t bits = magnitude_bits(values[i]);
            amax_bits = bits > amax_bits ? bits : amax_bits;
          }
        });
        scale = make_scale(params, amax_bits, row, group);
      }
      for_chunks([&](int64_t at, int64_t n) {
        uint8_t codes[kChunk];
        quantize_chunk(params.out_dtype, values, scale, n, codes);
        const int64_t bits = dtype_bits(params.out_dtype);
        params.copies.visit(row, [&](int64_t to) {
          uint8_t* out = params.out + to * params.out_row_bytes + at * bits / 8;
          __builtin_memcpy(out, codes, static_cast<size_t>(n * bits / 8));
        });
      });
    }
  }
}

void moe_reduce(const MoeReduceParams& params, int64_t begin, int64_t end) {
  const int64_t bytes = dtype_bits(params.dtype) / 8;
  const int64_t valid = params.num_valid_tokens ? *params.num_valid_tokens : params.tokens;
  for (int64_t token = begin; token < end; ++token) {
    uint8_t* out = static_cast<uint8_t*>(params.out) + token * params.out_row_stride * bytes;
    if (token >= valid) {
      __builtin_memset(out, 0, static_cast<size_t>(params.hidden * bytes));
      continue;
    }
    const uint8_t* y = static_cast<const uint8_t*>(params.y);
    const uint8_t* add = static_cast<const uint8_t*>(params.add);
    for (int64_t first = 0; first < params.hidden; first += kChunk) {
      const int64_t n = params.hidden - first < kChunk ? params.hidden - first : kChunk;
      alignas(64) float sum[kChunk] = {}, term[kChunk];
      for (int64_t slot = 0; slot < params.top_k; ++slot) {
        const int64_t pair = token * params.top_k + slot;
        const int64_t id = !params.ids                       ? 0
                           : params.id_dtype == DType::int64 ? static_cast<const int64_t*>(params.ids)[pair]
                                                             : static_cast<const int32_t*>(params.ids)[pair];
        if (id < 0) continue;
        const float weight = params.weights ? params.weights[pair] : 1.0f;
        const int64_t row =
            params.y_by_id ? id * params.y_slot_stride : token * params.y_token_stride + slot * params.y_slot_stride;
        load_floats(params.dtype, y + row * bytes, first, n, term);
        for (int64_t i = 0; i < n; ++i) sum[i] = reduce_accumulate(sum[i], weight, term[i]);
      }
      if (add) {
        load_floats(params.dtype, add + token * params.add_row_stride * bytes, first, n, term);
        for (int64_t i = 0; i < n; ++i) sum[i] = reduce_finish(sum[i], params.scale, term[i]);
      } else {
        for (int64_t i = 0; i < n; ++i) sum[i] = reduce_finish(sum[i], params.scale);
      }
      store_floats(params.dtype, sum, n, out + first * bytes);
    }
  }
}

}  // namespace humming::HUMMING_CPU_NAMESPACE
