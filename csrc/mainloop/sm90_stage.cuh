// What the producers and the consumers of the Hopper main loop (sm90_gemm.cuh) share: a work item, and a ring of
// stages.
//
//   shared   stage s: tokens [record of the stage][block][token row][128 bytes], 128-byte swizzle
//                     weights [row group][record of the stage][record_bytes]
//                     where tokens have groups, their scales [record of the stage][token]
//
// Barriers of stage s: full (the producer's arrive with its byte count, and all lanes of the warp that brings scales),
// empty (all lanes of the warps that have the stage; with multicast also one of each of these warps of the other CTA,
// which writes there).
#pragma once

#include "mainloop/ptx.h"
#include "mainloop/sm90_params.h"
#include "mainloop/sm90_tile.h"
#include "mainloop/weight_tile.cuh"

namespace humming {

// Config: the manifest's columns, and kExperts: whether tiles are blocks of rows of an expert. mma.sync instead of
// wgmma serves few tokens of a floating operand.
template <class Config>
struct Sm90Stage {
  static constexpr Operand kOperand = Config::kOperand;
  static constexpr bool kExperts = Config::kExperts;
  static constexpr bool k16 = order_of(kOperand) == Order::k16;
  // A function: device code cannot use a static member object.
  __host__ __device__ static constexpr Sm90Tile tile() {
    return {Config::kRowGroups, Config::kSplitK,      Config::kClusterK,   Config::kTokens,
            Config::kKTiles,    k16 ? 2 : 1,          Config::kMmaPatches, Config::kTokenGroups,
            Config::kMulticast, Config::kHalfRecords, Config::kTwoStrips};
  }
  using Weights = WeightTile<Config>;
  static constexpr bool kAccumulatorScale = Config::kScaleMode == ScaleMode::accumulator;
  // Whether the sums of a record, or of its groups, join a total in fp32.
  static constexpr bool kPromoted = kAccumulatorScale || Config::kTokenGroups;
  using MmaType = std::conditional_t<kOperand == Operand::s8, int, float>;
  static constexpr int kSums = tile().tokens / 2;  // accumulators of a thread and 16 rows
  static constexpr bool kMmaSync = tile().mma_patches > 0;
  static constexpr int kPatches = kMmaSync ? tile().mma_patches : tile().strips();  // of 16 rows that a warp has

  static_assert(!kMmaSync || kOperand != Operand::s8, "sums of mma.sync are floats");
  static_assert(!Config::kTokenGroups || !k16, "16-bit tokens have no scales");
  static_assert(!kMmaSync || tile().row_groups == 1, "with mma.sync a stage is one row group's");
  static_assert(
      !tile().half_records ||
          (!kMmaSync && k16 && Config::kScaleStorage == ScaleStorage::none && Config::kZero == ZeroKind::none),
      "half a record stands alone only without scales and zero points, and has whole blocks of 16-bit tokens");
  static_assert(!tile().two_strips || (!kMmaSync && !kPromoted && tile().row_groups % 2 == 0),
                "accumulators of two strips leave no room for totals");
  static_assert(!tile().multicast || (!kMmaSync && tile().cluster_k == 1), "multicast is written for wgmma, in pairs");

  // Codes that are Inf or NaN in the operand must not meet the zeros behind the last column.
  static constexpr bool kClearTail = Weights::kTraits.specials != Specials::none;

  // Few tokens that lie anywhere come by the copy engine, row by row; others are fetched by threads.
  static constexpr bool kCopiesRows = kExperts && !kMmaSync && tile().tokens <= 16;

  // A tile of the product.
  struct Work {
    const uint8_t* packed;  // the weight, or that of the expert
    int row_tile;
    int token, tokens;    // rows of x: the first, and how many
    int k_begin, k_end;   // records
    const int32_t* rows;  // instead of `token`, in shared memory, where they lie anywhere
  };

  __device__ static int token_rows(const Sm90MainloopParams& p) {
    return !kExperts && tile().drops_rows() ? p.token_rows : tile().tokens;
  }

  // Shared addresses, and the ring position both sides step through.
  struct Ring {
    const Sm90MainloopParams& p;
    uint8_t* tokens;
    uint8_t* weights;
    uint8_t* scales;
    uint32_t barriers;
    int stage = 0;
    uint32_t phase = 0;

    __device__ uint32_t full() const { return barriers + 8 * stage; }
    __device__ uint32_t empty() const { return barriers + 8 * (p.stages + stage); }
    __device__ uint8_t* stage_tokens() const { return tokens + stage * tile().token_stage_bytes(token_rows(p)); }
    __device__ uint8_t* stage_weights() const { return weights + stage * tile().weight_stage_bytes(p.record_bytes); }
    __device__ float* stage_scales() const {
      return reinterpret_cast<float*>(scales + stage * tile().scale_stage_bytes());
    }
    __device__ void next(int steps = 1) {  // at most `stages` steps
      stage += steps;
      if (stage >= p.stages) {
        stage -= p.stages;
        phase ^= 1;
      }
    }
    __device__ void back(int steps) {  // fewer than `stages`
      stage -= steps;
      if (stage < 0) {
        stage += p.stages;
        phase ^= 1;
      }
    }
  };

  // After a warpgroup's turns, which ended at column `k`: to the first stage of the next work item.
  __device__ static void end_of_work(Ring& ring, const Work& work, int k) {
    const int end = work.k_begin + (work.k_end - work.k_begin + tile().stage_tiles() - 1) / tile().stage_tiles() *
                                       tile().stage_tiles();
    if constexpr (tile().split_k > 1) ring.back((k - end) / tile().stage_tiles());
  }

  // At a full barrier, besides the bytes: those who bring weights and tokens, and all lanes of the warp of scales.
  static constexpr int full_arrivals(int producers) { return producers + (Config::kTokenGroups ? 32 : 0); }
  static constexpr int kEmptyArrivals = 4 * tile().row_teams() * (tile().multicast ? 33 : 32);
};

}  // namespace humming
