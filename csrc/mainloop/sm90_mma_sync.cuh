// The consumers of the Hopper main loop that multiply with mma.sync: 16-bit operands, few tokens. A warp has whole
// records, of which it reads the tokens once for all of its 16-row patches.
#pragma once

#include "mainloop/sm90_consumer.cuh"

namespace humming {

template <class Config>
struct Sm90MmaSync : Sm90Consumer<Config> {
  using Base = Sm90Consumer<Config>;
  using Base::begin_group;
  using Base::for_each_record;
  using Base::kAccumulatorScale;
  using Base::kOperand;
  using Base::kPatches;
  using Base::kSums;
  using Base::release;
  using Base::tile;
  using typename Base::Consumer;
  using typename Base::Ring;
  using typename Base::Weights;
  using typename Base::Work;

  using Base::first_patch;
  using Base::stage_share;

  __device__ static void mma(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (kOperand == Operand::bf16)
      ptx::mma_m16n8k16_bf16(d, a, b0, b1);
    else
      ptx::mma_m16n8k16_f16(d, a, b0, b1);
  }

  static constexpr int kQuarters = kTileK / 32;
  static constexpr int kQuarterTokens = tile().tokens / 8 * 4;  // registers of 32 columns of all tokens
  static constexpr int kScaleQuarters = kAccumulatorScale ? Weights::kGroup / 32 : kQuarters;  // between two scalings
  static constexpr int kScales = kQuarters / kScaleQuarters;                                   // of a record
  // Whether codes go in with their centre still on them (dequant.h): sum((raw - centre) * x) = sum(raw * x) - centre *
  // sum(x), where a product with ones gives the sums of the tokens, once for all patches. Raw sums are up to (2^m +
  // 2^bits) / 2^(bits-1) times as large as those of the numbers, 18 for int4 and bf16, and lose as much of fp32's
  // precision.
  static constexpr bool kCentred = kAccumulatorScale && Weights::kHasCentre;
  using TokenSums = float[kScales][kCentred ? kSums : 1];

  // 32 columns (two MMA steps) of a patch, from column 32 * kQuarter of the record, into two independent sums; then the
  // quarters after it. After the last quarter of a group its scale joins the sums to the patch's total.
  template <int kQuarter>
  __device__ static void multiply_quarters(const RecordView& view, const Weights& weights,
                                           typename Weights::Row (&rows)[2],
                                           const uint32_t (&tokens)[kQuarters][kQuarterTokens],
                                           const TokenSums& token_sums, float (&even)[kSums], float (&odd)[kSums],
                                           float* total) {
    if constexpr (kQuarter < kQuarters) {
      constexpr int kHalf = kQuarter / 2;
      constexpr int kStep = kQuarter % 2 * 2;
      constexpr int kScale = kQuarter / kScaleQuarters;
      uint32_t fragment[2][4];
      begin_group<32 * kQuarter>(view, weights, rows);
      weights.template fragment<kHalf, kStep, kCentred>(rows, fragment[0]);
      begin_group<32 * kQuarter + 16>(view, weights, rows);
      weights.template fragment<kHalf, kStep + 1, kCentred>(rows, fragment[1]);
      if constexpr (kAccumulatorScale && kQuarter % kScaleQuarters == 0) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          even[i] = odd[i] = 0;
        }
      }
#pragma unroll
      for (int j = 0; j < tile().tokens / 8; ++j) {
        const uint32_t* b = tokens[kQuarter] + 4 * j;
        mma(even + 4 * j, fragment[0], b[0], b[1]);
        mma(odd + 4 * j, fragment[1], b[2], b[3]);
      }
      if constexpr (kAccumulatorScale && (kQuarter + 1) % kScaleQuarters == 0) {
        const int group = Weights::group_of(view, 32 * kQuarter);
        const float scale[2] = {weights.scale(view, 0, group), weights.scale(view, 1, group)};
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          float sum = even[i] + odd[i];
          if constexpr (kCentred) sum = fmaf(-Weights::centre(rows[i / 2 % 2]), token_sums[kScale][i], sum);
          total[i] = fmaf(sum, scale[i / 2 % 2], total[i]);
        }
      }
      multiply_quarters<kQuarter + 1>(view, weights, rows, tokens, token_sums, even, odd, total);
    }
  }

  // Sums of the tokens over the columns of each scale, as the accumulators of all rows have them.
  __device__ static void sum_tokens(const uint32_t (&tokens)[kQuarters][kQuarterTokens], TokenSums& sums) {
    if constexpr (kCentred) {
      constexpr uint32_t kOne = kOperand == Operand::bf16 ? 0x3F803F80 : 0x3C003C00;
      const uint32_t ones[4] = {kOne, kOne, kOne, kOne};
#pragma unroll
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        float* sum = sums[quarter / kScaleQuarters];
#pragma unroll
        for (int i = 0; i < kSums && quarter % kScaleQuarters == 0; ++i) sum[i] = 0;
#pragma unroll
        for (int j = 0; j < tile().tokens / 8; ++j) {
          const uint32_t* b = tokens[quarter] + 4 * j;
          mma(sum + 4 * j, ones, b[0], b[1]);
          mma(sum + 4 * j, ones, b[2], b[3]);
        }
      }
    }
  }

  // A record's tokens as B fragments. A load brings four 8 x 8 matrices: tokens 8j..8j+7 of four 16-byte chunks of
  // their 128-byte rows, which the swizzle has moved.
  __device__ static void load_tokens(uint32_t from, int lane, uint32_t (&tokens)[kQuarters][kQuarterTokens]) {
    const int row = lane % 8;
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      const int chunk = 4 * (quarter % 2) + lane / 8;
#pragma unroll
      for (int j = 0; j < tile().tokens / 8; ++j) {
        ptx::ldmatrix_x4(from + quarter / 2 * tile().tokens * 128 + (8 * j + row) * 128 + ((chunk ^ row) << 4),
                         *reinterpret_cast<uint32_t (*)[4]>(tokens[quarter] + 4 * j));
      }
    }
  }

  __device__ static void consume(const Sm90MainloopParams& p, Ring& ring, const Work& work, int group, Consumer& c) {
    float odd[kPatches][kSums] = {};
#pragma unroll
    for (int patch = 0; patch < kPatches; ++patch) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        c.acc[patch][i] = 0;
        if constexpr (kAccumulatorScale) c.total[patch][i] = 0;
      }
    }
    for_each_record(
        ring, work, group, stage_share(c),
        [&](const uint8_t* records, int record) {
          uint32_t tokens[kQuarters][kQuarterTokens];
          TokenSums token_sums;
          load_tokens(ptx::shared_address(ring.stage_tokens() + record * tile().token_tile_bytes()), c.lane, tokens);
          sum_tokens(tokens, token_sums);
#pragma unroll
          for (int patch = 0; patch < kPatches; ++patch) {
            Weights weights;
            typename Weights::Row rows[2];
            weights.load(p.view, records + record * p.record_bytes, first_patch(c) + patch, c.lane);
            multiply_quarters<0>(p.view, weights, rows, tokens, token_sums, c.acc[patch], odd[patch], c.total[patch]);
          }
        },
        [&](uint32_t empty) { release(empty, c.lane); });
    if constexpr (!kAccumulatorScale) {
#pragma unroll
      for (int patch = 0; patch < kPatches; ++patch) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) c.acc[patch][i] += odd[patch][i];
      }
    }
  }
};

}  // namespace humming
