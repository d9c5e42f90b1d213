// The MoE GEMM of Hopper: the dense kernel's main loop over tiles of many experts.
//
//   out[r, N] = x[r, K] * W[expert of r, N, K]^T for rows r of x that lie together by expert
//   tile    (block, row tile): 64 * row_groups packed rows x a block of rows (moe_blocks.cuh)
//
// Persistent: of n CTAs each takes every n-th tile.
#pragma once

#include "epilogue/sm90_moe_store.cuh"
#include "kernel/device.cuh"
#include "kernel/moe_blocks.cuh"
#include "kernel/moe_gemm_params.h"
#include "kernel/sm90_kernel.cuh"

namespace humming {

namespace moe_gemm_sm90 {

using moe_blocks::Blocks;

inline constexpr int kConsumerBarrier = 1;

// As the dense kernel's, with more for producers, which know where every token lies.
constexpr sm90_kernel::Registers registers_of(int consumer_groups) {
  return consumer_groups == 2 ? sm90_kernel::Registers{56, 224} : sm90_kernel::registers_of(consumer_groups);
}

template <class Config>
struct Experts : Config {
  static constexpr bool kExperts = true;
  static constexpr bool kMulticast = false, kHalfRecords = false;
};
template <class Config>
using GemmOf = Sm90Gemm<Experts<Config>>;

// How many CTAs work. In few rounds of tiles, as many as take equally many: memory is shared by fewer in every round,
// instead of by a few in the last one.
template <int kCtas>
__device__ int ctas_of(int tiles) {
  constexpr int kFewRounds = 8;
  const int ctas = static_cast<int>(gridDim.x), rounds = (tiles + ctas - 1) / ctas;
  return kCtas == 1 && rounds > 0 && rounds <= kFewRounds ? (tiles + rounds - 1) / rounds : ctas;
}

// By a whole warp.
template <class Gemm>
struct Tile {
  typename Gemm::Work work;
  int expert;

  __device__ Tile(const MoeGemmSm90Params& p, const Blocks& blocks, unsigned index, unsigned row_tiles, int lane) {
    ptx::forget(lane);  // else what follows from it is kept between tiles
    const moe_blocks::Tile tile(blocks, index, row_tiles, Gemm::tile().width_step(), lane);
    expert = tile.expert;
    work.packed = p.mainloop.packed + expert * p.expert_bytes;
    work.row_tile = tile.row_tile;
    work.token = tile.row;
    work.tokens = tile.rows;
    work.k_begin = 0;
    work.k_end = p.mainloop.num_k_tiles;
  }
};

// The tables of the next tiles in shared memory, and a place among them, through which both sides step. Barriers of a
// table: full (two arrivals of every lane of the warp that fetches it), empty (one of every consumer warp).
template <class Table, int kTables>
struct Tables {
  Table* tables;
  uint32_t barriers;
  unsigned turn = 0;  // of the tile among the CTA's: one number, because consumers have few registers left

  __device__ unsigned index() const { return turn % kTables; }
  __device__ uint32_t phase() const { return turn / kTables % 2; }
  __device__ Table& table() const { return tables[index()]; }
  __device__ uint32_t full() const { return barriers + 16 * index(); }
  __device__ uint32_t empty() const { return barriers + 16 * index() + 8; }
  __device__ void next() { ++turn; }
  __device__ void init(int consumer_warps) const {
    for (int i = 0; i < kTables; ++i) {
      ptx::mbarrier_init(barriers + 16 * i, 2 * kWarpSize);
      ptx::mbarrier_init(barriers + 16 * i + 8, consumer_warps);
    }
  }
};

// By every consumer warp: the sums of a tile to the output.
template <class Gemm, class Tables>
__device__ __forceinline__ void store_tile(const MoeGemmSm90Params& p, const Tables& tables, float* sums,
                                           typename Gemm::Consumers::Consumer& consumer) {
  using Consumers = typename Gemm::Consumers;
  constexpr Sm90Tile kTile = Gemm::tile();
  constexpr float kUnit = power_of_two(Consumers::kExponent);
  constexpr int kConsumers = kTile.consumer_groups();
  constexpr int kThreads = 128 * kConsumers;
  const int thread = ptx::thread_index();  // asked again, so that the main loop does not keep it
  const int lane = thread % kWarpSize, warp = thread / kWarpSize, group = warp / 4;
  if constexpr (kTile.reduces()) {
    constexpr int kPitch = kTile.rows() + Sm90Tile::kReductionPad;
    const int share = group / kTile.row_teams() * kTile.stage_shares() + Consumers::stage_share(consumer);
    ptx::named_barrier_sync<kConsumerBarrier, kThreads>();  // the sums of the tile before have been read
#pragma unroll
    for (int patch = 0; patch < Gemm::kPatches; ++patch) {
      store_partial<kTile.tokens>(Consumers::sums(consumer, patch), sums + share * kTile.tokens * kPitch, kPitch,
                                  Consumers::row_of(consumer, group, patch), lane);
    }
    ptx::named_barrier_sync<kConsumerBarrier, kThreads>();
    ptx::mbarrier_wait(tables.full(), tables.phase());
    store_moe_partials<kTile.shares(), kTile.rows(), kTile.tokens>(p.epilogue, tables.table(), sums, kUnit, thread,
                                                                   kThreads);
  } else {
    constexpr int kOfWarp = moe_sums_bytes(kTile) / (16 * kConsumers);  // floats
    ptx::mbarrier_wait(tables.full(), tables.phase());
    store_moe_sums<Gemm::kPatches, kTile.tokens, !Gemm::k16>(
        p.epilogue, tables.table(), [&](int patch) { return Consumers::sums(consumer, patch); },
        [&](int patch) { return Consumers::row_of(consumer, group, patch); }, kUnit, sums + warp * kOfWarp, lane);
  }
  __syncwarp();
  if (lane == 0) ptx::mbarrier_arrive(tables.empty());
}

template <class Config>
__global__ __launch_bounds__(moe_threads(GemmOf<Config>::tile()),
                             Config::kCtas) void moe_gemm_sm90_kernel(const __grid_constant__ CUtensorMap map,
                                                                      const __grid_constant__ MoeGemmSm90Params p) {
  using Gemm = GemmOf<Config>;
  using Producer = typename Gemm::Producer;
  using Consumers = typename Gemm::Consumers;
  using Tile = moe_gemm_sm90::Tile<Gemm>;
  constexpr Sm90Tile kTile = Gemm::tile();
  using Table = MoeTile<kTile.tokens, kTile.rows()>;
  constexpr int kConsumers = kTile.consumer_groups();
  // Warps that fetch rows from anywhere, where the copy engine does not.
  constexpr int kGatherers = Gemm::kCopiesRows ? 0 : !kTile.moves_registers() ? 1 : Config::kTokenGroups ? 2 : 3;
  static_assert(kTile.cluster_k == 1 && sizeof(Table) == moe_table_bytes(kTile));

  extern __shared__ __align__(1024) uint8_t shared[];
  const Sm90MainloopParams& m = p.mainloop;
  uint8_t* barriers = shared + moe_ring_bytes(kTile, m.stages, m.record_bytes);
  uint8_t* table_barriers = barriers + 16 * m.stages;
  uint8_t* sums = table_barriers + 16 * moe_tables(kTile);
  typename Gemm::Ring ring = sm90_kernel::ring_of<Gemm>(m, shared, barriers);
  Tables<Table, moe_tables(kTile)> tables{reinterpret_cast<Table*>(sums + moe_sums_bytes(kTile)),
                                          ptx::shared_address(table_barriers)};
  const Blocks blocks(p.rows.experts, reinterpret_cast<uint8_t*>(tables.tables + moe_tables(kTile)));

  const int thread = ptx::thread_index();
  const int warp = __shfl_sync(0xFFFFFFFF, thread / 32, 0);
  const int lane = thread % 32;
  const int group = warp / 4;
  const bool gathers = kGatherers > 0 && m.gathers_tokens;
  if (warp == 4 * kConsumers) {
    if (ptx::elect_one()) tables.init(4 * kConsumers);
    sm90_kernel::init_ring<Gemm>(ring, &map, 1 + (gathers ? kGatherers * kWarpSize : 1));
  }
  if (m.dependent_launch && !p.known_routing) ptx::wait_for_dependencies();
  moe_blocks::list_blocks<kTile.tokens, moe_threads(kTile)>(p.rows, blocks, thread);

  const int row_tiles = (m.num_strips + kTile.row_groups - 1) / kTile.row_groups;
  // The same for all threads, which the compiler is to know: what the ring and its descriptors need is then uniform.
  const int num_tiles = __shfl_sync(kFullWarp, blocks.count() * row_tiles, 0);
  const int step = ctas_of<Config::kCtas>(num_tiles);
  const int first_tile = static_cast<int>(blockIdx.x) < step ? blockIdx.x : num_tiles;

  if (group == kConsumers) {
    if constexpr (kTile.moves_registers()) {
      ptx::set_max_registers_down<registers_of(kConsumers).producer>();
    }
    // One warp brings weights, the next tables and tokens, with others where these lie anywhere, and one the tokens'
    // scales where they have groups.
    const int role = warp - 4 * kConsumers;
    if (m.dependent_launch && role > 0) ptx::wait_for_dependencies();
    if (role == 0) {
      // The same lane is elected every time: it has the ring.
#pragma unroll 1
      for (int tile = first_tile; tile < num_tiles; tile += step) {
        const Tile next(p, blocks, tile, row_tiles, lane);
        const int early = tile == first_tile ? p.early_stages : 0;
        if (ptx::elect_one()) Producer::template produce<true, false>(m, &map, ring, next.work, early);
        __syncwarp();
      }
      if (m.dependent_launch) {
        ptx::wait_for_dependencies();  // so that a grid never overlaps the one before its predecessor
        ptx::launch_dependents();
      }
    } else if (role == 1 || (role <= kGatherers && gathers)) {
#pragma unroll 1
      for (int tile = first_tile; tile < num_tiles; tile += step, tables.next()) {
        int here = lane;
        ptx::forget(here);  // else what follows from it is kept between tiles
        Tile next(p, blocks, tile, row_tiles, here);
        if (role == 1) {
          ptx::mbarrier_wait(tables.empty(), tables.phase() ^ 1);
          tables.table().fetch(p.epilogue, next.expert, next.work.token, next.work.tokens,
                               next.work.row_tile * kTile.rows(), here);
          ptx::mbarrier_arrive_after_copies(tables.full());
          ptx::mbarrier_arrive(tables.full());
        }
        if (kGatherers > 1 && gathers) ptx::mbarrier_wait(tables.full(), tables.phase());
        __syncwarp();  // else its own warp has written the rows
        next.work.rows = tables.table().x_row;
        if (gathers) {
          if constexpr (kGatherers > 0) {
            const typename Producer::template Gather<kGatherers> gather(next.work.rows, p.x_row_bytes, role - 1, here,
                                                                        next.work.tokens);
            gather.run(m, ring, next.work, static_cast<const uint8_t*>(p.x), here);
          }
        } else if (ptx::elect_one()) {
          Producer::template produce<false, true>(m, &map, ring, next.work, 0);
        }
        __syncwarp();
      }
    } else if (Config::kTokenGroups && role == max(kGatherers, 1) + 1) {
#pragma unroll 1
      for (int tile = first_tile; tile < num_tiles; tile += step, tables.next()) {
        const Tile next(p, blocks, tile, row_tiles, lane);
        ptx::mbarrier_wait(tables.full(), tables.phase());
        const int32_t* rows = tables.table().x_row;
        Producer::produce_scales(m, ring, next.work, [&](int token) { return rows[token]; }, lane);
      }
    }
    __syncwarp();
  } else {
    if constexpr (kTile.moves_registers()) {
      ptx::set_max_registers_up<registers_of(kConsumers).consumer>();
    }
    typename Consumers::Consumer consumer;
    consumer.warp = warp % 4;
    consumer.lane = lane;
    typename Gemm::Work work{};  // what a product wants to know of a tile
    work.k_end = m.num_k_tiles;
    // Consumers know a tile by its table: the main loop wants all other registers.
    const unsigned tiles = (num_tiles - first_tile + step - 1) / step;
#pragma unroll 1
    for (; tables.turn < tiles; tables.next()) {
      if constexpr (kTile.mma_patches == 0 && kTile.first_width() < kTile.tokens) {
        ptx::mbarrier_wait(tables.full(), tables.phase());
        work.tokens = __shfl_sync(kFullWarp, tables.table().count, 0);
        Consumers::consume_width(m, ring, work, group, consumer);
      } else {
        Consumers::consume(m, ring, work, group, consumer);
      }
      store_tile<Gemm>(p, tables, reinterpret_cast<float*>(sums), consumer);
    }
  }
}

}  // namespace moe_gemm_sm90

template <class Config>
void launch_moe_gemm_sm90(const MoeGemmSm90Params& p, cudaStream_t stream) {
  using Gemm = moe_gemm_sm90::GemmOf<Config>;
  constexpr Sm90Tile kTile = Gemm::tile();
  const int shared_bytes = moe_shared_bytes(kTile, p.mainloop.stages, p.mainloop.record_bytes, p.rows.experts);
  sm90_kernel::launch<Gemm>(&moe_gemm_sm90::moe_gemm_sm90_kernel<Config>, p, moe_threads(kTile), shared_bytes, stream);
}

}  // namespace humming
