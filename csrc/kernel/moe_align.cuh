// Sorts (token, slot) pairs by expert: a stable counting sort in one launch, the same bits in every run.
//
//   grid    one block per local expert, of as many threads as the pairs keep busy
//   shared  counts[num_experts]: pairs per expert, which every block counts for itself if descriptors are wanted
//   warp w  owns the pairs [w * span, (w + 1) * span), in both passes, so that warps place their pairs without meeting
//
// Pass 1 counts the pairs of the expert and of lower ones, whose number is the expert's first sorted row; sums over the
// lower warps give each warp's first row. Pass 2 places: within a warp, the rank of a pair is the number of lower lanes
// that hold the same expert. It leaves out what pass 1 has seen to hold none: all blocks go through all pairs once,
// where every instruction counts, and through few of them twice. Only counts are accumulated by atomics, so their order
// does not matter. The block of the last expert also writes what lies past the end.
#pragma once

#include "core/check.h"
#include "kernel/device.cuh"
#include "kernel/params.h"

namespace humming {

namespace moe_align {

inline constexpr int kMinThreads = 128, kMaxThreads = 512;
inline constexpr int kWarps = kMaxThreads / kWarpSize;
inline constexpr int kBlocks = 3;  // per SM: 256 experts are to be counted at once
inline constexpr int kAtOnce = 6;
static_assert(kWarps <= kWarpSize, "one warp reduces the partial sums of all warps");
inline constexpr int64_t kMaxExperts = 8192;  // 32 KiB of counts; a block has 48 KiB without opting in

// Local experts of the pairs first + 32 i, below `end`, of which there is one at least; -1: no pair, no expert, not
// ours, or out of range. All ids are asked for before the first is looked at.
__device__ inline void load_experts(const MoeAlignParams& p, unsigned first, unsigned end, int (&experts)[kAtOnce]) {
  int64_t ids[kAtOnce];
  const auto load = [&](const auto* data) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) ids[i] = data[min(first + i * kWarpSize, end - 1)];
  };
  if (p.id_dtype == DType::int64)
    load(static_cast<const int64_t*>(p.topk_ids));
  else
    load(static_cast<const int32_t*>(p.topk_ids));
  const auto within = [](int64_t id, int64_t count) { return 0 <= id && id < count; };
  if (p.expert_map != nullptr) {
#pragma unroll
    for (int64_t& id : ids) id = within(id, p.num_global_experts) ? p.expert_map[id] : -1;
  }
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    const bool exists = first + i * kWarpSize < end && within(ids[i], p.num_experts);
    experts[i] = exists ? static_cast<int>(ids[i]) : -1;
  }
}

// Unsigned, because rows + block may pass 2^31.
__device__ inline int num_blocks_of(int rows, int block) {
  return static_cast<int>((static_cast<unsigned>(rows) + block - 1) / block);
}

// Sum over the block, returned to every thread. `partial` may be used again after it.
__device__ inline int block_sum(int value, int (&partial)[kWarps]) {
  const int lane = threadIdx.x % kWarpSize, warps = blockDim.x / kWarpSize;
  value = __reduce_add_sync(kFullWarp, value);
  if (lane == 0) partial[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  const int sum = __reduce_add_sync(kFullWarp, lane < warps ? partial[lane] : 0);
  __syncthreads();
  return sum;
}

}  // namespace moe_align

template <class Config>
__global__ void __launch_bounds__(moe_align::kMaxThreads, moe_align::kBlocks)
    moe_align_kernel(const __grid_constant__ MoeAlignParams p) {
  using namespace moe_align;
  extern __shared__ int counts[];  // (num_experts)
  __shared__ int partial[kWarps];

  const int expert = blockIdx.x;
  const int num_experts = static_cast<int>(p.num_experts);
  const int block =
      static_cast<int>(at_most(p.block, p.num_pairs > 0 ? p.num_pairs : 1));  // a longer block never fills
  const int threads = blockDim.x;
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const bool wants_blocks = p.blocks != nullptr;

  begin_dependent<Config>();
  for (int i = threadIdx.x; i < num_experts && wants_blocks; i += threads) counts[i] = 0;
  __syncthreads();

  // Both passes go through parts of kAtOnce * 32 pairs, whose experts are asked for at once. The bounds are the same
  // for a whole warp: its lanes vote together.
  const unsigned num_pairs = static_cast<unsigned>(p.num_pairs);  // below 2^31, so that sums with a part have room
  const unsigned span = (num_pairs + threads - 1) / threads * kWarpSize;
  const unsigned begin = warp * span;
  const unsigned end = min(begin + span, num_pairs);
  constexpr int kPart = kAtOnce * kWarpSize;
  const int parts = (span + kPart - 1) / kPart;
  const int bit_shift = 32 - __clz((parts - 1) / 32);  // 2^bit_shift parts a bit
  const auto bit_of = [&](int part) { return 1u << (part >> bit_shift); };

  int own_pairs = 0, own_before = 0;  // of this thread
  unsigned to_place = 0;              // a bit for a few parts each: whether one holds what this block writes
  unsigned first = begin;
  for (int part = 0; first < end; ++part, first += kPart) {
    int found[kAtOnce];
    load_experts(p, first + lane, end, found);
    bool any = false;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (wants_blocks && found[i] >= 0) atomicAdd(&counts[found[i]], 1);
      own_before += static_cast<unsigned>(found[i]) < static_cast<unsigned>(expert);  // -1 is above all
      own_pairs += found[i] == expert;
      any |= found[i] == expert;
    }
    if (any) to_place |= bit_of(part);
  }
  to_place = __reduce_or_sync(kFullWarp, to_place);
  __syncthreads();

  int blocks_before = 0;
  for (int i = threadIdx.x; i < expert && wants_blocks; i += threads) blocks_before += num_blocks_of(counts[i], block);
  const int first_row = block_sum(own_before, partial);
  const int first_block = block_sum(blocks_before, partial);
  const int rows = block_sum(own_pairs, partial);
  const int num_blocks = num_blocks_of(rows, block);

  const int warp_pairs = __reduce_add_sync(kFullWarp, own_pairs);
  if (lane == 0) partial[warp] = warp_pairs;
  __syncthreads();
  int row = first_row + __reduce_add_sync(kFullWarp, lane < warp ? partial[lane] : 0);

  // The first block also answers for the pairs that no expert takes.
  first = begin;
  for (int part = 0; first < end; ++part, first += kPart) {
    if (expert > 0 && (to_place & bit_of(part)) == 0) continue;
    int found[kAtOnce];
    load_experts(p, first + lane, end, found);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const unsigned pair = first + i * kWarpSize + lane;
      const unsigned same = __ballot_sync(kFullWarp, found[i] == expert);
      if (found[i] == expert) {
        const int at = row + __popc(same & ((1u << lane) - 1));
        p.sorted_pairs[at] = static_cast<int32_t>(pair);
        p.positions[pair] = at;
      } else if (expert == 0 && found[i] < 0 && pair < end) {
        p.positions[pair] = -1;
      }
      row += __popc(same);
    }
  }

  if (threadIdx.x == 0) p.offsets[expert] = first_row;
  int4* blocks = reinterpret_cast<int4*>(p.blocks);
  for (int i = threadIdx.x; i < num_blocks && wants_blocks; i += threads) {
    const int done = i * block;
    blocks[first_block + i] = make_int4(expert, first_row + done, rows - done < block ? rows - done : block, 0);
  }

  if (expert == num_experts - 1) {
    for (int64_t i = first_row + rows + threadIdx.x; i < p.num_pairs; i += threads) p.sorted_pairs[i] = -1;
    for (int64_t i = first_block + num_blocks + threadIdx.x; i < p.max_blocks; i += threads) {
      blocks[i] = make_int4(-1, 0, 0, 0);
    }
    if (threadIdx.x == 0) {
      p.offsets[num_experts] = first_row + rows;
      if (wants_blocks) *p.num_blocks = first_block + num_blocks;
    }
  }
}

template <class Config>
void launch_moe_align(const MoeAlignParams& p, cudaStream_t stream) {
  HUMMING_CHECK(p.num_experts <= moe_align::kMaxExperts, "humming::moe_align: num_experts = ", p.num_experts,
                " is more than the ", moe_align::kMaxExperts, " a GPU call takes; move topk_ids to the CPU");
  HUMMING_CHECK(is_aligned(p.blocks, sizeof(int4)), "humming::moe_align: blocks must be 16-byte aligned");
  using namespace moe_align;
  const int64_t warps = ceil_div(p.num_pairs, kAtOnce * kWarpSize);
  const int64_t threads = at_most(warps * kWarpSize, kMaxThreads);
  launch_dependent<Config>(moe_align_kernel<Config>, static_cast<unsigned>(p.num_experts),
                           static_cast<unsigned>(threads > kMinThreads ? threads : kMinThreads),
                           p.num_experts * sizeof(int), stream, p);
}

}  // namespace humming
