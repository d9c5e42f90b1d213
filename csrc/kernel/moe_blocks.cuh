// The list of blocks of every MoE GEMM kernel: up to `tokens` rows of one expert each, which lie side by side. Experts
// have as many blocks as their rows want, perhaps none. Every CTA makes the list for itself, in shared memory:
//
//   first_block[experts + 1]   blocks of the experts before
//   first_row[experts]         of the rows in the order of experts
//   rows[experts]              how many
#pragma once

#include "kernel/device.cuh"
#include "kernel/moe_gemm_params.h"

namespace humming {

namespace moe_blocks {

struct Blocks {
  int experts;
  int* first_block;
  int* first_row;
  int* rows;
  int* chunk_blocks;  // [chunks()], while the list is made

  __device__ Blocks(int experts, uint8_t* shared)
      : experts(experts),
        first_block(reinterpret_cast<int*>(shared)),
        first_row(first_block + experts + 1),
        rows(first_row + experts),
        chunk_blocks(rows + experts) {}

  __device__ int chunks() const { return (experts + kWarpSize - 1) / kWarpSize; }

  __device__ int count() const { return first_block[experts]; }

  // Rows of each block of an expert but the last, which has the rest: alike, because a small block takes longer for a
  // row, and whole steps of `step`. No more than the tile has, so that the last block is not empty.
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

// Of one expert: its first row, and how many.
__device__ inline void expert_rows(const MoeRows& p, int expert, int* first, int* count) {
  if (p.offsets != nullptr) {
    const int64_t begin = load_integer(p.offsets, p.offset_dtype, expert);
    const int64_t end = load_integer(p.offsets, p.offset_dtype, expert + 1);
    *first = static_cast<int>(min(max(begin, int64_t{0}), int64_t{p.rows}));
    *count = static_cast<int>(min(max(end, int64_t{*first}), int64_t{p.rows})) - *first;
  } else {
    *first = static_cast<int>(expert * p.capacity);
    const int64_t wanted = p.counts != nullptr ? p.counts[expert] : p.capacity;
    *count = static_cast<int>(min(max(wanted, int64_t{0}), p.capacity));
  }
}

// What the lanes up to each one of a warp have together.
__device__ inline int add_lanes_before(int lane, int value) {
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const int more = __shfl_up_sync(kFullWarp, value, step);
    if (lane >= step) value += more;
  }
  return value;
}

// By all threads of the CTA, which meet at its end. Warps add up over chunks of 32 experts, then one warp over the
// chunks.
template <int kTokens, int kThreads>
__device__ void list_blocks(const MoeRows& p, const Blocks& blocks, int thread) {
  const int lane = thread % kWarpSize;
  const int chunks = blocks.chunks();
  for (int chunk = thread / kWarpSize; chunk < chunks; chunk += kThreads / kWarpSize) {
    const int expert = chunk * kWarpSize + lane;
    int first = 0, count = 0;
    if (expert < p.experts) expert_rows(p, expert, &first, &count);
    const int block_end = add_lanes_before(lane, (count + kTokens - 1) / kTokens);
    if (expert < p.experts) {
      blocks.first_block[expert + 1] = block_end;
      blocks.first_row[expert] = first;
      blocks.rows[expert] = count;
    }
    if (lane == kWarpSize - 1) blocks.chunk_blocks[chunk] = block_end;
  }
  __syncthreads();
  if (thread < kWarpSize) {
    int block = 0;  // of the chunks before
    for (int base = 0; base < chunks; base += kWarpSize) {
      const int chunk = base + lane;
      const int mine = chunk < chunks ? blocks.chunk_blocks[chunk] : 0;
      const int block_end = add_lanes_before(lane, mine);
      if (chunk < chunks) blocks.chunk_blocks[chunk] = block + block_end - mine;
      block += __shfl_sync(kFullWarp, block_end, kWarpSize - 1);
    }
    if (thread == 0) blocks.first_block[0] = 0;
  }
  __syncthreads();
  for (int expert = thread; expert < p.experts; expert += kThreads) {
    blocks.first_block[expert + 1] += blocks.chunk_blocks[expert / kWarpSize];
  }
  __syncthreads();
}

// A tile, `index` in the order in which CTAs take them: row tiles are fastest, so that the rows of a block stay in L2.
struct Tile {
  int expert, row_tile;
  int row, rows;  // in the order of experts: the first, and how many

  // By a whole warp.
  __device__ Tile(const Blocks& blocks, unsigned index, unsigned row_tiles, unsigned step, int lane) {
    const int block = index / row_tiles;
    row_tile = index % row_tiles;
    expert = blocks.expert_of(block, lane);
    const int size = blocks.size_of(expert, step);
    const int before = (block - blocks.first_block[expert]) * size;
    row = blocks.first_row[expert] + before;
    rows = min(size, blocks.rows[expert] - before);
  }
};

}  // namespace moe_blocks

}  // namespace humming
