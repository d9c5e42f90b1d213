// Sorts the pairs of blocks, the layout indexed as engines pad it, by expert. The order within an expert may differ
// between runs; no result depends on it.
//
//   few      in one launch: every block counts what experts have, and what they have before the elements of its own
//   count    a thread per element of sorted_token_ids: how many valid pairs every expert has
//   place    a thread per element: takes the next place of its expert
#pragma once

#include "kernel/device.cuh"
#include "kernel/moe_gemm_params.h"

namespace humming {

namespace moe_sort {

inline constexpr int kThreads = 256;
inline constexpr int kChunk = 128;  // elements of a block, where these are few
static_assert(kChunk <= kThreads);

struct Pair {
  int pair, expert;  // expert -1: none
};

__device__ inline Pair pair_of(const MoeSortParams& p, int64_t index) {
  if (index >= p.count || index >= *p.num_padded) return {0, -1};
  const int pair = p.ids[index], expert = p.experts[index / p.block];
  const bool valid = pair >= 0 && pair < p.limit && expert >= 0 && expert < p.num_experts;
  return {pair, valid ? expert : -1};
}

// counts of every expert -> its first row, in place. By one warp; returns how many there are.
__device__ inline int first_rows(int* counts, int experts, int lane) {
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
  return before;
}

// By all threads of a block: counts -> first rows, which block 0 writes to the offsets.
__device__ inline void offsets(const MoeSortParams& p, int* counts) {
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    const int all = first_rows(counts, p.num_experts, threadIdx.x);
    if (blockIdx.x == 0 && threadIdx.x == 0) p.offsets[p.num_experts] = all;
  }
  __syncthreads();
  if (blockIdx.x > 0) return;
  for (int expert = threadIdx.x; expert < p.num_experts; expert += kThreads) p.offsets[expert] = counts[expert];
}

__device__ inline void place(const MoeSortParams& p, int pair, int row) {
  if (row < p.limit) p.sorted[row] = pair;  // else a pair was listed twice
}

template <class Config>
__global__ void __launch_bounds__(kThreads) moe_sort_few_kernel(const __grid_constant__ MoeSortParams p) {
  extern __shared__ int shared[];
  __shared__ Pair pairs[kChunk];
  begin_dependent<Config>();
  const int elements = static_cast<int>(p.count);
  const int chunk = blockIdx.x * kChunk;
  int* first_row = shared;               // of every expert
  int* before = shared + p.num_experts;  // pairs of every expert before the chunk
  for (int i = threadIdx.x; i < 2 * p.num_experts; i += kThreads) shared[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < elements; i += kThreads) {
    const Pair pair = pair_of(p, i);
    if (pair.expert >= 0) atomicAdd(first_row + pair.expert, 1);
    if (pair.expert >= 0 && i < chunk) atomicAdd(before + pair.expert, 1);
    if (i >= chunk && i < chunk + kChunk) pairs[i - chunk] = pair;
  }
  offsets(p, first_row);

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
  const Pair pair = pair_of(p, blockIdx.x * int64_t{kThreads} + threadIdx.x);
  if (pair.expert >= 0) atomicAdd(p.counts + pair.expert, 1);
}

template <class Config>
__global__ void __launch_bounds__(kThreads) moe_place_kernel(const __grid_constant__ MoeSortParams p) {
  extern __shared__ int first_row[];  // of every expert
  begin_dependent<Config>();
  for (int expert = threadIdx.x; expert < p.num_experts; expert += kThreads) first_row[expert] = p.counts[expert];
  offsets(p, first_row);
  const Pair pair = pair_of(p, blockIdx.x * int64_t{kThreads} + threadIdx.x);
  if (pair.expert >= 0) {
    place(p, pair.pair, first_row[pair.expert] + atomicAdd(p.counts + p.num_experts + pair.expert, 1));
  }
}

}  // namespace moe_sort

template <class Config>
void launch_moe_sort(const MoeSortParams& p, cudaStream_t stream) {
  using namespace moe_sort;
  const size_t shared = p.num_experts * sizeof(int);
  // At least one: the offsets are wanted where there are no pairs, too.
  const auto blocks = [&](int64_t per_block) { return static_cast<unsigned>(ceil_div(p.count + 1, per_block)); };
  if (p.count <= kFewPairs) {
    launch_dependent<Config>(moe_sort_few_kernel<Config>, blocks(kChunk), kThreads, 2 * shared, stream, p);
    return;
  }
  HUMMING_CUDA_CHECK(cudaMemsetAsync(p.counts, 0, 2 * shared, stream));
  moe_count_kernel<Config><<<blocks(kThreads), kThreads, 0, stream>>>(p);
  launch_dependent<Config>(moe_place_kernel<Config>, blocks(kThreads), kThreads, shared, stream, p);
}

}  // namespace humming
