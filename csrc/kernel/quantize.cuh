// Quantises activations, with an optional activation function in front: x (rows, k or 2k) -> out (rows, k),
// scale (rows, num_groups).
//
//   vector  kValues = 8 neighbouring columns: 16 bytes of 16-bit x, 8 bytes of out (int4: 4)
//   thread  one vector at a time; of many rows without an activation function four, a block's width apart, whose loads
//           are under way together
//   grid    x: rows (strided); y: with several groups per row, stretches of the row (strided)
//   scale   one per row: the block shares the largest magnitude; a row of several stretches is read again
//           groups of 32, 64, 128: 4, 8 or 16 neighbouring lanes hold a group and its values, one pass
//           static: one pass
//
// Rows that are not 16-byte aligned, and the last columns of a row, go element by element.
#pragma once

#include "epilogue/activation.h"
#include "epilogue/quantize.h"
#include "kernel/device.cuh"
#include "kernel/params.h"

namespace humming {

namespace quantize {

inline constexpr int kValues = 8;
inline constexpr int kManyRows = 512;  // from which on a thread has four vectors
inline constexpr int kMaxThreads = 512;
inline constexpr int kBlocks = 2;  // per SM, of one vector a thread; without this bound ptxas may spill to fit more

enum class Scope { tensor, row, group };  // what shares a scale; tensor: it is given

// Which accesses may be vectors; the launcher's answer for all rows.
struct Vectors {
  bool in, out;
};

// Columns column .. column + 7 of a row of x as it lies, 0 past the row's end. `columns`: of the row.
template <DType kType>
__device__ void load(const QuantizeParams& p, int64_t row, int64_t column, int64_t columns, bool vectors,
                     float (&values)[kValues]) {
  const int64_t index = row * p.x_row_stride + column;
  const int64_t count = columns - column;
  if (vectors && count >= kValues) {
    constexpr int kSize = Vector<kType>::kSize;
    const uint8_t* from = static_cast<const uint8_t*>(p.x) + index * dtype_bits(kType) / 8;
#pragma unroll
    for (int first = 0; first < kValues; first += kSize) {
      float part[kSize];
      Vector<kType>::load(from + first * kVectorBytes / kSize, part);
#pragma unroll
      for (int i = 0; i < kSize; ++i) values[first + i] = part[i];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kValues; ++i) values[i] = i < count ? load_element<kType>(p.x, index + i) : 0.0f;
}

// The activation function of columns column .. column + 7 of the result, which `values` holds as they were loaded.
template <DType kType>
__device__ void activate_loaded(const QuantizeParams& p, int64_t row, int64_t column, bool vectors,
                                float (&values)[kValues]) {
  if (p.activation == Activation::none) return;
  float up[kValues] = {};
  if (is_gated(p.activation)) load<kType>(p, row, p.k + column, 2 * p.k, vectors, up);
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    values[i] = column + i < p.k ? activate(p.activation, p.activation_args, values[i], up[i]) : 0.0f;
  }
}

__device__ inline uint32_t largest_magnitude(const float (&values)[kValues]) {
  uint32_t amax = 0;
#pragma unroll
  for (int i = 0; i < kValues; ++i) amax = max(amax, magnitude_bits(values[i]));
  return amax;
}

// The codes of a vector's quotients, side by side.
template <DType kOut>
__device__ uint2 codes_as(const float (&values)[kValues]) {
  uint32_t pairs[kValues / 2];  // of codes, a byte each
#pragma unroll
  for (int i = 0; i < kValues / 2; ++i) pairs[i] = quantize_pair<kOut>(values[2 * i], values[2 * i + 1]);
  if constexpr (kOut == DType::int4) {
    uint32_t packed = 0;
#pragma unroll
    for (int i = 0; i < kValues / 2; ++i) packed |= uint32_t{pack_int4(pairs[i], pairs[i] >> 8)} << (8 * i);
    return make_uint2(packed, 0);
  }
  return make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}

// bounded: no value is larger than what the scale stands for.
__device__ inline uint2 codes_of(const QuantizeParams& p, float scale, bool bounded, const float (&values)[kValues]) {
  const math::Divisor divisor(scale);
  float quotients[kValues];
  if (bounded && divisor.works) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) quotients[i] = divisor.quotient(values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kValues; ++i) quotients[i] = values[i] / scale;
  }
  switch (p.out_dtype) {
    case DType::e4m3: return codes_as<DType::e4m3>(quotients);
    case DType::e5m2: return codes_as<DType::e5m2>(quotients);
    case DType::int8: return codes_as<DType::int8>(quotients);
    default: return codes_as<DType::int4>(quotients);
  }
}

__device__ inline void store(const QuantizeParams& p, int64_t row, int64_t column, bool vectors, uint2 codes) {
  const bool nibbles = p.out_dtype == DType::int4;
  const int64_t count = p.k - column;
  uint8_t* out = p.out + row * p.out_row_bytes + (nibbles ? column / 2 : column);
  if (vectors && count >= kValues) {
    if (nibbles)
      *reinterpret_cast<uint32_t*>(out) = codes.x;
    else
      *reinterpret_cast<uint2*>(out) = codes;
    return;
  }
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const bool exists = nibbles ? 2 * i < count && i < kValues / 2 : i < count;
    if (exists) out[i] = static_cast<uint8_t>((i < 4 ? codes.x : codes.y) >> (i % 4 * 8));
  }
}

// The scale of a group of a row with largest magnitude `amax`, written by one thread and returned as fp32 to all
// that ask.
__device__ inline float make_scale(const QuantizeParams& p, uint32_t amax, int64_t row, int64_t group, bool write) {
  if (p.scale_dtype == DType::e8m0) {
    const uint8_t code = group_scale_e8m0(amax, p.out_dtype);
    if (write)
      p.copies.visit(row, [&](int64_t to) { static_cast<uint8_t*>(p.scale)[to * p.num_groups + group] = code; });
    return e8m0_to_float(code);
  }
  const float scale = group_scale(amax, p.out_dtype);
  if (write) {
    const float stored = p.row_factors != nullptr ? scale * p.row_factors[row] : scale;
    p.copies.visit(row, [&](int64_t to) { static_cast<float*>(p.scale)[to * p.num_groups + group] = stored; });
  }
  return scale;
}

// Largest of the values of all threads, returned to all. `partial` may be used again after it.
__device__ inline uint32_t block_max(uint32_t value, uint32_t (&partial)[kMaxWarps]) {
  const unsigned lane = threadIdx.x % kWarpSize, warps = blockDim.x / kWarpSize;
  value = __reduce_max_sync(kFullWarp, value);
  if (lane == 0) partial[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  const uint32_t largest = __reduce_max_sync(kFullWarp, lane < warps ? partial[lane] : 0);
  __syncthreads();
  return largest;
}

}  // namespace quantize

template <class Config, DType kType, quantize::Scope kScope, int kHeld>
__global__ void __launch_bounds__(quantize::kMaxThreads, kHeld == 1 ? quantize::kBlocks : 1)
    quantize_kernel(const __grid_constant__ QuantizeParams p, quantize::Vectors vectors) {
  using namespace quantize;
  begin_dependent<Config>();
  // The bounds of the column loops are the same for all threads of the block: they reduce together.
  const int64_t stretch = int64_t{blockDim.x} * kValues * kHeld;
  const int64_t first = blockIdx.y * stretch;
  const int64_t step = gridDim.y * stretch;
  const auto column_of = [&](int64_t base, int vector) { return base + (vector * blockDim.x + threadIdx.x) * kValues; };

  if (kScope == Scope::tensor && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
    *static_cast<float*>(p.scale) = *p.static_scale;
  }
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    if (!p.used.has(row)) continue;
    float values[kHeld][kValues];
    const auto load_stretch = [&](int64_t base) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        load<kType>(p, row, column_of(base, i), p.k, vectors.in, values[i]);
        if constexpr (kHeld == 1) activate_loaded<kType>(p, row, column_of(base, i), vectors.in, values[i]);
      }
    };
    float scale = 1.0f;
    if constexpr (kScope == Scope::tensor) scale = *p.static_scale;
    if constexpr (kScope == Scope::row) {
      __shared__ uint32_t partial[kMaxWarps];
      uint32_t amax = 0;
      for (int64_t base = first; base < p.k; base += step) {
        load_stretch(base);
#pragma unroll
        for (int i = 0; i < kHeld; ++i) amax = max(amax, largest_magnitude(values[i]));
      }
      scale = make_scale(p, block_max(amax, partial), row, 0, threadIdx.x == 0);
    }
    for (int64_t base = first; base < p.k; base += step) {
      if (kScope != Scope::row || step < p.k) load_stretch(base);
      uint2 codes[kHeld];
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if constexpr (kScope == Scope::group) {
          const int64_t column = column_of(base, i);
          uint32_t amax = largest_magnitude(values[i]);
          for (int lanes = 1; lanes < p.group / kValues; lanes *= 2) {
            amax = max(amax, __shfl_xor_sync(kFullWarp, amax, lanes));
          }
          const bool write = column < p.k && column % p.group == 0;
          scale = make_scale(p, amax, row, column / p.group, write);
        }
        codes[i] = codes_of(p, scale, kScope != Scope::tensor, values[i]);
      }
      p.copies.visit(row, [&](int64_t to) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          if (column_of(base, i) < p.k) store(p, to, column_of(base, i), vectors.out, codes[i]);
        }
      });
    }
  }
}

namespace quantize {

template <class Config, DType kType, int kHeld>
void launch(const QuantizeParams& p, cudaStream_t stream) {
  const auto whole_vectors = [](int64_t elements) { return elements * dtype_bits(kType) % (8 * kVectorBytes) == 0; };
  Vectors vectors;
  vectors.in =
      is_aligned(p.x, kVectorBytes) && whole_vectors(p.x_row_stride) && (!is_gated(p.activation) || whole_vectors(p.k));
  vectors.out = is_aligned(p.out, kValues) && p.out_row_bytes % kValues == 0;

  const int64_t warps = ceil_div(p.k, kHeld * kValues * kWarpSize);
  const int threads = static_cast<int>(at_most(warps, kMaxThreads / kWarpSize)) * kWarpSize;
  // A scale per row needs the whole row in one block.
  const int64_t stretches = ceil_div(p.k, int64_t{threads} * kHeld * kValues);
  const bool grouped = p.num_groups > 1;
  const bool is_static = p.static_scale != nullptr;
  const dim3 grid(static_cast<unsigned>(at_most(p.rows > 0 ? p.rows : 1, kMaxGridX)),
                  static_cast<unsigned>(grouped || is_static ? at_most(stretches, kMaxGridY) : 1));
  const auto kernel = is_static ? quantize_kernel<Config, kType, Scope::tensor, kHeld>
                      : grouped ? quantize_kernel<Config, kType, Scope::group, kHeld>
                                : quantize_kernel<Config, kType, Scope::row, kHeld>;
  launch_dependent<Config>(kernel, grid, threads, 0, stream, p, vectors);
}

template <class Config, DType kType>
void launch_of(const QuantizeParams& p, cudaStream_t stream) {
  if (p.activation == Activation::none && p.rows >= kManyRows) return launch<Config, kType, 4>(p, stream);
  launch<Config, kType, 1>(p, stream);
}

}  // namespace quantize

template <class Config>
void launch_quantize(const QuantizeParams& p, cudaStream_t stream) {
  switch (p.x_dtype) {
    case DType::bf16: return quantize::launch_of<Config, DType::bf16>(p, stream);
    case DType::fp16: return quantize::launch_of<Config, DType::fp16>(p, stream);
    default: return quantize::launch_of<Config, DType::fp32>(p, stream);
  }
}

}  // namespace humming
