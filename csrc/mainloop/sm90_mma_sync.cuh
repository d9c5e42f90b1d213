// The consumers of the Hopper main loop that multiply with mma.sync: few tokens of 16-bit operands, and of e4m3, which
// are widened to fp16. A warp has whole records, of which it reads the tokens once for all of its 16-row patches.
#pragma once

#include "mainloop/mma_sync.cuh"
#include "mainloop/sm90_consumer.cuh"

namespace humming {

template <class Config>
struct Sm90MmaSync : Sm90Consumer<Config> {
  using Base = Sm90Consumer<Config>;
  using Base::first_patch;
  using Base::k16;
  using Base::kAccumulatorScale;
  using Base::kOperand;
  using Base::kPatches;
  using Base::kSums;
  using Base::stage_share;
  using Base::tile;
  using Base::token_rows;
  using typename Base::Consumer;
  using typename Base::Ring;
  using typename Base::Weights;
  using typename Base::Work;

  static_assert(tile().k_tiles == 1, "a warp has one record of a stage");
  static_assert(k16 || kAccumulatorScale, "e4m3 has codes as they lie, with scales that take RawDequant's row_factor");
  static constexpr Operand kMultiplied = k16 ? kOperand : Operand::fp16;

  static constexpr int kQuarters = kTileK / 32;  // two MMA steps each
  static constexpr int kTokenTiles = tile().tokens / 8;
  static constexpr int kTurn = kTokenTiles == 1 || kPatches == 1 ? kPatches : 2;  // patches side by side, in registers
  static constexpr int kScaleQuarters = kAccumulatorScale ? Weights::kGroup / 32 : kQuarters;  // between two scalings
  static constexpr int kScales = kQuarters / kScaleQuarters;                                   // of a record

  // Where scales stand outside of the sums, and zero points are the groups' or none, codes go in as they lie, and
  // tokens take a power of two (RawDequant).
  static constexpr bool kRaw =
      kAccumulatorScale || (Config::kScaleMode == ScaleMode::none && Config::kZero == ZeroKind::none);
  using Raw = RawDequant<Config::kFormat, kOperand>;
  // number = sum * 2^kExponent
  static constexpr int kExponent = kRaw ? Raw::kExponent - Weights::kScaleExponent : Weights::kExponent;
  static constexpr bool kCentred = kRaw && Raw::kHasCentre;

  // B fragments: of a quarter and eight tokens the 16-byte chunks 0..3 of 16-bit values, which registers n = 8 *
  // (quarter % 2) + 2 * chunk, and the one after it, of the weights meet.
  using Tokens = uint32_t[kQuarters][kTokenTiles][4];
  __device__ static constexpr int weight_register(int quarter, int chunk) { return quarter % 2 * 8 + 2 * chunk; }
  using TokenSums = float[kScales][kCentred ? kSums : 1];

  // Tokens of record `share` of the stage whose tokens begin at `from`. A load brings four 8 x 8 matrices: tokens
  // 8j..8j+7, the last there is in the place of those there are not, of four 16-byte chunks of their 128-byte rows,
  // which the swizzle has moved. bf16 takes RawDequant's power of two.
  __device__ static void load_tokens(uint32_t from, int share, int rows, int lane, Tokens& tokens) {
    if constexpr (!k16) return widen_tokens(from, share, rows, lane, tokens);
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      const int block = share * tile().token_blocks() + quarter / 2;
      const int chunk = 4 * (quarter % 2) + lane / 8;
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        uint32_t (&b)[4] = tokens[quarter][j];
        const int line = block * rows + min(8 * j + lane % 8, rows - 1);
        ptx::ldmatrix_x4(from + 128 * line + ((chunk ^ line % 8) << 4), b);
#pragma unroll
        for (int i = 0; i < 4 && kRaw && kOperand == Operand::bf16; ++i) {
          const uint32_t factor = 127 + Raw::token_exponent(weight_register(quarter, i));
          b[i] = mul_bf16x2(b[i], repeat16(factor << 7));
        }
      }
    }
  }

  // The same of e4m3, whose chunks have columns for two quarters: values 0 and 2 of a word are two columns of the first
  // MMA step, 1 and 3 of the second, as RawDequant has the weights.
  __device__ static void widen_tokens(uint32_t from, int share, int rows, int lane, Tokens& tokens) {
#pragma unroll
    for (int two = 0; two < kQuarters; two += 2) {
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        const int line = share * rows + min(8 * j + lane % 8, rows - 1);
        const int chunk = 2 * two + lane / 8;
        uint32_t words[4];
        ptx::ldmatrix_x4(from + 128 * line + ((chunk ^ line % 8) << 4), words);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t (&b)[4] = tokens[two + i / 2][j];
          b[i % 2] = f16x2_from_e4m3x2(prmt(words[i], 0, 0x4420));
          b[i % 2 + 2] = f16x2_from_e4m3x2(prmt(words[i], 0, 0x4431));
        }
      }
    }
  }

  // A quarter's tokens into the sums over the columns of its scale, as the accumulators of all rows have them.
  template <int kQuarter>
  __device__ static void sum_tokens(const Tokens& tokens, TokenSums& token_sums) {
    float (&sums)[kSums] = token_sums[kQuarter / kScaleQuarters];
#pragma unroll
    for (int i = 0; i < kSums && kAccumulatorScale && kQuarter % kScaleQuarters == 0; ++i) sums[i] = 0;
#pragma unroll
    for (int chunk = 0; chunk < 4; chunk += 2) {
      const int first = weight_register(kQuarter, chunk);
      const uint32_t ones[4] = {Raw::one(first), Raw::one(first + 1), Raw::one(first + 2), Raw::one(first + 3)};
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        mma_sync<kMultiplied>(sums + 4 * j, ones, tokens[kQuarter][j][chunk], tokens[kQuarter][j][chunk + 1]);
      }
    }
  }

  // The A fragment of MMA step kStep of a half.
  template <int kHalf, int kStep>
  __device__ static void fragment_of(const RecordView& view, const Weights& weights, typename Weights::Row (&rows)[2],
                                     uint32_t (&fragment)[4]) {
    if constexpr (kRaw) {
      weights.template raw_fragment<kHalf, kStep>(fragment);
    } else {
      weights.template begin_group<kHalf * kHalfK + kStep * Weights::kStepK>(view, rows);
      weights.template fragment<kHalf, kStep>(rows, fragment);
    }
  }

  // A quarter of kTurn patches, kFirst first, into their sums; then the quarters after it. Patches take turns, because
  // a product waits long for the one before it in the same sums. After the last quarter of a group its scale joins the
  // sums to a patch's total.
  template <int kQuarter, int kFirst>
  __device__ static void multiply_quarters(const RecordView& view, const Weights (&weights)[kTurn],
                                           typename Weights::Row (&rows)[kTurn][2], const Tokens& tokens,
                                           TokenSums& token_sums, Consumer& c) {
    if constexpr (kQuarter < kQuarters) {
      constexpr int kScale = kQuarter / kScaleQuarters;
      if constexpr (kCentred && kFirst == 0) sum_tokens<kQuarter>(tokens, token_sums);
#pragma unroll
      for (int patch = 0; patch < kTurn; ++patch) {
        float (&sums)[kSums] = c.acc[kFirst + patch];
        if constexpr (kAccumulatorScale && kQuarter % kScaleQuarters == 0) {
#pragma unroll
          for (int i = 0; i < kSums; ++i) sums[i] = 0;
        }
        uint32_t fragment[2][4];
        fragment_of<kQuarter / 2, kQuarter % 2 * 2>(view, weights[patch], rows[patch], fragment[0]);
        fragment_of<kQuarter / 2, kQuarter % 2 * 2 + 1>(view, weights[patch], rows[patch], fragment[1]);
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j) {
          const uint32_t (&b)[4] = tokens[kQuarter][j];
          mma_sync<kMultiplied>(sums + 4 * j, fragment[0], b[0], b[1]);
          mma_sync<kMultiplied>(sums + 4 * j, fragment[1], b[2], b[3]);
        }
      }
      if constexpr (kAccumulatorScale && (kQuarter + 1) % kScaleQuarters == 0) {
        const int group = Weights::group_of(view, 32 * kQuarter);
#pragma unroll
        for (int patch = 0; patch < kTurn; ++patch) {
          float scale[2], centre[2];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            scale[half] = weights[patch].scale(view, half, group) * Raw::row_factor(half);
            if constexpr (kCentred) centre[half] = Raw::centre(weights[patch].zero(view, half, group));
          }
#pragma unroll
          for (int i = 0; i < kSums; ++i) {
            float sum = c.acc[kFirst + patch][i];
            if constexpr (kCentred) sum = fmaf(-centre[i / 2 % 2], token_sums[kScale][i], sum);
            c.total[kFirst + patch][i] = fmaf(sum, scale[i / 2 % 2], c.total[kFirst + patch][i]);
          }
        }
      }
      multiply_quarters<kQuarter + 1, kFirst>(view, weights, rows, tokens, token_sums, c);
    }
  }

  // The patches of the warp's record, kTurn at a time.
  template <int kFirst>
  __device__ static void multiply_patches(const Sm90MainloopParams& p, const uint8_t* record, const Tokens& tokens,
                                          TokenSums& token_sums, Consumer& c) {
    if constexpr (kFirst < kPatches) {
      Weights weights[kTurn];
      typename Weights::Row rows[kTurn][2];
#pragma unroll
      for (int patch = 0; patch < kTurn; ++patch) {
        weights[patch].load(p.view, record, first_patch(c) + kFirst + patch, c.lane);
      }
      multiply_quarters<0, kFirst>(p.view, weights, rows, tokens, token_sums, c);
      multiply_patches<kFirst + kTurn>(p, record, tokens, token_sums, c);
    }
  }

  __device__ static void consume(const Sm90MainloopParams& p, Ring& ring, const Work& work, int group, Consumer& c) {
#pragma unroll
    for (int patch = 0; patch < kPatches; ++patch) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        c.acc[patch][i] = 0;
        if constexpr (kAccumulatorScale) c.total[patch][i] = 0;
      }
    }
    TokenSums token_sums = {};
    const int share = stage_share(c);
    ring.next(group);
    int k = work.k_begin + group * tile().stage_tiles();
#pragma unroll 1
    for (; k < work.k_end; k += tile().split_k * tile().stage_tiles(), ring.next(tile().split_k)) {
      ptx::mbarrier_wait(ring.full(), ring.phase);
      if (k + share < work.k_end) {
        const uint8_t* record = ring.stage_weights() + share * p.record_bytes;
        Tokens tokens;
        load_tokens(ptx::shared_address(ring.stage_tokens()), share, token_rows(p), c.lane, tokens);
        multiply_patches<0>(p, record, tokens, token_sums, c);
      }
      ptx::mbarrier_arrive(ring.empty());
    }
    Base::end_of_work(ring, work, k);
    if constexpr (kCentred && !kAccumulatorScale) {
#pragma unroll
      for (int patch = 0; patch < kPatches; ++patch) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          c.acc[patch][i] -= Raw::centre(dequant::implied_zero(Weights::kTraits)) * token_sums[0][i];
        }
      }
    }
  }
};

}  // namespace humming
