// The dense main loop of Ampere and Ada: all threads copy a ring of stages (cp.async), and every warp turns its codes
// into fragments and multiplies (mma.sync). Extents and names: sm80_tile.h.
//
//   global    packed [strip][record], tokens [M][K]
//   shared    stage s: weights [row group][record of the stage][record_bytes]
//                      tokens [record of the stage][block][token][line]
//   register  A: WeightTile, two MMA steps of 16 rows at a time (64 bytes of a token's columns)
//             B: the same columns of 8 tokens at a time, one ldmatrix
//             D: acc[patch][4 * j + r] is channel g + 8 * (r / 2) of the patch, token 8 * j + 2 * t + r % 2
#pragma once

#include "mainloop/any_weight_tile.cuh"
#include "mainloop/mma_sync.cuh"
#include "mainloop/ptx.h"
#include "mainloop/sm80_params.h"
#include "mainloop/sm80_tile.h"
#include "mainloop/weight_tile.cuh"

namespace humming {

// Config: the manifest's columns, kExperts: whether tiles are blocks of rows of an expert, and kAny: whether weights
// have any format.
template <class Config>
struct Sm80Gemm {
  static constexpr Operand kOperand = Config::kOperand;
  static constexpr bool kExperts = Config::kExperts;
  static constexpr bool kAny = Config::kAny;
  // A function: device code cannot use a static member object.
  __host__ __device__ static constexpr Sm80Tile tile() {
    return {Config::kRowGroups, Config::kPatches, Config::kSplitK, Config::kTokens,
            32 / values_per_register(order_of(kOperand))};
  }
  using Weights = std::conditional_t<kAny, AnyWeightTile<Config>, WeightTile<Config>>;
  using Params = std::conditional_t<kAny, Sm80AnyParams, Sm80MainloopParams>;
  static constexpr bool kAccumulatorScale = Config::kScaleMode == ScaleMode::accumulator;
  // Whether the sums of a record join a total in fp32.
  static constexpr bool kPromoted = kAccumulatorScale || Config::kTokenGroups;
  // Integers of a record, 128 products of at most 2^14, stay below 2^22.
  static constexpr MmaSum<kOperand> kOrigin = kPromoted && sums_are_integers(kOperand) ? kIntegerOrigin : 0;
  static constexpr int kPatches = tile().patches;
  static constexpr int kTokenTiles = tile().tokens / 8;
  static constexpr int kSums = tile().tokens / 2;  // accumulators of a thread and patch
  static constexpr int kPairs = tile().pairs();    // of MMA steps of a record
  static constexpr int kRowsAtATime = tile().rows_at_a_time();

  static_assert(!kAccumulatorScale || Weights::kGroup == kTileK, "sums of a record have one scale");
  static_assert(!Config::kTokenGroups || order_of(kOperand) != Order::k16, "16-bit tokens have no scales");
  static_assert(tile().tokens % 8 == 0 && 4 % kPatches == 0, "whole MMAs");
  static_assert(kRowsAtATime % 8 == 0, "token_offset() repeats after 8 tokens");

  // number = sum * unit
  __device__ __forceinline__ static float unit_of(const Params& p) {
    if constexpr (kAny)
      return p.any.unit;
    else
      return power_of_two(Weights::kExponent);
  }

  __device__ __forceinline__ static const auto& view_of(const Params& p) {
    if constexpr (kAny)
      return p.any;
    else
      return p.view;
  }

  // A tile of the product.
  struct Work {
    const uint8_t* packed;  // the weight, or that of the expert
    int row_tile;
    int token, tokens;    // rows of x: the first, and how many
    const int32_t* rows;  // with experts instead: those of the tokens, in shared memory

    __device__ int64_t row_of(int index) const {
      if constexpr (kExperts)
        return rows[index];
      else
        return token + index;
    }
  };

  // What a warp has of every stage, and its sums.
  struct Warp {
    int lane;
    Sm80Tile::Role role;
    MmaSum<kOperand> acc[kPatches][kSums];
    float total[kPatches][kPromoted ? kSums : 1];

    __device__ explicit Warp(int thread) : lane(thread % kWarpSize), role(tile().role_of(thread / kWarpSize)) {}
    // Row of the tile with which a patch begins.
    __device__ int row_of(int patch) const { return kStripRows * role.row_group + 16 * (role.patch + patch); }
    // The finished sums of a thread, of one of its patches.
    __device__ auto& sums(int patch) {
      if constexpr (kPromoted)
        return total[patch];
      else
        return acc[patch];
    }
  };

  // `bytes`, a multiple of 16.
  __device__ static void copy(uint32_t to, const uint8_t* from, int bytes, int thread) {
#pragma unroll 1
    for (int at = 16 * thread; at < bytes; at += 16 * tile().threads()) ptx::async_copy_16(to + at, from + at);
  }

  // Records k, k + 1, ... of the row groups that exist. In the half tail record scales follow the codes of one half;
  // here they lie where a full one has them, behind zeros: codes that are Inf or NaN must not meet the zeros behind the
  // last column.
  __device__ static void copy_weights(const Params& p, const Work& work, int k, uint32_t to, int thread) {
    const bool has_tail = p.half_tail && k + tile().split_k >= p.num_k_tiles;
    const int full = (min(k + tile().split_k, p.num_k_tiles) - k - has_tail) * p.record_bytes;
    const int first_strip = work.row_tile * tile().row_groups;
    const uint8_t* from = work.packed + first_strip * p.strip_bytes + static_cast<int64_t>(k) * p.record_bytes;
#pragma unroll 1
    for (int group = 0; group < tile().row_groups; ++group) {
      if (first_strip + group < p.num_strips) {
        copy(to, from, full, thread);
        if (has_tail) copy_tail(p, to + full, from + full, thread);
      }
      to += tile().split_k * p.record_bytes;
      from += p.strip_bytes;
    }
  }
  __device__ static void copy_tail(const Params& p, uint32_t to, const uint8_t* from, int thread) {
    copy(to, from, p.tail_codes_bytes, thread);
    copy(to + p.view.scale_offset, from + p.tail_codes_bytes, p.tail_scale_bytes, thread);
#pragma unroll 1
    for (int at = p.tail_codes_bytes + 16 * thread; at < p.view.scale_offset; at += 16 * tile().threads()) {
      ptx::async_copy_16(to + at, from, 0);
    }
  }

  // The columns of records k, k + 1, ... of the tokens that exist, zeros behind the last. What a product finds in place
  // of other tokens gives columns of sums that nobody stores.
  __device__ static void copy_tokens(const Params& p, const Work& work, int k, uint32_t to, int thread) {
    const Sm80Tile::Chunk mine = tile().copied_by(thread);
    const uint8_t* x = p.x + (kExperts ? 0 : work.row_of(mine.token) * p.x_row_bytes);
    to += tile().token_offset(mine.token, mine.chunk);
#pragma unroll
    for (int record = 0; record < tile().split_k; ++record) {
      const int64_t column = static_cast<int64_t>(k + record) * tile().row_bytes() + 16 * mine.chunk;
      const int size = static_cast<int>(max(int64_t{0}, min(int64_t{16}, p.x_bytes - column)));
      const uint8_t* from = x + (size > 0 ? column : 0);
#pragma unroll
      for (int first = 0; first < tile().tokens; first += kRowsAtATime) {
        if (mine.token + first < work.tokens) {
          const int64_t row = kExperts ? work.row_of(mine.token + first) : first;
          ptx::async_copy_16(to + first * tile().line_bytes(), from + row * p.x_row_bytes, size);
        }
      }
      to += tile().token_bytes();
    }
  }

  // Two MMA steps of the record, then those after them.
  template <int kPair, class View>
  __device__ __forceinline__ static void multiply_pairs(const View& view, const Weights (&weights)[kPatches],
                                                        typename Weights::Row (&rows)[kPatches][2], uint32_t tokens,
                                                        Warp& warp) {
    if constexpr (kPair < kPairs) {
      uint32_t fragment[kPatches][2][4];
#pragma unroll
      for (int patch = 0; patch < kPatches; ++patch) {
        fragment_of<2 * kPair>(view, weights[patch], rows[patch], fragment[patch][0]);
        fragment_of<2 * kPair + 1>(view, weights[patch], rows[patch], fragment[patch][1]);
      }
      // A load brings four 8 x 8 matrices of 16-bit elements: of tokens 8j .. 8j + 7 the chunks 4 * kPair + 0 .. 3, the
      // two halves of B of two steps.
      const Sm80Tile::Chunk mine = tile().read_by(warp.lane, kPair);
      const uint32_t from = tokens + tile().token_offset(mine.token, mine.chunk);
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        uint32_t b[4];
        ptx::ldmatrix_x4(from + 8 * j * tile().line_bytes(), b);
#pragma unroll
        for (int patch = 0; patch < kPatches; ++patch) {
          mma_sync<kOperand>(warp.acc[patch] + 4 * j, fragment[patch][0], b[0], b[1]);
        }
#pragma unroll
        for (int patch = 0; patch < kPatches; ++patch) {
          mma_sync<kOperand>(warp.acc[patch] + 4 * j, fragment[patch][1], b[2], b[3]);
        }
      }
      multiply_pairs<kPair + 1>(view, weights, rows, tokens, warp);
    }
  }

  // The A fragment of MMA step kStep of the record.
  template <int kStep, class View>
  __device__ __forceinline__ static void fragment_of(const View& view, const Weights& weights,
                                                     typename Weights::Row (&rows)[2], uint32_t (&fragment)[4]) {
    weights.template begin_group<kStep * Weights::kStepK>(view, rows);
    weights.template fragment<kStep / Weights::kSteps, kStep % Weights::kSteps>(rows, fragment);
  }

  // Record k of K, which lies at `record` and its tokens at `tokens`, into the warp's sums.
  __device__ static void multiply_record(const Params& p, const Work& work, int k, const uint8_t* record,
                                         uint32_t tokens, Warp& warp) {
    Weights weights[kPatches];
    typename Weights::Row rows[kPatches][2];
#pragma unroll
    for (int patch = 0; patch < kPatches; ++patch) {
      weights[patch].load(view_of(p), record, warp.role.patch + patch, warp.lane);
    }
    if constexpr (!kPromoted) {
      multiply_pairs<0>(view_of(p), weights, rows, tokens, warp);
    } else {
      float token_scale[2 * kTokenTiles];
#pragma unroll
      for (int i = 0; i < 2 * kTokenTiles; ++i) {
        const int token = 8 * (i / 2) + warp.lane % 4 * 2 + i % 2;
        const bool exists = Config::kTokenGroups && token < work.tokens;
        token_scale[i] = exists ? p.token_scales[work.row_of(token) * p.token_scale_stride + k] : 1.0f;
      }
      fill(warp.acc, kOrigin);
      multiply_pairs<0>(view_of(p), weights, rows, tokens, warp);
#pragma unroll
      for (int patch = 0; patch < kPatches; ++patch) {
        float scale[2] = {1, 1};
        if constexpr (kAccumulatorScale) {
          scale[0] = weights[patch].scale(view_of(p), 0, 0);
          scale[1] = weights[patch].scale(view_of(p), 1, 0);
        }
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          const float factor = scale[i / 2 % 2] * token_scale[i / 4 * 2 + i % 2];
          warp.total[patch][i] = fmaf(record_sum(warp.acc[patch][i]), factor, warp.total[patch][i]);
        }
      }
    }
  }

  __device__ static float record_sum(float sum) { return sum; }
  __device__ static float record_sum(int sum) { return float_from_origin(sum); }

  template <class T, int kCount>
  __device__ static void fill(T (&sums)[kPatches][kCount], T value) {
#pragma unroll
    for (int i = 0; i < kPatches * kCount; ++i) sums[i / kCount][i % kCount] = value;
  }

  // All but the `pending` youngest groups of copies are complete.
  __device__ static void wait_for_copies(int pending) {
    static_assert(Sm80Tile::kMaxStages == 5,
                  "a stage is multiplied and up to 3 are on their way while the next one is waited for");
    if (pending == 0) ptx::wait_for_copy_groups<0>();
    if (pending == 1) ptx::wait_for_copy_groups<1>();
    if (pending == 2) ptx::wait_for_copy_groups<2>();
    if (pending == 3) ptx::wait_for_copy_groups<3>();
  }

  // Fills the ring and multiplies. Every turn waits for the oldest stage and asks for the one that takes the place of
  // the stage before it.
  __device__ static void consume(const Params& p, const Work& work, uint8_t* shared, int thread, Warp& warp) {
    const int stage_bytes = tile().stage_bytes(p.record_bytes);
    const int weight_bytes = tile().weight_stage_bytes(p.record_bytes);
    const uint32_t ring = ptx::shared_address(shared);
    const auto fetch = [&](int k, int stage) {
      if (k < p.num_k_tiles) {
        const uint32_t to = ring + stage * stage_bytes;
        int here = thread;
        ptx::forget(here);  // else all that follows from it stays in registers of the main loop
        copy_weights(p, work, k, to, here);
        copy_tokens(p, work, k, to + weight_bytes, here);
      }
      ptx::commit_copies();
    };
    fill(warp.acc, kOrigin);
    fill(warp.total, 0.0f);
    for (int stage = 0; stage < p.stages - 1; ++stage) fetch(stage * tile().split_k, stage);
    int stage = 0;
#pragma unroll 1
    for (int k = 0; k < p.num_k_tiles; k += tile().split_k) {
      wait_for_copies(p.stages - 2);
      __syncthreads();  // every thread's copies are there, and no warp is in the stage before, which is filled next
      fetch(k + (p.stages - 1) * tile().split_k, stage == 0 ? p.stages - 1 : stage - 1);
      if (k + warp.role.team < p.num_k_tiles) {
        const int offset = stage * stage_bytes;
        const int record = (warp.role.row_group * tile().split_k + warp.role.team) * p.record_bytes;
        multiply_record(p, work, k + warp.role.team, shared + offset + record,
                        ring + offset + weight_bytes + warp.role.team * tile().token_bytes(), warp);
      }
      stage = stage + 1 == p.stages ? 0 : stage + 1;
    }
    __syncthreads();  // no warp is in the ring any more
  }
};

}  // namespace humming
