// The dense GEMM of Ampere and Ada: main loop (mainloop/sm80_gemm.cuh) + epilogue (epilogue/reduce_store.cuh).
//
//   out[M, N] = x[M, K] * W[N, K]^T
//   tile (row tile, token tile): 64 * row_groups packed rows x `tokens` tokens, one of a CTA
#pragma once

#include <cuda_runtime.h>

#include "epilogue/reduce_store.cuh"
#include "kernel/cuda_check.h"
#include "kernel/gemm_params.h"
#include "kernel/tensor_map.h"
#include "mainloop/sm80_gemm.cuh"

namespace humming {

namespace gemm_sm80 {

template <class Config>
struct Dense : Config {
  static constexpr bool kExperts = false, kAny = false;
};
template <class Config>
using GemmOf = Sm80Gemm<Dense<Config>>;

template <class Config>
__global__ __launch_bounds__(GemmOf<Config>::tile().threads(),
                             Config::kCtas) void gemm_sm80_kernel(const __grid_constant__ GemmSm80Params p) {
  using Gemm = GemmOf<Config>;
  constexpr Sm80Tile kTile = Gemm::tile();

  // Not aligned through an integer: that would make the compiler forget that it is shared memory.
  extern __shared__ __align__(1024) uint8_t shared[];
  const Sm80MainloopParams& m = p.mainloop;
  const int token = p.token_tile(blockIdx.x, blockIdx.y) * kTile.tokens;
  if (token >= m.tokens) return;
  const typename Gemm::Work work{m.packed, p.row_tile(blockIdx.x), token, min(kTile.tokens, m.tokens - token), nullptr};
  const int first_row = work.row_tile * kTile.rows();
  const int thread = threadIdx.x;

  EpilogueTable table(shared + kTile.epilogue_offset(m.stages, m.record_bytes), kTile.rows());
  typename Gemm::Warp warp(thread);
  table.load_rows(p.epilogue, Gemm::unit_of(m), first_row, kTile.rows(), thread, kTile.threads());
  table.load_tokens(p.epilogue, token, work.tokens, thread, kTile.threads());
  Gemm::consume(m, work, shared, thread, warp);

  constexpr int kSlice = kTile.slice_tokens();
  constexpr int kPitch = kTile.rows() + kReductionPad;
  float* planes = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int first = 0; first < kTile.tokens; first += kSlice) {
    if (first > 0) __syncthreads();  // the slice before is no longer read
#pragma unroll
    for (int patch = 0; patch < Gemm::kPatches; ++patch) {
      store_partial<kSlice>(warp.sums(patch) + first / 2, planes + warp.role.team * kSlice * kPitch, kPitch,
                            warp.row_of(patch), warp.lane);
    }
    __syncthreads();
    reduce_and_store<kTile.split_k, 1, kTile.rows()>(p.epilogue, planes, table, kSlice, first_row, token + first,
                                                     min(kSlice, work.tokens - first), thread, kTile.threads(), 0);
    table.token_scale += kSlice;
  }
}

}  // namespace gemm_sm80

template <class Config>
void launch_gemm_sm80(const GemmSm80Params& p, cudaStream_t stream) {
  constexpr Sm80Tile kTile = gemm_sm80::GemmOf<Config>::tile();
  const auto kernel = &gemm_sm80::gemm_sm80_kernel<Config>;
  const int shared_bytes = kTile.shared_bytes(p.mainloop.stages, p.mainloop.record_bytes);
  allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
  kernel<<<dim3(p.grid_x, p.grid_y), kTile.threads(), shared_bytes, stream>>>(p);
}

}  // namespace humming
