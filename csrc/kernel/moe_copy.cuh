// Copies rows of x into the order of sorted pairs, for the copy engine to bring them to the product.
//
//   find   a thread per sorted pair: where in the order every pair is, if nobody has said so
//   copy   a warp per token, which reads it once, for all of its pairs: what is written would push it out of the caches
#pragma once

#include "kernel/device.cuh"
#include "kernel/moe_gemm_params.h"

namespace humming {

namespace moe_copy {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / kWarpSize;
inline constexpr int64_t kMaxBlocks = 2048;

template <class Config>
__global__ void __launch_bounds__(kThreads) moe_find_kernel(const __grid_constant__ MoeCopyParams p) {
  const int64_t pairs = p.tokens * p.top_k;
  const int64_t row = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (row >= pairs || row >= load_integer(p.num_sorted, p.num_sorted_dtype, 0)) return;
  const int pair = p.sorted[row];
  if (pair >= 0 && pair < pairs) p.find_positions[pair] = static_cast<int32_t>(row);
}

template <class Config>
__global__ void __launch_bounds__(kThreads, 6) moe_copy_kernel(const __grid_constant__ MoeCopyParams p) {
  constexpr int kAtOnce = 4;
  begin_dependent<Config>();
  const int lane = threadIdx.x % kWarpSize;
  const int tokens = static_cast<int>(p.tokens);
  const int vectors = static_cast<int>(p.to_row_bytes / kVectorBytes);
  for (int token = blockIdx.x * kWarps + threadIdx.x / kWarpSize; token < tokens; token += gridDim.x * kWarps) {
    const int32_t* rows = p.positions + int64_t{token} * p.top_k;
    const uint4* from = reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(p.x) + token * p.x_row_bytes);
    for (int base = lane; base < vectors; base += kAtOnce * kWarpSize) {
      uint4 values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (base + i * kWarpSize < vectors) values[i] = from[base + i * kWarpSize];
      }
      for (int slot = 0; slot < p.top_k; ++slot) {
        const int row = rows[slot];
        if (row < 0) continue;  // of no expert
        uint4* to = reinterpret_cast<uint4*>(static_cast<uint8_t*>(p.to) + row * p.to_row_bytes);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (base + i * kWarpSize < vectors) to[base + i * kWarpSize] = values[i];
        }
      }
    }
  }
}

}  // namespace moe_copy

template <class Config>
void launch_moe_copy(const MoeCopyParams& p, cudaStream_t stream) {
  using namespace moe_copy;
  if (p.tokens == 0) return;
  if (p.find_positions != nullptr) {
    const int64_t pairs = p.tokens * p.top_k;
    HUMMING_CUDA_CHECK(cudaMemsetAsync(p.find_positions, 0xFF, pairs * sizeof(int32_t), stream));  // nowhere
    moe_find_kernel<Config><<<static_cast<unsigned>(ceil_div(pairs, kThreads)), kThreads, 0, stream>>>(p);
  }
  const auto blocks = static_cast<unsigned>(at_most(ceil_div(p.tokens, kWarps), kMaxBlocks));
  launch_dependent<Config>(moe_copy_kernel<Config>, blocks, kThreads, 0, stream, p);
}

}  // namespace humming
