// Brings the tokens of the indexed layout into the order of their experts, one row per pair, for kernels that want rows
// side by side. The order within an expert may differ between runs; no result depends on it.
//
//   count    a thread per element of sorted_token_ids: how many valid pairs every expert has
//   gather   a warp per element: takes the next place of its expert and copies the token's row and scales there
#pragma once

#include "kernel/cuda_check.h"
#include "kernel/device.cuh"
#include "kernel/moe_gemm_params.h"

namespace humming {

namespace moe_gather {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / kWarpSize;

struct Pair {
  int pair, expert;  // expert -1: none
};

__device__ inline Pair pair_of(const MoeParams& p, int64_t index) {
  if (index >= at_most(*p.num_post_padded, p.num_sorted)) return {0, -1};
  const int pair = p.sorted_token_ids[index];
  const int expert = p.expert_ids[index / p.block];
  const bool valid = pair >= 0 && pair < p.gemm.out_rows && expert >= 0 && expert < p.gemm.desc.experts;
  return {pair, valid ? expert : -1};
}

template <class Config>
__global__ void __launch_bounds__(kThreads) moe_count_kernel(const __grid_constant__ MoeGatherParams p) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < p.call.num_sorted;
       i += gridDim.x * int64_t{kThreads}) {
    const Pair pair = pair_of(p.call, i);
    if (pair.expert >= 0) atomicAdd(p.counts + pair.expert, 1);
  }
}

// A row of any alignment.
__device__ inline void copy_row(uint8_t* to, const uint8_t* from, int64_t bytes, int lane) {
  const bool vectors = reinterpret_cast<uintptr_t>(from) % kVectorBytes == 0;  // the target is aligned
  const int64_t whole = vectors ? bytes / kVectorBytes * kVectorBytes : 0;
  for (int64_t i = lane * kVectorBytes; i < whole; i += kWarpSize * kVectorBytes) {
    *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
  }
  for (int64_t i = whole + lane; i < bytes; i += kWarpSize) to[i] = from[i];
}

template <class Config>
__global__ void __launch_bounds__(kThreads) moe_gather_kernel(const __grid_constant__ MoeGatherParams p) {
  extern __shared__ int first_row[];  // of every expert
  const int experts = static_cast<int>(p.call.gemm.desc.experts);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  if (warp == 0) {
    int before = 0;
    for (int base = 0; base < experts; base += kWarpSize) {
      const int count = base + lane < experts ? p.counts[base + lane] : 0;
      int end = count;
#pragma unroll
      for (int step = 1; step < kWarpSize; step *= 2) {
        const int other = __shfl_up_sync(kFullWarp, end, step);
        if (lane >= step) end += other;
      }
      if (base + lane < experts) first_row[base + lane] = before + end - count;
      before += __shfl_sync(kFullWarp, end, kWarpSize - 1);
    }
  }
  __syncthreads();

  const GemmParams& gemm = p.call.gemm;
  for (int64_t i = blockIdx.x * int64_t{kWarps} + warp; i < p.call.num_sorted; i += gridDim.x * int64_t{kWarps}) {
    const Pair pair = pair_of(p.call, i);
    if (pair.expert < 0) continue;
    int row = 0;
    if (lane == 0) row = first_row[pair.expert] + atomicAdd(p.cursors + pair.expert, 1);
    row = __shfl_sync(kFullWarp, row, 0);
    if (row >= gemm.out_rows) continue;  // a pair was listed twice
    const int64_t token = pair.pair / p.call.top_k;
    copy_row(p.x + row * p.x_pitch, static_cast<const uint8_t*>(gemm.x) + token * gemm.x_row_bytes, p.x_bytes, lane);
    const float* scale = static_cast<const float*>(gemm.x_scale.data) + token * gemm.x_scale.row_stride;
    for (int64_t g = lane; g < p.scale_groups; g += kWarpSize) p.x_scale[row * p.scale_groups + g] = scale[g];
    if (lane == 0) p.out_rows[row] = pair.pair;
  }
}

}  // namespace moe_gather

template <class Config>
void launch_moe_gather(const MoeGatherParams& p, cudaStream_t stream) {
  using namespace moe_gather;
  constexpr int64_t kMaxBlocks = 1024;
  const int experts = static_cast<int>(p.call.gemm.desc.experts);
  HUMMING_CUDA_CHECK(cudaMemsetAsync(p.counts, 0, experts * sizeof(int32_t), stream));
  HUMMING_CUDA_CHECK(cudaMemsetAsync(p.cursors, 0, experts * sizeof(int32_t), stream));
  const auto blocks = [&](int64_t per_block) {
    return static_cast<unsigned>(at_most(ceil_div(p.call.num_sorted, per_block), kMaxBlocks));
  };
  if (p.call.num_sorted == 0) return;
  moe_count_kernel<Config><<<blocks(kThreads), kThreads, 0, stream>>>(p);
  moe_gather_kernel<Config><<<blocks(kWarps), kThreads, experts * sizeof(int), stream>>>(p);
}

}  // namespace humming
