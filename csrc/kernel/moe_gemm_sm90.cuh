// The MoE GEMM of Hopper: the dense kernel's main loop over tiles of many experts.
//
//   out[r, N] = x[r, K] * W[expert of r, N, K]^T for rows r of x that lie together by expert
//   block   up to `tokens` rows of one expert. Experts have as many blocks as their rows want, perhaps none
//   tile    (block, row tile): 64 * row_groups packed rows x the block. Row tiles are fastest, so that the tokens of
//           a block stay in L2
//
// Persistent: a CTA takes every gridDim.x-th tile. Every CTA makes the list of blocks for itself, in shared memory:
//
//   first_block[experts + 1]   blocks of the experts before
//   first_row[experts]         of x
//   rows[experts]              how many
#pragma once

#include "epilogue/sm90_moe_store.cuh"
#include "kernel/device.cuh"
#include "kernel/moe_pairs.cuh"
#include "kernel/sm90_kernel.cuh"

namespace humming {

namespace moe_gemm_sm90 {

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

struct Blocks {
  int experts;
  int* first_block;
  int* first_row;
  int* rows;
  int* chunk_blocks;  // [chunks()], while the list is made
  int* chunk_rows;

  __device__ Blocks(int experts, uint8_t* shared)
      : experts(experts),
        first_block(reinterpret_cast<int*>(shared)),
        first_row(first_block + experts + 1),
        rows(first_row + experts),
        chunk_blocks(rows + experts),
        chunk_rows(chunk_blocks + chunks()) {}

  __device__ int chunks() const { return (experts + kWarpSize - 1) / kWarpSize; }

  __device__ int count() const { return first_block[experts]; }

  // Rows of each block of an expert but the last, which has the rest: alike, because a small block takes longer for a
  // row, and whole steps of width. No more than the tile has, so that the last block is not empty.
  __device__ int size_of(int expert, unsigned step) const {
    const unsigned count = first_block[expert + 1] - first_block[expert];
    return ((rows[expert] + count - 1) / count + step - 1) / step * step;
  }

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

// What experts have of few pairs. By all threads of the CTA.
template <int kThreads>
__device__ void count_pairs(const MoePairs& pairs, int experts, int* counts, int thread) {
  for (int expert = thread; expert < experts; expert += kThreads) counts[expert] = 0;
  __syncthreads();
  for (int64_t i = thread; i < pairs.count; i += kThreads) {
    const int expert = pair_of(pairs, experts, i).expert;
    if (expert >= 0) atomicAdd(counts + expert, 1);
  }
  __syncthreads();
}

// Of one expert: its first row, or -1 where that follows from the experts before, and how many rows. counted: what
// count_pairs found.
__device__ inline void expert_rows(const MoeRows& p, const int* counted, int expert, int* first, int* count) {
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
    *count = is_few(p.pairs) ? counted[expert] : p.counts[expert];
  }
}

// What the lanes up to each one of a warp have together.
__device__ inline void add_lanes_before(int lane, int& a, int& b) {
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const int more_a = __shfl_up_sync(kFullWarp, a, step), more_b = __shfl_up_sync(kFullWarp, b, step);
    if (lane < step) continue;
    a += more_a;
    b += more_b;
  }
}

// By all threads of the CTA. Warps add up over chunks of 32 experts, then one warp over the chunks.
template <int kTokens, int kThreads>
__device__ void list_blocks(const MoeRows& p, const Blocks& blocks, int thread) {
  const int lane = thread % kWarpSize;
  const int chunks = blocks.chunks();
  if (is_few(p.pairs)) count_pairs<kThreads>(p.pairs, p.experts, blocks.rows, thread);
  for (int chunk = thread / kWarpSize; chunk < chunks; chunk += kThreads / kWarpSize) {
    const int expert = chunk * kWarpSize + lane;
    int first = 0, count = 0;
    if (expert < p.experts) expert_rows(p, blocks.rows, expert, &first, &count);
    int block_end = (count + kTokens - 1) / kTokens, row_end = count;
    add_lanes_before(lane, block_end, row_end);
    if (expert < p.experts) {
      blocks.first_block[expert + 1] = block_end;
      blocks.first_row[expert] = first < 0 ? row_end - count : first;
      blocks.rows[expert] = count;
    }
    if (lane == kWarpSize - 1) {
      blocks.chunk_blocks[chunk] = block_end;
      blocks.chunk_rows[chunk] = row_end;
    }
  }
  __syncthreads();
  if (thread < kWarpSize) {
    int block = 0, row = 0;  // of the chunks before
    for (int base = 0; base < chunks; base += kWarpSize) {
      const int chunk = base + lane;
      const int mine[2] = {chunk < chunks ? blocks.chunk_blocks[chunk] : 0,
                           chunk < chunks ? blocks.chunk_rows[chunk] : 0};
      int block_end = mine[0], row_end = mine[1];
      add_lanes_before(lane, block_end, row_end);
      if (chunk < chunks) {
        blocks.chunk_blocks[chunk] = block + block_end - mine[0];
        blocks.chunk_rows[chunk] = row + row_end - mine[1];
      }
      block += __shfl_sync(kFullWarp, block_end, kWarpSize - 1);
      row += __shfl_sync(kFullWarp, row_end, kWarpSize - 1);
    }
    if (thread == 0) blocks.first_block[0] = 0;
  }
  __syncthreads();
  for (int expert = thread; expert < p.experts; expert += kThreads) {
    blocks.first_block[expert + 1] += blocks.chunk_blocks[expert / kWarpSize];
    if (p.layout == MoeLayout::indexed) {
      const int first = blocks.first_row[expert] + blocks.chunk_rows[expert / kWarpSize];
      blocks.first_row[expert] = first;
      blocks.rows[expert] = max(0, min(blocks.rows[expert], p.rows - first));  // less: a pair was listed twice
    }
  }
  __syncthreads();
}

// By a whole warp.
template <class Gemm>
struct Tile {
  typename Gemm::Work work;
  int expert;

  __device__ Tile(const MoeGemmSm90Params& p, const Blocks& blocks, unsigned index, unsigned row_tiles, int lane) {
    ptx::forget(lane);  // else what follows from it is kept between tiles
    const int block = index / row_tiles;
    expert = blocks.expert_of(block, lane);
    const int size = blocks.size_of(expert, Gemm::tile().width_step());
    const int before = (block - blocks.first_block[expert]) * size;
    work.packed = p.mainloop.packed + expert * p.expert_bytes;
    work.row_tile = index % row_tiles;
    work.token = blocks.first_row[expert] + before;
    work.tokens = min(size, blocks.rows[expert] - before);
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
  int index = 0;
  uint32_t phase = 0;

  __device__ Table& table() const { return tables[index]; }
  __device__ uint32_t full() const { return barriers + 16 * index; }
  __device__ uint32_t empty() const { return barriers + 16 * index + 8; }
  __device__ void next() {
    if (++index == kTables) {
      index = 0;
      phase ^= 1;
    }
  }
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
                                           typename Gemm::Consumers::Consumer& consumer, int thread) {
  using Consumers = typename Gemm::Consumers;
  constexpr Sm90Tile kTile = Gemm::tile();
  constexpr float kUnit = power_of_two(Consumers::kExponent);
  constexpr int kConsumers = kTile.consumer_groups();
  constexpr int kThreads = 128 * kConsumers;
  ptx::forget(thread);  // else what follows from the thread stays in registers of the main loop
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
    ptx::mbarrier_wait(tables.full(), tables.phase);
    store_moe_partials<kTile.shares(), kTile.rows(), kTile.tokens>(p.epilogue, tables.table(), sums, kUnit, thread,
                                                                   kThreads);
  } else {
    constexpr int kOfWarp = moe_sums_bytes(kTile) / (16 * kConsumers);  // floats
    ptx::mbarrier_wait(tables.full(), tables.phase);
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
  constexpr int kGatherers = !kTile.moves_registers() ? 1 : Config::kTokenGroups ? 2 : 3;  // warps
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
  if (warp == 4 * kConsumers) {
    if (ptx::elect_one()) tables.init(4 * kConsumers);
    sm90_kernel::init_ring<Gemm>(ring, &map, 1 + (m.gathers_tokens ? kGatherers * kWarpSize : 1));
  }
  // Few pairs were there before the grid ahead began, which sorts them: weights need not wait for it.
  const bool lists_early = is_few(p.rows.pairs);
  if (m.dependent_launch && !lists_early) ptx::wait_for_dependencies();
  list_blocks<kTile.tokens, moe_threads(kTile)>(p.rows, blocks, thread);

  const int row_tiles = (m.num_strips + kTile.row_groups - 1) / kTile.row_groups;
  // The same for all threads, which the compiler is to know: what the ring and its descriptors need is then uniform.
  const int num_tiles = __shfl_sync(kFullWarp, blocks.count() * row_tiles, 0);
  const int first_tile = blockIdx.x;
  const int step = gridDim.x;

  if (group == kConsumers) {
    if constexpr (kTile.moves_registers()) {
      ptx::set_max_registers_down<registers_of(kConsumers).producer>();
    }
    // One warp brings weights, the next tables and tokens, with others where these lie anywhere, and one the tokens'
    // scales where they have groups.
    const int role = warp - 4 * kConsumers;
    if (m.dependent_launch && lists_early && role > 0) ptx::wait_for_dependencies();
    if (role == 0) {
      // The same lane is elected every time: it has the ring.
#pragma unroll 1
      for (int tile = first_tile; tile < num_tiles; tile += step) {
        const Tile next(p, blocks, tile, row_tiles, lane);
        if (ptx::elect_one()) Producer::template produce<true, false>(m, &map, ring, next.work, 0);
        __syncwarp();
      }
      if (m.dependent_launch) ptx::launch_dependents();
    } else if (role == 1 || (role <= kGatherers && m.gathers_tokens)) {
#pragma unroll 1
      for (int tile = first_tile; tile < num_tiles; tile += step, tables.next()) {
        const Tile next(p, blocks, tile, row_tiles, lane);
        if (role == 1) {
          ptx::mbarrier_wait(tables.empty(), tables.phase ^ 1);
          tables.table().fetch(p.epilogue, p.rows.x_rows, next.expert, next.work.token, next.work.tokens,
                               next.work.row_tile * kTile.rows(), lane, tables.full());
        }
        if (m.gathers_tokens) {
          ptx::mbarrier_wait(tables.full(), tables.phase);
          const typename Producer::template Gather<kGatherers> gather{
              tables.table().x_row, static_cast<uint32_t>(p.x_row_bytes), role - 1, lane, next.work.tokens};
          gather.run(m, ring, next.work, static_cast<const uint8_t*>(p.x));
        } else if (ptx::elect_one()) {
          Producer::template produce<false, true>(m, &map, ring, next.work, 0);
        }
        __syncwarp();
      }
    } else if (Config::kTokenGroups && role == kGatherers + 1) {
#pragma unroll 1
      for (int tile = first_tile; tile < num_tiles; tile += step) {
        Producer::produce_scales(m, ring, Tile(p, blocks, tile, row_tiles, lane).work, lane);
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
    // Consumers know a tile by its table: a register for how many there are, the main loop wants the others.
#pragma unroll 1
    for (int left = (num_tiles - first_tile + step - 1) / step; left > 0; --left, tables.next()) {
      if constexpr (kTile.mma_patches == 0 && kTile.width_step() < kTile.tokens) {
        ptx::mbarrier_wait(tables.full(), tables.phase);
        work.tokens = __shfl_sync(kFullWarp, tables.table().count, 0);
        Consumers::consume_width(m, ring, work, group, consumer);
      } else {
        Consumers::consume(m, ring, work, group, consumer);
      }
      store_tile<Gemm>(p, tables, reinterpret_cast<float*>(sums), consumer, thread);
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
