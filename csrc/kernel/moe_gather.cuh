// Brings the tokens of the indexed layout into the order of their experts, one row per pair, for kernels that want rows
// side by side. The order within an expert may differ between runs; no result depends on it.
//
//   few      of few elements, in one launch: every block counts what every expert has; a warp per element counts those
//            of its expert before it, and copies the token's row and scales to that place
//   count    a thread per element of sorted_token_ids: how many valid pairs every expert has
//   gather   a warp per element: takes the next place of its expert
#pragma once

#include "kernel/cuda_check.h"
#include "kernel/device.cuh"
#include "kernel/moe_gemm_params.h"
#include "mainloop/ptx.h"

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

// counts of every expert -> its first row, in place. By one warp.
__device__ inline void first_rows(int* counts, int experts, int lane) {
  int before = 0;
  for (int base = 0; base < experts; base += kWarpSize) {
    const int count = base + lane < experts ? counts[base + lane] : 0;
    int end = count;
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int other = __shfl_up_sync(kFullWarp, end, step);
      if (lane >= step) end += other;
    }
    if (base + lane < experts) counts[base + lane] = before + end - count;
    before += __shfl_sync(kFullWarp, end, kWarpSize - 1);
  }
}

// The token of a pair to a row of the gathered ones. By one warp.
__device__ inline void place(const MoeGatherParams& p, int pair, int row, int lane) {
  const GemmParams& gemm = p.call.gemm;
  if (row >= gemm.out_rows) return;  // a pair was listed twice
  const int64_t token = pair / p.call.top_k;
  copy_row(p.x + row * p.x_pitch, static_cast<const uint8_t*>(gemm.x) + token * gemm.x_row_bytes, p.x_bytes, lane);
  const float* scale = static_cast<const float*>(gemm.x_scale.data) + token * gemm.x_scale.row_stride;
  for (int64_t g = lane; g < p.scale_groups; g += kWarpSize) p.x_scale[row * p.scale_groups + g] = scale[g];
  if (lane == 0) {
    p.out_rows[row] = pair;
    if (gemm.topk_weights != nullptr) p.row_weights[row] = gemm.topk_weights[pair];
  }
}

template <class Config>
__global__ void __launch_bounds__(kThreads) moe_gather_few_kernel(const __grid_constant__ MoeGatherParams p) {
  extern __shared__ int first_row[];  // of every expert
  ptx::launch_dependents();
  const int experts = static_cast<int>(p.call.gemm.desc.experts);
  const int elements = static_cast<int>(p.call.num_sorted);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  for (int expert = threadIdx.x; expert < experts; expert += kThreads) first_row[expert] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < elements; i += kThreads) {
    const Pair pair = pair_of(p.call, i);
    if (pair.expert >= 0) atomicAdd(first_row + pair.expert, 1);
  }
  __syncthreads();
  if (blockIdx.x == 0) {
    for (int expert = threadIdx.x; expert < experts; expert += kThreads) p.counts[expert] = first_row[expert];
    __syncthreads();
  }
  if (warp == 0) first_rows(first_row, experts, lane);
  __syncthreads();

  for (int i = blockIdx.x * kWarps + warp; i < elements; i += gridDim.x * kWarps) {
    const Pair pair = pair_of(p.call, i);
    if (pair.expert < 0) continue;
    int before = 0;
    for (int j = lane; j < i; j += kWarpSize) before += pair_of(p.call, j).expert == pair.expert;
    place(p, pair.pair, first_row[pair.expert] + __reduce_add_sync(kFullWarp, before), lane);
  }
}

template <class Config>
__global__ void __launch_bounds__(kThreads) moe_gather_kernel(const __grid_constant__ MoeGatherParams p) {
  extern __shared__ int first_row[];  // of every expert
  ptx::launch_dependents();
  const int experts = static_cast<int>(p.call.gemm.desc.experts);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  for (int expert = threadIdx.x; expert < experts; expert += kThreads) first_row[expert] = p.counts[expert];
  __syncthreads();
  if (warp == 0) first_rows(first_row, experts, lane);
  __syncthreads();

  for (int64_t i = blockIdx.x * int64_t{kWarps} + warp; i < p.call.num_sorted; i += gridDim.x * int64_t{kWarps}) {
    const Pair pair = pair_of(p.call, i);
    if (pair.expert < 0) continue;
    int row = 0;
    if (lane == 0) row = first_row[pair.expert] + atomicAdd(p.cursors + pair.expert, 1);
    place(p, pair.pair, __shfl_sync(kFullWarp, row, 0), lane);
  }
}

}  // namespace moe_gather

template <class Config>
void launch_moe_gather(const MoeGatherParams& p, cudaStream_t stream) {
  using namespace moe_gather;
  constexpr int64_t kMaxBlocks = 1024;
  constexpr int64_t kFew = 8192;  // elements that a warp may walk through
  const int experts = static_cast<int>(p.call.gemm.desc.experts);
  const size_t shared = experts * sizeof(int);
  const auto blocks = [&](int64_t per_block) {
    return static_cast<unsigned>(at_most(ceil_div(p.call.num_sorted, per_block), kMaxBlocks));
  };
  if (p.call.num_sorted > 0 && p.call.num_sorted <= kFew) {
    moe_gather_few_kernel<Config><<<blocks(kWarps), kThreads, shared, stream>>>(p);
    return;
  }
  HUMMING_CUDA_CHECK(cudaMemsetAsync(p.counts, 0, shared, stream));
  if (p.call.num_sorted == 0) return;
  HUMMING_CUDA_CHECK(cudaMemsetAsync(p.cursors, 0, shared, stream));
  moe_count_kernel<Config><<<blocks(kThreads), kThreads, 0, stream>>>(p);
  moe_gather_kernel<Config><<<blocks(kWarps), kThreads, shared, stream>>>(p);
}

}  // namespace humming
