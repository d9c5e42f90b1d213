// The number that a packed code stands for, from what its record has for it. One rounding per operation, on CPU and
// GPU.
#pragma once

#include "core/float_codec.h"
#include "core/math.h"
#include "layout/weight_desc.h"

namespace humming {

// Element `index` of an area of scales, or of offsets; 1 if there are none.
HUMMING_HD float stored_scale(ScaleType type, const uint8_t* area, int index) {
  switch (type) {
    case ScaleType::fp32: return reinterpret_cast<const float*>(area)[index];
    case ScaleType::bf16: return bf16_to_float(reinterpret_cast<const uint16_t*>(area)[index]);
    case ScaleType::fp16: return fp16_to_float(reinterpret_cast<const uint16_t*>(area)[index]);
    case ScaleType::e8m0: return e8m0_to_float(area[index]);
    case ScaleType::e4m3: return e4m3_to_float(area[index]);
    case ScaleType::none: break;
  }
  return 1.0f;
}

// What the codes of a row and group share.
struct GroupNumbers {
  float scale;
  float zero;    // an integer zero point, else 0
  float offset;  // with float offsets
  bool has_offset;

  // (value - zero) * scale, or scale * value + offset.
  HUMMING_HD float operator()(float value) const {
    return has_offset ? math::fma(scale, value, offset) : (value - zero) * scale;
  }
};

// zeros: the area of zero points or offsets.
HUMMING_HD GroupNumbers group_numbers(ScaleType type, ZeroKind zero, const uint8_t* scales, int scale_index,
                                      const uint8_t* zeros, int zero_index) {
  GroupNumbers numbers{stored_scale(type, scales, scale_index), 0.0f, 0.0f, zero == ZeroKind::floating};
  if (zero == ZeroKind::integer) numbers.zero = static_cast<float>(zeros[zero_index]);
  if (zero == ZeroKind::floating) numbers.offset = stored_scale(type, zeros, zero_index);
  return numbers;
}

}  // namespace humming
