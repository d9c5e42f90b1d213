// Sorts the pairs of the layout indexed by expert, with what they have, for the product. The order within an expert may
// differ between runs; no result depends on it.
//
//   few      in one launch: every block counts what experts have, and what they have before the elements of its own
//   count    a thread per element of sorted_token_ids: how many valid pairs every expert has
//   place    a thread per element: takes the next place of its expert
//   copy     a warp per token, if rows of x are wanted side by side
#pragma once

#include "kernel/cuda_check.h"
#include "kernel/device.cuh"
#include "kernel/moe_pairs.cuh"
#include "mainloop/ptx.h"

namespace humming {

namespace moe_sort {

inline constexpr int kThreads = 256;
inline constexpr int kChunk = 128;  // elements of a block, where these are few
static_assert(kChunk <= kThreads);

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

__device__ inline void place(const MoeSortParams& p, int pair, int row) {
  if (row >= p.pairs.limit) return;  // a pair was listed twice
  const int token = pair / p.top_k;
  p.x_rows[row] = token;
  p.out_rows[row] = pair;
  if (p.to_x != nullptr) p.rows_of_pair[pair] = row;
  if (p.weights != nullptr) p.row_weights[row] = p.weights[pair];
  for (int64_t g = 0; g < p.scale_groups; ++g) {
    p.row_scales[row * p.scale_groups + g] = p.scales[token * p.scale_groups + g];
  }
}

template <class Config>
__global__ void __launch_bounds__(kThreads) moe_sort_few_kernel(const __grid_constant__ MoeSortParams p) {
  extern __shared__ int shared[];
  __shared__ Pair pairs[kChunk];
  ptx::wait_for_dependencies();
  ptx::launch_dependents();
  const int elements = static_cast<int>(p.pairs.count);
  const int chunk = blockIdx.x * kChunk;
  int* first_row = shared;           // of every expert
  int* before = shared + p.experts;  // pairs of every expert before the chunk
  for (int i = threadIdx.x; i < 2 * p.experts; i += kThreads) shared[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < elements; i += kThreads) {
    const Pair pair = pair_of(p.pairs, p.experts, i);
    if (pair.expert >= 0) atomicAdd(first_row + pair.expert, 1);
    if (pair.expert >= 0 && i < chunk) atomicAdd(before + pair.expert, 1);
    if (i >= chunk && i < chunk + kChunk) pairs[i - chunk] = pair;
  }
  __syncthreads();
  if (threadIdx.x < kWarpSize) first_rows(first_row, p.experts, threadIdx.x);
  __syncthreads();

  const int mine = threadIdx.x;
  if (mine >= min(kChunk, elements - chunk)) return;
  const auto [pair, expert] = pairs[mine];
  if (expert < 0) return;
  int row = first_row[expert] + before[expert];
  for (int i = 0; i < mine; ++i) row += pairs[i].expert == expert;
  place(p, pair, row);
}

template <class Config>
__global__ void __launch_bounds__(kThreads) moe_count_kernel(const __grid_constant__ MoeSortParams p) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  const Pair pair = pair_of(p.pairs, p.experts, i);
  if (pair.expert >= 0) atomicAdd(p.counts + pair.expert, 1);
}

template <class Config>
__global__ void __launch_bounds__(kThreads) moe_place_kernel(const __grid_constant__ MoeSortParams p) {
  extern __shared__ int first_row[];  // of every expert
  for (int expert = threadIdx.x; expert < p.experts; expert += kThreads) first_row[expert] = p.counts[expert];
  __syncthreads();
  if (threadIdx.x < kWarpSize) first_rows(first_row, p.experts, threadIdx.x);
  __syncthreads();

  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  const Pair pair = pair_of(p.pairs, p.experts, i);
  if (pair.expert >= 0) {
    place(p, pair.pair, first_row[pair.expert] + atomicAdd(p.counts + p.experts + pair.expert, 1));
  }
}

// Reads every token once, for all of its pairs: what is written would push it out of the caches.
template <class Config>
__global__ void __launch_bounds__(kThreads, 6) moe_copy_kernel(const __grid_constant__ MoeSortParams p) {
  constexpr int kWarps = kThreads / kWarpSize, kAtOnce = 4;
  const int lane = threadIdx.x % kWarpSize;
  const int tokens = static_cast<int>(p.pairs.limit / p.top_k);
  const int vectors = static_cast<int>(p.to_row_bytes / kVectorBytes);
  for (int token = blockIdx.x * kWarps + threadIdx.x / kWarpSize; token < tokens; token += gridDim.x * kWarps) {
    const int32_t* rows = p.rows_of_pair + int64_t{token} * p.top_k;
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
        uint4* to = reinterpret_cast<uint4*>(static_cast<uint8_t*>(p.to_x) + row * p.to_row_bytes);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (base + i * kWarpSize < vectors) to[base + i * kWarpSize] = values[i];
        }
      }
    }
  }
}

}  // namespace moe_sort

template <class Config>
void launch_moe_sort(const MoeSortParams& p, cudaStream_t stream) {
  using namespace moe_sort;
  const size_t shared = p.experts * sizeof(int);
  const auto blocks = [&](int64_t per_block) { return static_cast<unsigned>(ceil_div(p.pairs.count, per_block)); };
  if (is_few(p.pairs)) {
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks(kChunk));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = 2 * shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    HUMMING_CUDA_CHECK(cudaLaunchKernelEx(&config, moe_sort_few_kernel<Config>, p));
    return;
  }
  HUMMING_CUDA_CHECK(cudaMemsetAsync(p.counts, 0, 2 * shared, stream));
  if (p.pairs.count == 0) return;
  if (p.to_x != nullptr) {
    HUMMING_CUDA_CHECK(cudaMemsetAsync(p.rows_of_pair, 0xFF, p.pairs.limit * sizeof(int32_t), stream));  // no row
  }
  moe_count_kernel<Config><<<blocks(kThreads), kThreads, 0, stream>>>(p);
  moe_place_kernel<Config><<<blocks(kThreads), kThreads, shared, stream>>>(p);
  if (p.to_x == nullptr) return;
  constexpr int64_t kMaxBlocks = 2048;
  const int64_t tokens = p.pairs.limit / p.top_k;
  const auto copy_blocks = static_cast<unsigned>(at_most(ceil_div(tokens, kThreads / kWarpSize), kMaxBlocks));
  moe_copy_kernel<Config><<<copy_blocks, kThreads, 0, stream>>>(p);
}

}  // namespace humming
