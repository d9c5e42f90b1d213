// The consumers of the Hopper main loop that multiply with wgmma: a warpgroup has 64 rows, or two strips of 64, for
// which it reads tokens once from memory that others bring.
//
//   register A: WeightTile, 64 rows x 64 columns at a time, double buffered so that the next half is dequantised
//            while the asynchronous MMAs of the last one run
#pragma once

#include "mainloop/sm90_consumer.cuh"
#include "mainloop/wgmma_generated.h"

namespace humming {

template <class Config>
struct Sm90Wgmma : Sm90Consumer<Config> {
  using Base = Sm90Consumer<Config>;
  using Base::k16;
  using Base::kAccumulatorScale;
  using Base::kCopiesRows;
  using Base::kExperts;
  using Base::kOperand;
  using Base::kPromoted;
  using Base::kSums;
  using Base::tile;
  using Base::token_rows;
  using typename Base::Consumer;
  using typename Base::Ring;
  using typename Base::Weights;
  using typename Base::Work;

  static constexpr int kExponent = Weights::kExponent;  // number = sum * 2^kExponent

  // Shared-memory descriptor of B, K-major with 128-byte swizzle: 8 tokens a 1024-byte group. The swizzle is one of
  // addresses, so that it may begin at any token row.
  __device__ static uint64_t descriptor(const uint8_t* tokens) {
    constexpr uint64_t kGroupStride = uint64_t{1024 >> 4} << 32;
    constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
    return static_cast<uint64_t>((ptx::shared_address(tokens) & 0x3FFFF) >> 4) | kGroupStride | kSwizzle128;
  }
  // Descriptor steps (16-byte units) of MMA step `step` of half `half`.
  __device__ static constexpr uint64_t descriptor_step(int half, int step, int token_rows) {
    return k16 ? half * token_rows * 8 + 2 * step : 2 * (Weights::kSteps * half + step);
  }

  // MMA steps of a record, and how many are dequantised and multiplied at a time.
  static constexpr int kSteps = tile().record_halves() * Weights::kSteps;
  static constexpr int kPartSteps = kExperts || tile().half_records ? 2 : Weights::kSteps;
  static constexpr int kParts = kSteps / kPartSteps;
  static constexpr int kStrips = tile().strips();
  using Fragments = uint32_t[2][kPartSteps][4];  // of two parts in turn
  static_assert(kParts % 2 == 0);

  template <int kStep, int kEnd>
  __device__ __forceinline__ static void fragments(const RecordView& view, const Weights& weights,
                                                   typename Weights::Row (&rows)[2],
                                                   uint32_t (&fragment)[kPartSteps][4]) {
    if constexpr (kStep < kEnd) {
      weights.template begin_group<kStep * Weights::kStepK>(view, rows);
      weights.template fragment<kStep / Weights::kSteps, kStep % Weights::kSteps>(rows, fragment[kStep % kPartSteps]);
      fragments<kStep + 1, kEnd>(view, weights, rows, fragment);
    }
  }

  // Dequantises and multiplies a part of the records of all strips, strip after strip, then the parts after it.
  // `accumulate`: whether acc holds a sum already. `pending`: empty barrier of the stage before, or 0; its last MMAs
  // are complete once the first part runs.
  template <int kWidth, int kTurn>
  __device__ __forceinline__ static void multiply_parts(const Sm90MainloopParams& p, const Weights (&weights)[kStrips],
                                                        typename Weights::Row (&rows)[kStrips][2], Fragments& fragment,
                                                        uint64_t tokens, bool accumulate, uint32_t& pending,
                                                        Consumer& c) {
    constexpr int kPart = kTurn / kStrips, kStrip = kTurn % kStrips;
    if constexpr (kPart < kParts) {
      constexpr int kFirst = kPart * kPartSteps;
      fragments<kFirst, kFirst + kPartSteps>(p.view, weights[kStrip], rows[kStrip], fragment[kTurn % 2]);
      ptx::wgmma_fence();
#pragma unroll
      for (int i = 0; i < kPartSteps; ++i) {
        Wgmma<kOperand, kWidth>::run(
            c.acc[kStrip], fragment[kTurn % 2][i],
            tokens + descriptor_step((kFirst + i) / Weights::kSteps, (kFirst + i) % Weights::kSteps, token_rows(p)),
            accumulate || kFirst + i > 0);
      }
      ptx::wgmma_commit_group();
      if constexpr (!(kPromoted && kPart + 1 == kParts)) ptx::wgmma_wait_group<1>();
      if constexpr (kTurn == 0) {
        if (pending != 0) Base::release(pending, c);
        pending = 0;
      }
      multiply_parts<kWidth, kTurn + 1>(p, weights, rows, fragment, tokens, accumulate, pending, c);
    }
  }

  template <int kWidth>
  __device__ __forceinline__ static void multiply_record(const Sm90MainloopParams& p, const Ring& ring,
                                                         const uint8_t* records, int record, uint32_t& pending,
                                                         Consumer& c) {
    Weights weights[kStrips];
    typename Weights::Row rows[kStrips][2];
    Fragments fragment;
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      const uint8_t* from = records + (strip * tile().k_tiles + record) * p.record_bytes;
      weights[strip].template load<tile().record_halves()>(p.view, from, c.warp, c.lane);
    }
    const uint64_t tokens = descriptor(ring.stage_tokens() + record * tile().token_blocks() * token_rows(p) * 128);
    multiply_parts<kWidth, 0>(p, weights, rows, fragment, tokens, !kPromoted, pending, c);
    if constexpr (kPromoted) {
      float scale[2] = {1, 1};
      if constexpr (kAccumulatorScale) {
        scale[0] = weights[0].scale(p.view, 0, 0);
        scale[1] = weights[0].scale(p.view, 1, 0);
      }
      const float* token_scales = ring.stage_scales() + record * tile().tokens + c.lane % 4 * 2;
      ptx::wgmma_wait_group<0>();
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
        float2 token_scale = {1, 1};
        if constexpr (Config::kTokenGroups) token_scale = *reinterpret_cast<const float2*>(token_scales + 8 * j);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float factor = scale[i / 2] * (i % 2 == 0 ? token_scale.x : token_scale.y);
          c.total[0][4 * j + i] = fmaf(static_cast<float>(c.acc[0][4 * j + i]), factor, c.total[0][4 * j + i]);
        }
      }
    }
  }

  // Runs `multiply(records, record)` for the records of every stage of the warpgroup `group`, and hands the stages on:
  // release_stage is called when the stage's last record has been issued. Full stages are unrolled without a branch
  // between records.
  template <class Multiply, class Release>
  __device__ __forceinline__ static void for_each_record(Ring& ring, const Work& work, int group, Multiply multiply,
                                                         Release release_stage) {
    const int row_group = group % tile().row_teams() * kStrips;
    const int turn = group / tile().row_teams();
    ring.next(turn);
    int k = work.k_begin + turn * tile().k_tiles;
#pragma unroll 1
    for (; k < work.k_end; k += tile().split_k * tile().k_tiles) {
      ptx::mbarrier_wait(ring.full(), ring.phase);
      if (kExperts && !kCopiesRows && ring.p.gathers_tokens) ptx::fence_proxy_async();
      const uint8_t* records = ring.stage_weights() + row_group * tile().k_tiles * ring.p.record_bytes;
      if (tile().k_tiles == 1 || k + tile().k_tiles <= work.k_end) {
#pragma unroll
        for (int record = 0; record < tile().k_tiles; ++record) multiply(records, record);
      } else {
#pragma unroll 1
        for (int record = 0; k + record < work.k_end; ++record) multiply(records, record);
      }
      release_stage(ring.empty());
      ring.next(tile().split_k);
    }
    Base::end_of_work(ring, work, k);
  }

  // The fewest tokens, from kWidth up, that hold those of the work item. One loop for each, side by side: one after the
  // other they would share accumulators, and wgmma would wait for every one of them.
  template <int kWidth = tile().first_width()>
  __device__ __forceinline__ static void consume_width(const Sm90MainloopParams& p, Ring& ring, const Work& work,
                                                       int group, Consumer& c) {
    if (kWidth == tile().tokens || work.tokens <= kWidth) {
      consume<kWidth>(p, ring, work, group, c);
    } else if constexpr (kWidth < tile().tokens) {
      consume_width<tile().next_width(kWidth)>(p, ring, work, group, c);
    }
  }

  template <int kWidth = tile().tokens>
  __device__ __forceinline__ static void consume(const Sm90MainloopParams& p, Ring& ring, const Work& work, int group,
                                                 Consumer& c) {
    uint32_t pending = 0;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) c.acc[strip][i] = 0;
      if constexpr (kPromoted) c.total[0][i] = 0;
    }
    for_each_record(
        ring, work, group,
        [&](const uint8_t* records, int record) { multiply_record<kWidth>(p, ring, records, record, pending, c); },
        [&](uint32_t empty) {
          if constexpr (kPromoted) {
            Base::release(empty, c);
          } else {
            pending = empty;
          }
        });
    if constexpr (!kPromoted) {
      ptx::wgmma_wait_group<0>();
      if (pending != 0) Base::release(pending, c);
      if constexpr (kOperand == Operand::s8) {
        // Else the zeros of a work item without records make two sets of registers: sums, and sums converted to float.
#pragma unroll
        for (int i = 0; i < kStrips * kSums; ++i) ptx::forget(c.acc[i / kSums][i % kSums]);
      }
    }
  }
};

}  // namespace humming
