// Quantises activations, with an optional activation function in front: x (rows, k or 2k) -> out (rows, k),
// scale (rows, num_groups).
//
//   thread  one vector (quantize_vector.cuh) at a time
//   grid    x: rows (strided); y: with several groups per row, stretches of the row (strided)
//   scale   one per row: the block shares the largest magnitude; a row of several stretches is read again
//           groups of 32, 64, 128: 4, 8 or 16 neighbouring lanes hold a group and its values, one pass
//           static: one pass
//
// Rows that are not 16-byte aligned, and the last columns of a row, go element by element. Many rows of whole vectors
// without an activation function are quantize_rows.cuh's.
#pragma once

#include "epilogue/activation.h"
#include "kernel/quantize_rows.cuh"

namespace humming {

namespace quantize {

inline constexpr int kMaxThreads = 512;
inline constexpr int kBlocks = 2;  // per SM; without this bound ptxas may spill to fit more

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
      Vector<kType> part;
      part.load(from + first * kVectorBytes / kSize);
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

__device__ inline void store(const QuantizeParams& p, int64_t row, int64_t column, bool vectors, uint2 codes) {
  const int64_t count = p.k - column;
  uint8_t* out = place_of(p, row, column);
  if (vectors && count >= kValues) return store_vector(out, p.out_dtype, codes);
  const bool nibbles = p.out_dtype == DType::int4;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const bool exists = nibbles ? 2 * i < count && i < kValues / 2 : i < count;
    if (exists) out[i] = static_cast<uint8_t>((i < 4 ? codes.x : codes.y) >> (i % 4 * 8));
  }
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

template <class Config, DType kType, quantize::Scope kScope>
__global__ void __launch_bounds__(quantize::kMaxThreads, quantize::kBlocks)
    quantize_kernel(const __grid_constant__ QuantizeParams p, quantize::Vectors vectors) {
  using namespace quantize;
  await<Config>(p, Awaits::all);
  // The bounds of the column loops are the same for all threads of the block: they reduce together.
  const int64_t stretch = int64_t{blockDim.x} * kValues;
  const int64_t first = blockIdx.y * stretch;
  const int64_t step = gridDim.y * stretch;

  if (kScope == Scope::tensor && blockIdx.x == 0 && blockIdx.y == 0) copy_static_scale(p);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    if (!p.used.has(row)) continue;
    await<Config>(p, Awaits::values);
    float values[kValues];
    const auto load_activated = [&](int64_t column) {
      load<kType>(p, row, column, p.k, vectors.in, values);
      activate_loaded<kType>(p, row, column, vectors.in, values);
    };
    float scale = 1.0f;
    if constexpr (kScope == Scope::tensor) scale = *p.static_scale;
    load_activated(first + threadIdx.x * kValues);
    uint32_t amax = largest_magnitude(values);
    const bool again = kScope == Scope::row && step < p.k;  // whether all columns are loaded twice
    for (int64_t base = first + step; base < p.k && again; base += step) {
      load_activated(base + threadIdx.x * kValues);
      amax = max(amax, largest_magnitude(values));
    }
    await<Config>(p, Awaits::copies);
    const Destinations to(p.copies, row);
    if constexpr (kScope == Scope::row) {
      __shared__ uint32_t partial[kMaxWarps];
      scale = make_scale(p, block_max(amax, partial), row, to, 0, threadIdx.x == 0);
    }
    for (int64_t base = first; base < p.k; base += step) {
      const int64_t column = base + threadIdx.x * kValues;
      if (again || base > first) load_activated(column);
      if constexpr (kScope == Scope::group) {
        const uint32_t of_group = largest_of_group(p, largest_magnitude(values));
        scale = make_scale(p, of_group, row, to, column / p.group, column < p.k && column % p.group == 0);
      }
      const uint2 codes = Quotients(scale, kScope != Scope::tensor).codes(p.out_dtype, values);
      to.visit([&](int64_t out) {
        if (column < p.k) store(p, out, column, vectors.out, codes);
      });
    }
  }
  begin_dependent<Config>();  // blocks without rows too: else this grid might end before the one ahead
}

namespace quantize {

template <class Config, DType kType>
void launch(const QuantizeParams& p, cudaStream_t stream) {
  const auto whole_vectors = [](int64_t elements) { return elements * dtype_bits(kType) % (8 * kVectorBytes) == 0; };
  Vectors vectors;
  vectors.in =
      is_aligned(p.x, kVectorBytes) && whole_vectors(p.x_row_stride) && (!is_gated(p.activation) || whole_vectors(p.k));
  vectors.out = is_aligned(p.out, kValues) && p.out_row_bytes % kValues == 0;
  if (vectors.in && vectors.out && quantize_rows::takes(p)) return quantize_rows::launch<Config, kType>(p, stream);

  const int64_t warps = ceil_div(p.k, kValues * kWarpSize);
  const int threads = static_cast<int>(at_most(warps, kMaxThreads / kWarpSize)) * kWarpSize;
  // A scale per row needs the whole row in one block.
  const int64_t stretches = ceil_div(p.k, int64_t{threads} * kValues);
  const Scope scope = scope_of(p);
  const dim3 grid(static_cast<unsigned>(at_most(p.rows > 0 ? p.rows : 1, kMaxGridX)),
                  static_cast<unsigned>(scope != Scope::row ? at_most(stretches, kMaxGridY) : 1));
  const auto kernel = scope == Scope::tensor  ? quantize_kernel<Config, kType, Scope::tensor>
                      : scope == Scope::group ? quantize_kernel<Config, kType, Scope::group>
                                              : quantize_kernel<Config, kType, Scope::row>;
  launch_dependent<Config>(kernel, grid, threads, 0, stream, p, vectors);
}

}  // namespace quantize

template <class Config>
void launch_quantize(const QuantizeParams& p, cudaStream_t stream) {
  switch (p.x_dtype) {
    case DType::bf16: return quantize::launch<Config, DType::bf16>(p, stream);
    case DType::fp16: return quantize::launch<Config, DType::fp16>(p, stream);
    default: return quantize::launch<Config, DType::fp32>(p, stream);
  }
}

}  // namespace humming
