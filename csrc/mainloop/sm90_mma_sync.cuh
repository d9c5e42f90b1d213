// The consumers of the Hopper main loop that multiply with mma.sync: few tokens of 16-bit operands, and of e4m3, which
// the compiler widens to fp16. A warp has whole records, of which it reads the tokens once for all of its 16-row
// patches.
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

  static constexpr int kPairColumns = 2 * Weights::kStepK;  // of two MMA steps: 64 bytes of a token
  static constexpr int kPairs = kTileK / kPairColumns;
  static constexpr int kTokenTiles = tile().tokens / 8;
  static constexpr int kTurn = kTokenTiles == 1 || kPatches == 1 ? kPatches : 2;  // patches side by side, in registers
  static constexpr int kScalePairs =
      kAccumulatorScale ? Weights::kGroup / kPairColumns : kPairs;  // between two scalings
  static constexpr int kScales = kPairs / kScalePairs;              // of a record
  static_assert(kScalePairs > 0, "a pair of MMA steps has one scale");

  // Where scales stand outside of the sums, and zero points are the groups' or none, codes of 16-bit operands go in as
  // they lie, and tokens take a power of two (RawDequant).
  static constexpr bool kRaw =
      k16 && (kAccumulatorScale || (Config::kScaleMode == ScaleMode::none && Config::kZero == ZeroKind::none));
  using Raw = RawDequant<Config::kFormat, kOperand>;
  // number = sum * 2^kExponent
  static constexpr int kExponent = [] {
    if constexpr (kRaw)
      return Raw::kExponent - Weights::kScaleExponent;
    else
      return Weights::kExponent;
  }();
  static constexpr bool kCentred = [] {
    if constexpr (kRaw)
      return Raw::kHasCentre;
    else
      return false;
  }();

  // B fragments: of a pair of steps and eight tokens the 16-byte chunks 0..3, which registers n = 8 * (pair % 2) + 2 *
  // chunk, and the one after it, of the weights meet.
  using Tokens = uint32_t[kPairs][kTokenTiles][4];
  __device__ static constexpr int weight_register(int pair, int chunk) { return pair % 2 * 8 + 2 * chunk; }
  using TokenSums = float[kScales][kCentred ? kSums : 1];

  // Tokens of record `share` of the stage whose tokens begin at `from`. A load brings four 8 x 8 matrices: tokens
  // 8j..8j+7, the last there is in the place of those there are not, of four 16-byte chunks of their 128-byte rows,
  // which the swizzle has moved. bf16 takes RawDequant's power of two.
  __device__ static void load_tokens(uint32_t from, int share, int rows, int lane, Tokens& tokens) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int block = share * tile().token_blocks() + pair / 2;
      const int chunk = 4 * (pair % 2) + lane / 8;
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        uint32_t (&b)[4] = tokens[pair][j];
        const int line = block * rows + min(8 * j + lane % 8, rows - 1);
        ptx::ldmatrix_x4(from + 128 * line + ((chunk ^ line % 8) << 4), b);
#pragma unroll
        for (int i = 0; i < 4 && kRaw && kOperand == Operand::bf16; ++i) {
          const uint32_t factor = 127 + Raw::token_exponent(weight_register(pair, i));
          b[i] = mul_bf16x2(b[i], repeat16(factor << 7));
        }
      }
    }
  }

  // A pair's tokens into the sums over the columns of its scale, as the accumulators of all rows have them.
  template <int kPair>
  __device__ static void sum_tokens(const Tokens& tokens, TokenSums& token_sums) {
    float (&sums)[kSums] = token_sums[kPair / kScalePairs];
#pragma unroll
    for (int i = 0; i < kSums && kAccumulatorScale && kPair % kScalePairs == 0; ++i) sums[i] = 0;
#pragma unroll
    for (int chunk = 0; chunk < 4; chunk += 2) {
      const uint32_t first = Raw::one(weight_register(kPair, chunk));
      const uint32_t second = Raw::one(weight_register(kPair, chunk + 1));
      const uint32_t ones[4] = {first, first, second, second};
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        mma_sync<kOperand>(sums + 4 * j, ones, tokens[kPair][j][chunk], tokens[kPair][j][chunk + 1]);
      }
    }
  }

  // The A fragment of MMA step kStep of the record.
  template <int kStep>
  __device__ static void fragment_of(const RecordView& view, const Weights& weights, typename Weights::Row (&rows)[2],
                                     uint32_t (&fragment)[4]) {
    constexpr int kHalf = kStep / Weights::kSteps, kOfHalf = kStep % Weights::kSteps;
    if constexpr (kRaw) {
      weights.template raw_fragment<kHalf, kOfHalf>(fragment);
    } else {
      weights.template begin_group<kStep * Weights::kStepK>(view, rows);
      weights.template fragment<kHalf, kOfHalf>(rows, fragment);
    }
  }

  // A pair of steps of kTurn patches, kFirst first, into their sums; then the pairs after it. Patches take turns,
  // because a product waits long for the one before it in the same sums. After the last pair of a group its scale joins
  // the sums to a patch's total.
  template <int kPair, int kFirst>
  __device__ static void multiply_pairs(const RecordView& view, const Weights (&weights)[kTurn],
                                        typename Weights::Row (&rows)[kTurn][2], const Tokens& tokens,
                                        TokenSums& token_sums, Consumer& c) {
    if constexpr (kPair < kPairs) {
      constexpr int kScale = kPair / kScalePairs;
      if constexpr (kCentred && kFirst == 0) sum_tokens<kPair>(tokens, token_sums);
#pragma unroll
      for (int patch = 0; patch < kTurn; ++patch) {
        float (&sums)[kSums] = c.acc[kFirst + patch];
        if constexpr (kAccumulatorScale && kPair % kScalePairs == 0) {
#pragma unroll
          for (int i = 0; i < kSums; ++i) sums[i] = 0;
        }
        uint32_t fragment[2][4];
        fragment_of<2 * kPair>(view, weights[patch], rows[patch], fragment[0]);
        fragment_of<2 * kPair + 1>(view, weights[patch], rows[patch], fragment[1]);
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j) {
          const uint32_t (&b)[4] = tokens[kPair][j];
          mma_sync<kOperand>(sums + 4 * j, fragment[0], b[0], b[1]);
          mma_sync<kOperand>(sums + 4 * j, fragment[1], b[2], b[3]);
        }
      }
      if constexpr (kAccumulatorScale && (kPair + 1) % kScalePairs == 0) {
        const int group = Weights::group_of(view, kPairColumns * kPair);
#pragma unroll
        for (int patch = 0; patch < kTurn; ++patch) {
          float scale[2], centre[2];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            scale[half] = weights[patch].scale(view, half, group);
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
      multiply_pairs<kPair + 1, kFirst>(view, weights, rows, tokens, token_sums, c);
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
      multiply_pairs<0, kFirst>(p.view, weights, rows, tokens, token_sums, c);
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
