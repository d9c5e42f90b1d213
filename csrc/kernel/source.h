// How prepack reads a checkpoint's tensors, element by element, and what it rejects; the same on CPU and GPU.
#pragma once

#include <cstdint>

#include "kernel/params.h"
#include "layout/rebase.h"

namespace humming {

// Source row, within its expert, of a logical channel.
HUMMING_HD int64_t source_row(const RepackParams& p, int64_t channel) {
  if (p.row_order != RowOrder::gate_up_interleaved) return channel;
  const int64_t half = p.desc.n / 2;
  return channel < half ? 2 * channel : 2 * (channel - half) + 1;
}

// Code `k` of a row: one byte each, or little-endian runs of code_bits. Reads no byte that holds none of its bits. On
// the CPU; the GPU reads eight codes at a time (repack.cuh).
HUMMING_HD uint32_t source_code(const uint8_t* row, int code_bits, int64_t k) {
  if (code_bits == 8) return row[k];
  const int64_t bit = k * code_bits;
  const int shift = static_cast<int>(bit % 8);
  uint32_t bits = row[bit / 8];
  if (shift + code_bits > 8) bits |= static_cast<uint32_t>(row[bit / 8 + 1]) << 8;
  return bits >> shift & ((1u << code_bits) - 1);
}

// A number of the format; bytes may hold more than its bits.
HUMMING_HD bool is_valid_code(const FormatTraits& format, uint32_t code) {
  return code <= format.code_mask() && is_finite_code(format, code);
}

// Element `index` of scales or float offsets is a finite number.
HUMMING_HD bool is_valid_scale(ScaleType type, const void* data, int64_t index) {
  switch (type) {
    case ScaleType::fp32: return (static_cast<const uint32_t*>(data)[index] >> 23 & 0xFF) != 0xFF;
    case ScaleType::bf16: return (static_cast<const uint16_t*>(data)[index] >> 7 & 0xFF) != 0xFF;
    case ScaleType::fp16: return (static_cast<const uint16_t*>(data)[index] >> 10 & 0x1F) != 0x1F;
    case ScaleType::e8m0: return static_cast<const uint8_t*>(data)[index] != 0xFF;
    case ScaleType::e4m3: return (static_cast<const uint8_t*>(data)[index] & 0x7F) != 0x7F;
    case ScaleType::none: break;
  }
  return true;
}

HUMMING_HD bool is_valid_zero(const FormatTraits& format, uint32_t zero) { return zero <= format.code_mask() + 1; }

// Whether rebase_code lost something: `rounded` * 2^down is not the number of `code` again.
HUMMING_HD bool rebase_changed(const FormatTraits& format, uint32_t code, uint32_t rounded, int down) {
  if ((rounded & format.magnitude_mask()) == 0) return (code & format.magnitude_mask()) != 0;
  // A number that is not zero was moved down by less than the format's exponent range, so 2^down is a normal fp32.
  const float power = float_from_bits(static_cast<uint32_t>(127 + down) << 23);
  return code_value(format, rounded) * power != code_value(format, code);
}

}  // namespace humming
