// Quantises many rows of whole aligned vectors (quantize_vector.cuh), without an activation function.
//
//   team   `warps` warps, which hold a row as it lies: a lane has up to held() vectors, the team's width apart, whose
//          loads are under way together
//   block  kWarps warps, whose teams have a row each
//
// Every thread does little beside its values: where a block had one row, what a block costs was half of the time.
#pragma once

#include "kernel/quantize_vector.cuh"

namespace humming {

namespace quantize_rows {

using quantize::kValues;
using quantize::Scope;

inline constexpr int kManyRows = 512;
inline constexpr int kWarps = 8;
inline constexpr int kBlocks = 3;  // per SM

constexpr int held(DType type) { return 128 / dtype_bits(type); }
constexpr int warp_columns(DType type) { return kWarpSize * held(type) * kValues; }

inline bool takes(const QuantizeParams& p) {
  return p.activation == Activation::none && kManyRows <= p.rows && p.rows <= kMaxGridX && p.k % kValues == 0 &&
         p.k <= kWarps * warp_columns(p.x_dtype);
}

// kValues values as they lie.
template <DType kType>
struct Held {
  static constexpr int kSize = Vector<kType>::kSize;
  Vector<kType> parts[kValues / kSize];

  __device__ void load(const uint8_t* from) {
#pragma unroll
    for (int i = 0; i < kValues / kSize; ++i) parts[i].load(from + i * kVectorBytes);
  }
  __device__ void widen(float (&values)[kValues]) const {
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] = parts[i / kSize][i % kSize];
  }

  // Magnitudes are compared as they lie, those of 16 bits two at a time.
  __device__ uint32_t largest(uint32_t others) const {
#pragma unroll
    for (const Vector<kType>& part : parts) {
#pragma unroll
      for (const uint32_t word : part.words) {
        if constexpr (Vector<kType>::kBits == 16)
          others = __vmaxu2(others, word & 0x7FFF7FFF);
        else
          others = max(others, word & 0x7FFFFFFF);
      }
    }
    return others;
  }
  // What `largest` has come to, as the bits of fp32.
  __device__ static uint32_t magnitude(uint32_t largest) {
    if constexpr (kType == DType::fp32) return largest;
    return magnitude_bits(to_float<kType>(max(largest & 0xFFFF, largest >> 16)));
  }
};

}  // namespace quantize_rows

template <class Config, DType kType, quantize::Scope kScope>
__global__ void __launch_bounds__(quantize_rows::kWarps* kWarpSize, quantize_rows::kBlocks)
    quantize_rows_kernel(const __grid_constant__ QuantizeParams p, int warps) {
  using namespace quantize_rows;
  constexpr int kHeld = quantize_rows::held(kType);
  quantize::await<Config>(p, Awaits::all);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int team = warp / warps;
  const int64_t row = int64_t{blockIdx.x} * (kWarps / warps) + team;
  const bool in_use = row < p.rows && p.used.has(row);
  const int first = ((warp - team * warps) * kWarpSize + lane) * kValues;  // column
  const int width = warps * kWarpSize * kValues;
  const int k = in_use ? static_cast<int>(p.k) : 0;

  quantize::await<Config>(p, Awaits::values);
  if (kScope == Scope::tensor && blockIdx.x == 0) quantize::copy_static_scale(p);
  Held<kType> held[kHeld];
  const uint8_t* from = static_cast<const uint8_t*>(p.x) + (row * p.x_row_stride + first) * dtype_bits(kType) / 8;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * width < k) held[i].load(from + i * width * dtype_bits(kType) / 8);
  }
  quantize::await<Config>(p, Awaits::copies);
  const quantize::Destinations to(p.copies, in_use ? row : 0);
  float scale = 1.0f;
  if constexpr (kScope == Scope::tensor) scale = *p.static_scale;
  if constexpr (kScope == Scope::row) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) largest = held[i].largest(largest);
    uint32_t amax = __reduce_max_sync(kFullWarp, Held<kType>::magnitude(largest));
    if (warps > 1) {
      __shared__ uint32_t partial[kWarps];
      if (lane == 0) partial[warp] = amax;
      __syncthreads();
      for (int i = team * warps; i < (team + 1) * warps; ++i) amax = max(amax, partial[i]);
    }
    scale = quantize::make_scale(p, amax, row, to, 0, first == 0 && in_use);
  }
  uint2 codes[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (i * width >= p.k) break;
    const int column = first + i * width;
    if constexpr (kScope == Scope::group) {
      const uint32_t amax = quantize::largest_of_group(p, Held<kType>::magnitude(held[i].largest(0)));
      scale = quantize::make_scale(p, amax, row, to, column / p.group, column < k && column % p.group == 0);
    }
    float values[kValues];
    held[i].widen(values);
    codes[i] = quantize::Quotients(scale, kScope != Scope::tensor).codes(p.out_dtype, values);
  }
  if (!in_use) return;
  to.visit([&](int64_t copy) {
    uint8_t* out = quantize::place_of(p, copy, first);
    const int step = p.out_dtype == DType::int4 ? width / 2 : width;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (first + i * width < k) quantize::store_vector(out + i * step, p.out_dtype, codes[i]);
    }
  });
}

namespace quantize_rows {

template <class Config, DType kType>
void launch(const QuantizeParams& p, cudaStream_t stream) {
  int warps = 1;
  while (warps * warp_columns(kType) < p.k) warps *= 2;
  const unsigned blocks = static_cast<unsigned>(at_most(ceil_div(p.rows, kWarps / warps), kMaxGridX));
  const Scope scope = quantize::scope_of(p);
  const auto kernel = scope == Scope::tensor  ? quantize_rows_kernel<Config, kType, Scope::tensor>
                      : scope == Scope::group ? quantize_rows_kernel<Config, kType, Scope::group>
                                              : quantize_rows_kernel<Config, kType, Scope::row>;
  launch_dependent<Config>(kernel, blocks, kWarps * kWarpSize, 0, stream, p, warps);
}

}  // namespace quantize_rows

}  // namespace humming
