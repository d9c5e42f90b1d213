// The MoE GEMM of Ampere and Ada: the dense kernel's main loop over tiles of many experts.
//
//   out[r, N] = x[r, K] * W[expert of r, N, K]^T for rows r of x that lie together by expert, or anywhere
//   tile    (block, row tile): 64 * row_groups packed rows x a block of rows (moe_blocks.cuh)
//
// Persistent: of n CTAs each takes every n-th tile. All threads do all things in turn: the table of a tile, its stages,
// its results.
#pragma once

#include <cuda_runtime.h>

#include "epilogue/moe_store.cuh"
#include "kernel/cuda_check.h"
#include "kernel/moe_blocks.cuh"
#include "kernel/moe_gemm_params.h"
#include "kernel/tensor_map.h"
#include "mainloop/sm80_gemm.cuh"

namespace humming {

namespace moe_gemm_sm80 {

template <class Config>
struct Experts : Config {
  static constexpr bool kExperts = true, kAny = false;
};
template <class Config>
using GemmOf = Sm80Gemm<Experts<Config>>;

inline constexpr int kBlockStep = 8;  // tokens that an MMA has

template <class Gemm>
__device__ __forceinline__ void multiply_tiles(const MoeProductSm80<typename Gemm::Params>& p) {
  constexpr Sm80Tile kTile = Gemm::tile();
  constexpr int kPitch = kTile.rows() + kReductionPad;
  using Table = MoeTile<kTile.tokens, kTile.rows()>;
  static_assert(kTile.slice_tokens() == kTile.tokens && sizeof(Table) == moe_table_bytes(kTile.tokens, kTile.rows()));

  // Not aligned through an integer: that would make the compiler forget that it is shared memory.
  extern __shared__ __align__(1024) uint8_t shared[];
  const typename Gemm::Params& m = p.mainloop;
  Table& table = *reinterpret_cast<Table*>(shared + moe_table_offset(kTile, m.stages, m.record_bytes));
  const moe_blocks::Blocks blocks(p.rows.experts, reinterpret_cast<uint8_t*>(&table + 1));
  float* planes = reinterpret_cast<float*>(shared);
  const int thread = threadIdx.x;
  moe_blocks::list_blocks<kTile.tokens, kTile.threads()>(p.rows, blocks, thread);

  const int row_tiles = (m.num_strips + kTile.row_groups - 1) / kTile.row_groups;
  const int num_tiles = blocks.count() * row_tiles;
#pragma unroll 1
  for (int index = blockIdx.x; index < num_tiles; index += gridDim.x) {
    const moe_blocks::Tile tile(blocks, index, row_tiles, kBlockStep, thread % kWarpSize);
    const typename Gemm::Work work{m.packed + tile.expert * p.expert_bytes, tile.row_tile, tile.row, tile.rows,
                                   table.x_row};
    if (thread < kWarpSize) {
      table.fetch(p.epilogue, tile.expert, tile.row, tile.rows, tile.row_tile * kTile.rows(), thread);
      ptx::commit_copies();
      ptx::wait_for_copy_groups<0>();
    }
    __syncthreads();
    typename Gemm::Warp warp(thread);
    Gemm::consume(m, work, shared, thread, warp);
#pragma unroll
    for (int patch = 0; patch < Gemm::kPatches; ++patch) {
      store_partial<kTile.tokens>(warp.sums(patch), planes + warp.role.team * kTile.tokens * kPitch, kPitch,
                                  warp.row_of(patch), warp.lane);
    }
    __syncthreads();
    store_moe_partials<kTile.split_k, kTile.rows(), kTile.tokens>(p.epilogue, table, planes, Gemm::unit_of(m), thread,
                                                                  kTile.threads());
    __syncthreads();  // the table and the sums have been read
  }
}

template <class Config>
__global__ __launch_bounds__(GemmOf<Config>::tile().threads(),
                             Config::kCtas) void moe_gemm_sm80_kernel(const __grid_constant__ MoeGemmSm80Params p) {
  multiply_tiles<GemmOf<Config>>(p);
}

template <class Gemm, class Params>
void launch(void (*kernel)(const Params), const Params& p, cudaStream_t stream) {
  constexpr Sm80Tile kTile = Gemm::tile();
  const int shared_bytes = moe_shared_bytes(kTile, p.mainloop.stages, p.mainloop.record_bytes, p.rows.experts);
  allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
  kernel<<<p.num_ctas, kTile.threads(), shared_bytes, stream>>>(p);
}

}  // namespace moe_gemm_sm80

template <class Config>
void launch_moe_gemm_sm80(const MoeGemmSm80Params& p, cudaStream_t stream) {
  using namespace moe_gemm_sm80;
  launch<GemmOf<Config>>(&moe_gemm_sm80_kernel<Config>, p, stream);
}

}  // namespace humming
