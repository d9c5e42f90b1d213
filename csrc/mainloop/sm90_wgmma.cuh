// The consumers of the Hopper main loop that multiply with wgmma: a warpgroup has 64 rows.
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
  using Base::begin_group;
  using Base::k16;
  using Base::kAccumulatorScale;
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

  template <int kHalf, int kStep>
  __device__ static void fragments(const RecordView& view, const Weights& weights, typename Weights::Row (&rows)[2],
                                   uint32_t (&fragment)[Weights::kSteps][4]) {
    if constexpr (kStep < Weights::kSteps) {
      begin_group<kHalf * kHalfK + kStep * Weights::kStepK>(view, weights, rows);
      weights.template fragment<kHalf, kStep>(rows, fragment[kStep]);
      fragments<kHalf, kStep + 1>(view, weights, rows, fragment);
    }
  }

  // Dequantises and multiplies one half of a record. `accumulate`: whether acc holds a sum already.
  template <int kHalf>
  __device__ static void multiply_half(const Sm90MainloopParams& p, const Weights& weights,
                                       typename Weights::Row (&rows)[2], uint32_t (&fragment)[2][Weights::kSteps][4],
                                       uint64_t tokens, bool accumulate, Consumer& c) {
    fragments<kHalf, 0>(p.view, weights, rows, fragment[kHalf]);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Weights::kSteps; ++step) {
      Wgmma<kOperand, tile().tokens>::run(c.acc[0], fragment[kHalf][step],
                                          tokens + descriptor_step(kHalf, step, token_rows(p)),
                                          accumulate || step > 0 || kHalf > 0);
    }
    ptx::wgmma_commit_group();
  }

  // One record. `pending`: empty barrier of the stage before, or 0; its last MMAs are complete once this record's first
  // half runs.
  __device__ static void multiply_wgmma(const Sm90MainloopParams& p, const Ring& ring, const uint8_t* records,
                                        int record, uint32_t& pending, Consumer& c) {
    Weights weights;
    typename Weights::Row rows[2];
    uint32_t fragment[2][Weights::kSteps][4];
    weights.load(p.view, records + record * p.record_bytes, c.warp, c.lane);
    const uint64_t tokens = descriptor(ring.stage_tokens() + record * tile().token_blocks() * token_rows(p) * 128);
    multiply_half<0>(p, weights, rows, fragment, tokens, !kPromoted, c);
    ptx::wgmma_wait_group<1>();
    if (pending != 0) ptx::mbarrier_arrive(pending);
    pending = 0;
    multiply_half<1>(p, weights, rows, fragment, tokens, true, c);
    if constexpr (kPromoted) {
      float scale[2] = {1, 1};
      if constexpr (kAccumulatorScale) {
        scale[0] = weights.scale(p.view, 0, 0);
        scale[1] = weights.scale(p.view, 1, 0);
      }
      const float* token_scales = ring.stage_scales() + record * tile().tokens + c.lane % 4 * 2;
      ptx::wgmma_wait_group<0>();
#pragma unroll
      for (int j = 0; j < kSums / 4; ++j) {
        float2 token_scale = {1, 1};
        if constexpr (Config::kTokenGroups) token_scale = *reinterpret_cast<const float2*>(token_scales + 8 * j);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float factor = scale[i / 2] * (i % 2 == 0 ? token_scale.x : token_scale.y);
          c.total[0][4 * j + i] = fmaf(static_cast<float>(c.acc[0][4 * j + i]), factor, c.total[0][4 * j + i]);
        }
      }
    } else {
      ptx::wgmma_wait_group<1>();
    }
  }

  // Runs `multiply(records, record)` for the records of every stage of the warpgroup `group`, and hands the stages on:
  // release_stage is called when the stage's last record has been issued. Full stages are unrolled without a branch
  // between records.
  template <class Multiply, class Release>
  __device__ static void for_each_record(Ring& ring, const Work& work, int group, Multiply multiply,
                                         Release release_stage) {
    const int row_group = group % tile().row_groups;
    const int turn = group / tile().row_groups;
    ring.next(turn);
    int k = work.k_begin + turn * tile().k_tiles;
#pragma unroll 1
    for (; k < work.k_end; k += tile().split_k * tile().k_tiles) {
      ptx::mbarrier_wait(ring.full(), ring.phase);
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

  __device__ static void consume(const Sm90MainloopParams& p, Ring& ring, const Work& work, int group, Consumer& c) {
    uint32_t pending = 0;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      c.acc[0][i] = 0;
      if constexpr (kPromoted) c.total[0][i] = 0;
    }
    for_each_record(
        ring, work, group,
        [&](const uint8_t* records, int record) { multiply_wgmma(p, ring, records, record, pending, c); },
        [&](uint32_t empty) {
          if constexpr (kPromoted) {
            ptx::mbarrier_arrive(empty);
          } else {
            pending = empty;
          }
        });
    if constexpr (!kPromoted) {
      ptx::wgmma_wait_group<0>();
      if (pending != 0) ptx::mbarrier_arrive(pending);
      if constexpr (kOperand == Operand::s8) {
        // Else the zeros of a work item without records make two sets of registers: sums, and sums converted to float.
#pragma unroll
        for (int i = 0; i < kSums; ++i) ptx::forget(c.acc[0][i]);
      }
    }
  }
};

}  // namespace humming
