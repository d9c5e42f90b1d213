// The MoE GEMM of Hopper: the dense kernel's main loop over tiles of many experts.
//
//   out[r, N] = x[r, K] * W[expert of r, N, K]^T for rows r of x that lie together by expert
//   block   up to `tokens` rows of one expert. Experts have as many blocks as their rows want, none where they have
//   none tile    (block, row tile): 64 * row_groups packed rows x the block. Row tiles are fastest, so that the tokens
//   of a
//           block stay in L2
//
// Persistent: a CTA takes every gridDim.x-th tile. Every CTA makes the list of blocks for itself, in shared memory:
//
//   first_block[experts + 1]   blocks of the experts before
//   first_row[experts]         of x
//   rows[experts]              how many
#pragma once

#include "epilogue/sm90_moe_store.cuh"
#include "kernel/device.cuh"
#include "kernel/moe_gemm_params.h"
#include "kernel/sm90_kernel.cuh"

namespace humming {

namespace moe_gemm_sm90 {

inline constexpr int kFirstBarrier = 3;  // of the warpgroups' own

struct Blocks {
  int experts;
  int* first_block;
  int* first_row;
  int* rows;

  __device__ Blocks(int experts, uint8_t* shared)
      : experts(experts),
        first_block(reinterpret_cast<int*>(shared)),
        first_row(first_block + experts + 1),
        rows(first_row + experts) {}

  __device__ int count() const { return first_block[experts]; }

  // The expert of a block: the last one that begins no later. By a whole warp: lanes look at 32 experts at a time,
  // first far apart, then side by side.
  __device__ int expert_of(int block, int lane) const {
    const int stride = (experts + kWarpSize - 1) / kWarpSize;
    const auto begun = [&](int expert) { return expert < experts && first_block[expert] <= block; };
    int base = (__popc(__ballot_sync(kFullWarp, begun(lane * stride))) - 1) * stride;
    const int end = base + stride;
    while (base + kWarpSize < end && __shfl_sync(kFullWarp, begun(base + kWarpSize), 0)) base += kWarpSize;
    return base + __popc(__ballot_sync(kFullWarp, begun(base + lane))) - 1;
  }
};

// Of one expert: its first row, or -1 where that follows from the experts before, and how many rows.
__device__ inline void expert_rows(const MoeRows& p, int expert, int* first, int* count) {
  if (p.layout == MoeLayout::contiguous) {
    const int64_t begin = load_integer(p.offsets, p.offset_dtype, expert);
    const int64_t end = load_integer(p.offsets, p.offset_dtype, expert + 1);
    *first = static_cast<int>(min(max(begin, int64_t{0}), int64_t{p.rows}));
    *count = static_cast<int>(min(max(end, int64_t{*first}), int64_t{p.rows})) - *first;
  } else if (p.layout == MoeLayout::masked) {
    *first = static_cast<int>(expert * p.capacity);
    *count = static_cast<int>(min(max(int64_t{p.counts[expert]}, int64_t{0}), p.capacity));
  } else {
    *first = -1;
    *count = p.counts[expert];
  }
}

// By all threads of the CTA. Threads read what experts have; then the lanes of one warp add up, 32 experts at a time.
template <int kTokens>
__device__ void list_blocks(const MoeRows& p, const Blocks& blocks, int thread, int threads) {
  for (int expert = thread; expert < p.experts; expert += threads) {
    expert_rows(p, expert, blocks.first_row + expert, blocks.rows + expert);
  }
  __syncthreads();
  if (thread < kWarpSize) {
    int block = 0, row = 0;  // of the experts before
    for (int base = 0; base < p.experts; base += kWarpSize) {
      const int expert = base + thread;
      const int count = expert < p.experts ? blocks.rows[expert] : 0;
      int block_end = (count + kTokens - 1) / kTokens, row_end = count;
#pragma unroll
      for (int step = 1; step < kWarpSize; step *= 2) {
        const int before_blocks = __shfl_up_sync(kFullWarp, block_end, step);
        const int before_rows = __shfl_up_sync(kFullWarp, row_end, step);
        if (thread >= step) {
          block_end += before_blocks;
          row_end += before_rows;
        }
      }
      if (expert < p.experts) {
        blocks.first_block[expert + 1] = block + block_end;
        if (blocks.first_row[expert] < 0) blocks.first_row[expert] = row + row_end - count;
      }
      block += __shfl_sync(kFullWarp, block_end, kWarpSize - 1);
      row += __shfl_sync(kFullWarp, row_end, kWarpSize - 1);
    }
    if (thread == 0) blocks.first_block[0] = 0;
  }
  __syncthreads();
}

// By a whole warp.
template <class Gemm>
struct Tile {
  typename Gemm::Work work;
  int expert;

  __device__ Tile(const MoeGemmSm90Params& p, const Blocks& blocks, int index, int row_tiles, int lane) {
    const int block = index / row_tiles;
    expert = blocks.expert_of(block, lane);
    const int before = (block - blocks.first_block[expert]) * Gemm::tile().tokens;
    work.packed = p.mainloop.packed + expert * p.expert_bytes;
    work.row_tile = index % row_tiles;
    work.token = blocks.first_row[expert] + before;
    work.tokens = min(Gemm::tile().tokens, blocks.rows[expert] - before);
    work.k_begin = 0;
    work.k_end = p.mainloop.num_k_tiles;
  }
};

template <class Config>
__global__ __launch_bounds__(moe_threads(Sm90Gemm<Config>::tile()),
                             Config::kCtas) void moe_gemm_sm90_kernel(const __grid_constant__ CUtensorMap map,
                                                                      const __grid_constant__ MoeGemmSm90Params p) {
  using Gemm = Sm90Gemm<Config>;
  using Producer = typename Gemm::Producer;
  using Consumers = typename Gemm::Consumers;
  using Tile = moe_gemm_sm90::Tile<Gemm>;
  using Part = MoeTile<Gemm::tile().tokens>;
  constexpr Sm90Tile kTile = Gemm::tile();
  constexpr float kUnit = power_of_two(Consumers::kExponent);
  constexpr int kConsumers = kTile.consumer_groups();
  static_assert(!kTile.reduces(), "tiles of a persistent kernel do not split K");

  extern __shared__ __align__(1024) uint8_t shared[];
  const Sm90MainloopParams& m = p.mainloop;
  uint8_t* epilogue = sm90_kernel::epilogue_place<Gemm>(m, shared);
  typename Gemm::Ring ring = sm90_kernel::ring_of<Gemm>(m, shared);
  auto* parts = reinterpret_cast<Part*>(epilogue + kTile.epilogue_bytes() + 16 * m.stages);
  const Blocks blocks(p.rows.experts, reinterpret_cast<uint8_t*>(parts + kConsumers));

  const int thread = ptx::thread_index();
  const int warp = __shfl_sync(0xFFFFFFFF, thread / 32, 0);
  const int lane = thread % 32;
  const int group = warp / 4;
  if (warp == 4 * kConsumers) sm90_kernel::init_ring<Gemm>(ring, &map, 2);
  if (m.dependent_launch) ptx::wait_for_dependencies();
  list_blocks<kTile.tokens>(p.rows, blocks, thread, moe_threads(kTile));

  const int row_tiles = (m.num_strips + kTile.row_groups - 1) / kTile.row_groups;
  const int num_tiles = blocks.count() * row_tiles;
  const int first_tile = blockIdx.x;
  const int step = gridDim.x;

  if (group == kConsumers) {
    if constexpr (kTile.moves_registers()) {
      ptx::set_max_registers_down<sm90_kernel::registers_of(kConsumers).producer>();
    }
    // One warp brings weights, one tokens, and one the tokens' scales where they have groups.
    const int role = warp - 4 * kConsumers;
    if (role < 2) {
      // The same lane is elected every time: it has the ring.
#pragma unroll 1
      for (int tile = first_tile; tile < num_tiles; tile += step) {
        const Tile next(p, blocks, tile, row_tiles, lane);
        if (ptx::elect_one()) {
          if (role == 0)
            Producer::template produce<true, false>(m, &map, ring, next.work, 0);
          else
            Producer::template produce<false, true>(m, &map, ring, next.work, 0);
        }
        __syncwarp();
      }
      if (role == 0 && m.dependent_launch) ptx::launch_dependents();
    } else if (Config::kTokenGroups && role == 2) {
#pragma unroll 1
      for (int tile = first_tile; tile < num_tiles; tile += step) {
        Producer::produce_scales(m, ring, Tile(p, blocks, tile, row_tiles, lane).work, lane);
      }
    }
    __syncwarp();
  } else {
    if constexpr (kTile.moves_registers()) {
      ptx::set_max_registers_up<sm90_kernel::registers_of(kConsumers).consumer>();
    }
    typename Consumers::Consumer consumer;
    consumer.warp = warp % 4;
    consumer.lane = lane;
    Part& part = parts[group];
    const int mine = thread % 128;
#pragma unroll 1
    for (int tile = first_tile; tile < num_tiles; tile += step) {
      const Tile now(p, blocks, tile, row_tiles, lane);
      const int first_row = now.work.row_tile * kTile.rows() + 64 * group;
      const EpilogueParams dense = p.epilogue.of_expert(now.expert);
      const ChannelEpilogue row{dense, dense.channel_of(first_row + mine % 64), kUnit};
      part.fetch(p.epilogue, now.work.token, now.work.tokens, first_row, mine);
      Consumers::consume(m, ring, now.work, group, consumer);
      int here = mine;
      ptx::forget(here);  // else what follows from the thread stays in registers of the main loop
      part.finish(row, here);
      ptx::named_barrier_sync<128>(kFirstBarrier + group);
      store_moe_sums(p.epilogue, part, Consumers::sums(consumer, 0), consumer.warp, here % 32,
                     epilogue + warp * Sm90Tile::kStagingTokens * Sm90Tile::kStagingRowBytes);
      ptx::named_barrier_sync<128>(kFirstBarrier + group);  // before the next tile's comes
    }
  }
}

}  // namespace moe_gemm_sm90

template <class Config>
void launch_moe_gemm_sm90(const MoeGemmSm90Params& p, cudaStream_t stream) {
  constexpr Sm90Tile kTile = Sm90Gemm<Config>::tile();
  const int shared_bytes = kTile.shared_bytes(p.mainloop.stages, p.mainloop.record_bytes, p.mainloop.token_rows) +
                           moe_table_bytes(kTile, p.rows.experts);
  sm90_kernel::launch<Sm90Gemm<Config>>(&moe_gemm_sm90::moe_gemm_sm90_kernel<Config>, p, moe_threads(kTile),
                                        shared_bytes, stream);
}

}  // namespace humming
