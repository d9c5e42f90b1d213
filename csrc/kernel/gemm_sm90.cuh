// The dense GEMM of Hopper: main loop (mainloop/sm90_gemm.cuh) + epilogue (epilogue/sm90_store.cuh, reduce_store.cuh)
// + raster of tiles.
//
//   out[M, N] = x[M, K] * W[N, K]^T
//   tile (row tile, token tile): 64 * row_groups packed rows x `tokens` tokens. Where K is split over warpgroups or
//   CTAs a cluster has one tile, else it is persistent and takes every num_clusters-th. With multicast a tile is that
//   of a cluster: two row tiles.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "epilogue/reduce_store.cuh"
#include "epilogue/sm90_store.cuh"
#include "kernel/gemm_params.h"
#include "kernel/sm90_kernel.cuh"

namespace humming {

namespace gemm_sm90 {

template <class Config>
struct Dense : Config {
  static constexpr bool kExperts = false, kTwoStrips = false;
};
template <class Config>
using GemmOf = Sm90Gemm<Dense<Config>>;

// Parameters come through a cache that a kernel finds empty: read the epilogue's while there is time.
template <class T>
__device__ void fetch_parameters(const T& params) {
  constexpr int kLine = 64;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T)); i += kLine) {
    ptx::use(*reinterpret_cast<const uint32_t*>(reinterpret_cast<const uint8_t*>(&params) + i));
  }
}

// Tiles in groups of `raster` token tiles, tokens fastest inside a group.
template <class Gemm>
__device__ typename Gemm::Work work_of(const GemmSm90Params& p, int tile, int row_tiles, int token_tiles, int rank) {
  typename Gemm::Work work;
  int token_tile = 0;
  work.packed = p.mainloop.packed;
  work.row_tile = tile;  // of the cluster
  if (token_tiles > 1) {
    const int per_group = row_tiles * p.raster;
    const int first = tile / per_group * p.raster;
    const int size = min(p.raster, token_tiles - first);
    const int in_group = tile % per_group;
    token_tile = first + in_group % size;
    work.row_tile = in_group / size;
  }
  if constexpr (Gemm::tile().multicast) work.row_tile = 2 * work.row_tile + rank;
  work.token = token_tile * Gemm::tile().tokens;
  work.tokens = min(Gemm::tile().tokens, p.mainloop.tokens - work.token);
  work.k_begin = 0;
  work.k_end = p.mainloop.num_k_tiles;
  if constexpr (Gemm::tile().cluster_k > 1) {
    // Whole records; the later CTAs get the larger shares, and the tail.
    work.k_begin = work.k_end * rank / Gemm::tile().cluster_k;
    work.k_end = work.k_end * (rank + 1) / Gemm::tile().cluster_k;
  }
  return work;
}

template <class Config>
__global__ __launch_bounds__(GemmOf<Config>::tile().threads(),
                             Config::kCtas) void gemm_sm90_kernel(const __grid_constant__ CUtensorMap map,
                                                                  const __grid_constant__ GemmSm90Params p) {
  using Gemm = GemmOf<Config>;
  using Producer = typename Gemm::Producer;
  using Consumers = typename Gemm::Consumers;
  constexpr Sm90Tile kTile = Gemm::tile();
  constexpr float kUnit = power_of_two(Consumers::kExponent);
  constexpr int kConsumers = kTile.consumer_groups();

  // Not aligned through an integer: that would make the compiler forget that it is shared memory.
  extern __shared__ __align__(1024) uint8_t shared[];
  const Sm90MainloopParams& m = p.mainloop;
  uint8_t* epilogue =
      shared + max(m.stages * kTile.stage_bytes(m.record_bytes, Gemm::token_rows(m)), kTile.reduction_bytes());
  typename Gemm::Ring ring = sm90_kernel::ring_of<Gemm>(m, shared, epilogue + kTile.epilogue_bytes());

  // The warp index through a shuffle: uniform for the compiler.
  const int thread = ptx::thread_index();
  const int warp = __shfl_sync(0xFFFFFFFF, thread / 32, 0);
  const int lane = thread % 32;
  const int group = warp / 4;
  const int rank = kTile.cluster() > 1 ? ptx::cluster_rank() : 0;

  // The warp that brings the weights sets the barriers up and goes on; the others wait for them.
  if (warp == 4 * kConsumers) {
    sm90_kernel::init_ring<Gemm>(ring, &map, 1);
    __syncwarp();
    if (!kTile.multicast) ptx::named_barrier_arrive<1, kTile.threads()>();
  } else if (!kTile.multicast) {
    ptx::named_barrier_sync<1, kTile.threads()>();
  }
  // Copies and arrivals go to both CTAs.
  if constexpr (kTile.multicast) ptx::cluster_sync();

  constexpr int kClusterStrips = kTile.row_groups * kTile.cluster_rows();
  const int row_tiles = (m.num_strips + kClusterStrips - 1) / kClusterStrips;
  const int token_tiles = (m.tokens + kTile.tokens - 1) / kTile.tokens;
  const int num_tiles = row_tiles * token_tiles;
  const int first_tile = blockIdx.x / kTile.cluster();
  const int num_clusters = gridDim.x / kTile.cluster();

  const auto work_of_tile = [&](int tile) { return work_of<Gemm>(p, tile, row_tiles, token_tiles, rank); };
  auto work = work_of_tile(first_tile);

  if (group == kConsumers) {
    if constexpr (kTile.moves_registers())
      ptx::set_max_registers_down<sm90_kernel::registers_of(kConsumers).producer>();
    if (warp == 4 * kConsumers && ptx::elect_one()) {
      Producer::produce(m, &map, ring, work, m.early_stages);
#pragma unroll 1
      for (int tile = first_tile + num_clusters; tile < num_tiles; tile += num_clusters) {
        Producer::produce(m, &map, ring, work_of_tile(tile), 0);
      }
      // Late: where two CTAs fit on a multiprocessor, CTAs of the next grid would take the place of this one's. And
      // after the wait in produce(), so that a grid never overlaps the one before its predecessor.
      if (m.dependent_launch) ptx::launch_dependents();
    }
    if (Config::kTokenGroups && warp == 4 * kConsumers + 1) {
      if (m.dependent_launch) ptx::wait_for_dependencies();
#pragma unroll 1
      for (int tile = first_tile; tile < num_tiles; tile += num_clusters) {
        const auto work = work_of_tile(tile);
        Producer::produce_scales(m, ring, work, [&](int token) { return work.token + token; }, lane);
      }
    }
    __syncwarp();
  } else {
    if constexpr (kTile.moves_registers()) ptx::set_max_registers_up<sm90_kernel::registers_of(kConsumers).consumer>();
    typename Consumers::Consumer consumer;
    consumer.warp = warp % 4;
    consumer.lane = lane;
    consumer.other_cta = rank ^ 1;
    if constexpr (kTile.reduces()) {
      EpilogueTable table(epilogue, kTile.rows());
      table.load_rows(p.epilogue, kUnit, work.row_tile * kTile.rows(), kTile.rows(), thread, 128 * kConsumers);
      if (m.dependent_launch) ptx::wait_for_dependencies();
      table.load_tokens(p.epilogue, work.token, work.tokens, thread, 128 * kConsumers);
      fetch_parameters(p.epilogue);

      Consumers::consume(m, ring, work, group, consumer);
      // All warps are done with the stages, which the partial sums overwrite.
      ptx::named_barrier_sync<2, 128 * kConsumers>();
      const int share = group / kTile.row_teams() * kTile.stage_shares() + Consumers::stage_share(consumer);
      constexpr int kPitch = kTile.rows() + Sm90Tile::kReductionPad;
      float* plane = reinterpret_cast<float*>(shared) + share * kTile.tokens * kPitch;
#pragma unroll
      for (int patch = 0; patch < Gemm::kPatches; ++patch) {
        store_partial<kTile.tokens>(Consumers::sums(consumer, patch), plane, kPitch,
                                    Consumers::row_of(consumer, group, patch), lane);
      }
    } else {
#pragma unroll 1
      for (int tile = first_tile; tile < num_tiles; tile += num_clusters) {
        work = work_of_tile(tile);
        Consumers::consume(m, ring, work, group, consumer);
        if (m.dependent_launch) ptx::wait_for_dependencies();
        int here = lane;
        ptx::forget(here);  // else what follows from the lane stays in registers of the main loop
        store_sums<kTile.tokens, !Gemm::k16>(p.epilogue, Consumers::sums(consumer, 0), kUnit,
                                             work.row_tile * kTile.rows() + Consumers::row_of(consumer, group, 0),
                                             work.token, m.tokens, here, epilogue + warp * Sm90Tile::kStagingBytes);
      }
    }
  }

  if constexpr (kTile.reduces()) {
    if constexpr (kTile.cluster_k > 1)
      ptx::cluster_sync();
    else
      __syncthreads();
    if (group < kConsumers) {
      reduce_and_store<kTile.shares(), kTile.cluster_k, kTile.rows()>(
          p.epilogue, reinterpret_cast<const float*>(shared), EpilogueTable(epilogue, kTile.rows()), kTile.tokens,
          work.row_tile * kTile.rows(), work.token, work.tokens, thread, 128 * kConsumers,
          kTile.cluster_k > 1 ? rank : 0);
    }
  }
  // No CTA may end while another reads its shared memory, or arrives there.
  if constexpr (kTile.cluster() > 1) ptx::cluster_sync();
}

}  // namespace gemm_sm90

template <class Config>
void launch_gemm_sm90(const GemmSm90Params& p, cudaStream_t stream) {
  using Gemm = gemm_sm90::GemmOf<Config>;
  constexpr Sm90Tile kTile = Gemm::tile();
  sm90_kernel::launch<Gemm>(&gemm_sm90::gemm_sm90_kernel<Config>, p, kTile.threads(),
                            kTile.shared_bytes(p.mainloop.stages, p.mainloop.record_bytes, p.mainloop.token_rows),
                            stream);
}

}  // namespace humming
