// Rows of any storage type to fp32 and back, as loops that the compiler vectorises.
#pragma once

#include <cstdint>

#include "core/float_codec.h"

namespace humming::HUMMING_CPU_NAMESPACE {

// Elements start .. start + n - 1 of a row at `row`. int4: start must be even.
inline void load_floats(DType dtype, const void* row, int64_t start, int64_t n, float* out) {
  const auto convert = [&](auto element, auto widen) {
    using Element = decltype(element);
    const Element* in = static_cast<const Element*>(row) + start;
    for (int64_t i = 0; i < n; ++i) out[i] = widen(in[i]);
  };
  switch (dtype) {
    case DType::fp32: return convert(float{}, [](float v) { return v; });
    case DType::bf16: return convert(uint16_t{}, [](uint16_t v) { return bf16_to_float(v); });
    case DType::fp16: return convert(uint16_t{}, [](uint16_t v) { return fp16_to_float(v); });
    case DType::e4m3: return convert(uint8_t{}, [](uint8_t v) { return e4m3_to_float(v); });
    case DType::e5m2: return convert(uint8_t{}, [](uint8_t v) { return e5m2_to_float(v); });
    case DType::e8m0: return convert(uint8_t{}, [](uint8_t v) { return e8m0_to_float(v); });
    case DType::int8: return convert(int8_t{}, [](int8_t v) { return static_cast<float>(v); });
    case DType::int4: {
      const uint8_t* in = static_cast<const uint8_t*>(row) + start / 2;
      const auto extend = [](int nibble) { return static_cast<float>((nibble ^ 8) - 8); };
      for (int64_t i = 0; i < n / 2; ++i) {
        out[2 * i] = extend(in[i] & 0xF);
        out[2 * i + 1] = extend(in[i] >> 4);
      }
      return;
    }
    case DType::int32:
    case DType::int64: return;  // not numbers of a product
  }
}

// n elements of `in`, rounded once to the nearest even of a 16-bit type or copied.
inline void store_floats(DType dtype, const float* in, int64_t n, void* out) {
  if (dtype == DType::fp32) {
    __builtin_memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
  } else if (dtype == DType::bf16) {
    uint16_t* to = static_cast<uint16_t*>(out);
    for (int64_t i = 0; i < n; ++i) to[i] = float_to_bf16(in[i]);
  } else {
    uint16_t* to = static_cast<uint16_t*>(out);
    for (int64_t i = 0; i < n; ++i) to[i] = float_to_fp16(in[i]);
  }
}

inline float load_float(DType dtype, const void* data, int64_t index) {
  float value = 0;
  load_floats(dtype, data, index, 1, &value);
  return value;
}

}  // namespace humming::HUMMING_CPU_NAMESPACE
