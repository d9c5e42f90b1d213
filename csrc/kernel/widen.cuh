// Tokens of 8 and 4 bits in the operand's own type, for products that take no others: x (rows, k) -> out (rows, k).
//
//   thread  kValues = 8 neighbouring columns: 16 bytes of bf16 out, 8 bytes of int8
//   grid    x: rows (strided); y: stretches of the row (strided)
//   scale   of e8m0, per row or group of 32 and more columns: a thread's columns have one
#pragma once

#include "kernel/device.cuh"
#include "kernel/params.h"

namespace humming {

namespace widen {

inline constexpr int kValues = 8;
inline constexpr int kThreads = 128;

// Values column .. column + 7 of a row, in the low bits; zeros behind the last column. vectors: a row's vectors are
// aligned.
__device__ inline uint64_t load(const uint8_t* row, int64_t column, int64_t k, int bits, bool vectors) {
  const int64_t count = k - column;
  const uint8_t* from = row + column * bits / 8;
  if (vectors && count >= kValues) {
    return bits == 8 ? *reinterpret_cast<const uint64_t*>(from) : *reinterpret_cast<const uint32_t*>(from);
  }
  uint64_t raw = 0;
  for (int i = 0; i < kValues * bits / 8 && 8 * i < count * bits; ++i) raw |= uint64_t{from[i]} << 8 * i;
  return raw;
}

// Value `index` of them.
__device__ inline float value_of(DType dtype, uint64_t raw, int index) {
  const uint8_t byte = static_cast<uint8_t>(raw >> 8 * index);
  switch (dtype) {
    case DType::e4m3: return e4m3_to_float(byte);
    case DType::e5m2: return e5m2_to_float(byte);
    case DType::int8: return static_cast<float>(static_cast<int8_t>(byte));
    default: return static_cast<float>((static_cast<int>(raw >> 4 * index & 0xF) ^ 8) - 8);
  }
}

}  // namespace widen

template <class Config>
__global__ void __launch_bounds__(widen::kThreads) widen_kernel(const __grid_constant__ WidenParams p, bool vectors) {
  using namespace widen;
  begin_dependent<Config>();
  const int64_t stretch = int64_t{kThreads} * kValues;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    for (int64_t column = blockIdx.y * stretch + threadIdx.x * kValues; column < p.k; column += gridDim.y * stretch) {
      const uint8_t* from = static_cast<const uint8_t*>(p.x) + row * p.x_row_bytes;
      const uint64_t raw = load(from, column, p.k, dtype_bits(p.x_dtype), vectors);
      float scale = 1.0f;
      if (p.scale.data != nullptr) {
        const int64_t group = p.scale.group > 0 ? column / p.scale.group : 0;
        const int64_t at = row * p.scale.row_stride + group * p.scale.group_stride;
        scale = e8m0_to_float(static_cast<const uint8_t*>(p.scale.data)[at]);
      }
      float values[kValues];
#pragma unroll
      for (int i = 0; i < kValues; ++i) values[i] = value_of(p.x_dtype, raw, i) * scale;
      uint8_t* to = p.out + row * p.out_row_bytes + column * dtype_bits(p.out_dtype) / 8;
      if (p.out_dtype == DType::bf16) {
        uint32_t words[kValues / 2];
#pragma unroll
        for (int i = 0; i < kValues / 2; ++i) words[i] = bf16x2_from_floats(values[2 * i], values[2 * i + 1]);
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
      } else {
        uint64_t bytes = 0;
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
          bytes |= uint64_t{static_cast<uint8_t>(static_cast<int8_t>(values[i]))} << 8 * i;
        }
        *reinterpret_cast<uint64_t*>(to) = bytes;
      }
    }
  }
}

template <class Config>
void launch_widen(const WidenParams& p, cudaStream_t stream) {
  const int64_t vector_bytes = widen::kValues * dtype_bits(p.x_dtype) / 8;
  const bool vectors = is_aligned(p.x, vector_bytes) && p.x_row_bytes % vector_bytes == 0;
  const int64_t stretches = ceil_div(p.k, widen::kThreads * widen::kValues);
  const dim3 grid(static_cast<unsigned>(at_most(p.rows, kMaxGridX)),
                  static_cast<unsigned>(at_most(stretches, kMaxGridY)));
  launch_dependent<Config>(widen_kernel<Config>, grid, widen::kThreads, 0, stream, p, vectors);
}

}  // namespace humming
