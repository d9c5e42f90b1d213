// Rows of x that kernels do not read as they are, and what they read instead: copies whose rows begin at multiples of
// 16 bytes, in the operand's own type.
#pragma once

#include "kernel/params.h"
#include "select/selection.h"

namespace humming {

// Whether x is rewritten in a wider type, exactly: tokens of 8 and 4 bits for operand bf16, of 4 bits for s8.
inline bool is_widened(const WeightDesc& desc, DType x) {
  const DType own = own_dtype(desc.operand);
  return (own == DType::bf16 && dtype_bits(x) <= 8) || (own == DType::int8 && x == DType::int4);
}

// Whether kernels read copies of the rows.
inline bool reads_copies(const GemmParams& p) {
  using selection::kRowAlign;
  return is_widened(p.desc, p.x_dtype) || p.x_row_bytes % kRowAlign != 0 ||
         reinterpret_cast<uintptr_t>(p.x) % kRowAlign != 0;
}

// Bytes from one copy to the next, of rows in type `x`.
inline int64_t copy_pitch(const WeightDesc& desc, DType x) {
  constexpr int64_t kPitch = 128;
  const DType type = is_widened(desc, x) ? own_dtype(desc.operand) : x;
  return ((desc.k * dtype_bits(type) + 7) / 8 + kPitch - 1) / kPitch * kPitch;
}

// Widening to bf16 takes scales that are powers of two along.
inline bool takes_scale_along(const GemmParams& p) {
  return is_widened(p.desc, p.x_dtype) && own_dtype(p.desc.operand) == DType::bf16 && p.x_scale.dtype == DType::e8m0;
}

// The product of the copies, which lie at `x`.
inline GemmParams of_copies(GemmParams p, void* x) {
  const int64_t pitch = copy_pitch(p.desc, p.x_dtype);
  if (takes_scale_along(p)) p.x_scale = {nullptr, DType::fp32, 0, 0, 0};
  if (is_widened(p.desc, p.x_dtype)) p.x_dtype = own_dtype(p.desc.operand);
  p.x = x;
  p.x_row_bytes = pitch;
  return p;
}

}  // namespace humming
