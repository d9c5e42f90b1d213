// The Hopper dense main loop: a producer warp fills a ring of stages, consumer warpgroups turn codes into fragments and
// multiply. Extents and names: sm90_tile.h.
//
//   global   packed [strip][record], tokens [M][K]
//   shared   stage s: tokens [record of the stage][block][token][128 bytes], 128-byte swizzle
//                     weights [row group][record of the stage][record_bytes]
//                     where tokens have groups, their scales [record of the stage][token]
//   register A: WeightTile, 64 rows x 64 columns at a time, double buffered so that the next half is dequantised
//            while the asynchronous MMAs of the last one run
//            D: acc[4 * j + r] is channel g + 8 * (r / 2), token 8 * j + 2 * t + r % 2
//
// Barriers of stage s: full (the producer's arrive with its byte count, and all lanes of the warp that brings scales),
// empty (lane 0 of every warp that has the stage).
#pragma once

#include "mainloop/ptx.h"
#include "mainloop/sm90_params.h"
#include "mainloop/sm90_tile.h"
#include "mainloop/weight_tile.cuh"
#include "mainloop/wgmma_generated.h"

namespace humming {

// Config: the manifest's columns. mma.sync instead of wgmma serves few tokens of a 16-bit operand.
template <class Config>
struct Sm90Gemm {
  static constexpr Operand kOperand = Config::kOperand;
  static constexpr bool k16 = order_of(kOperand) == Order::k16;
  // A function: device code cannot use a static member object.
  __host__ __device__ static constexpr Sm90Tile tile() {
    return {Config::kRowGroups, Config::kSplitK, Config::kClusterK,   Config::kTokens,
            Config::kKTiles,    k16 ? 2 : 1,     Config::kMmaPatches, Config::kTokenGroups};
  }
  using Weights = WeightTile<Config>;
  static constexpr bool kAccumulatorScale = Config::kScaleMode == ScaleMode::accumulator;
  // Whether the sums of a record, or of its groups, join a total in fp32.
  static constexpr bool kPromoted = kAccumulatorScale || Config::kTokenGroups;
  using MmaType = std::conditional_t<kOperand == Operand::s8, int, float>;
  static constexpr int kSums = tile().tokens / 2;  // accumulators of a thread and 16 rows
  static constexpr bool kMmaSync = tile().mma_patches > 0;
  static constexpr int kPatches = kMmaSync ? tile().mma_patches : 1;  // of 16 rows that a warp has

  static_assert(!kMmaSync || k16, "8-bit mma.sync is emulated on sm_90");
  static_assert(!Config::kTokenGroups || !k16, "16-bit tokens have no scales");
  static_assert(!kMmaSync || tile().row_groups == 1, "with mma.sync a stage is one row group's");

  // Codes that are Inf or NaN in the operand must not meet the zeros behind the last column.
  static constexpr bool kClearTail = Weights::kTraits.specials != Specials::none;

  struct Work {
    int row_tile, token_tile;
    int k_begin, k_end;  // records
  };

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
    __device__ uint8_t* stage_tokens() const { return tokens + stage * tile().token_stage_bytes(); }
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
  };

  static constexpr int kFullArrivals = Config::kTokenGroups ? 1 + 32 : 1;

  // ---- producer: one lane ----

  // Where the next copies of a work item come from. Running addresses, because one lane walks through this code and
  // every instruction delays the next copy.
  struct Source {
    const uint8_t* weights;  // of the first row group
    int strips;              // row groups that exist
    int token;
    int block;  // of 128 bytes along K
  };

  __device__ static void copy_weights(const Sm90MainloopParams& p, const Ring& ring, const Source& source, int bytes) {
    uint32_t to = ptx::shared_address(ring.stage_weights());
    const uint8_t* from = source.weights;
#pragma unroll
    for (int group = 0; group < tile().row_groups; ++group) {
      if (group < source.strips) ptx::bulk_copy(to, from, bytes, ring.full());
      to += tile().stage_tiles() * p.record_bytes;
      from += p.strip_bytes;
    }
  }

  // The half tail record lies at record `index` of the stage, where a full one would: its codes, and its scales.
  __device__ static uint8_t* tail_place(const Sm90MainloopParams& p, const Ring& ring, int group, int index) {
    return ring.stage_weights() + (group * tile().stage_tiles() + index) * p.record_bytes;
  }
  __device__ static void copy_tail(const Sm90MainloopParams& p, const Ring& ring, const Source& source, int index) {
    const uint8_t* from = source.weights + index * p.record_bytes;
#pragma unroll 1
    for (int group = 0; group < source.strips; ++group, from += p.strip_bytes) {
      const uint32_t to = ptx::shared_address(tail_place(p, ring, group, index));
      ptx::bulk_copy(to, from, p.tail_codes_bytes, ring.full());
      if (p.tail_scale_bytes > 0) {
        ptx::bulk_copy(to + p.view.scale_offset, from + p.tail_codes_bytes, p.tail_scale_bytes, ring.full());
      }
    }
  }
  // Zeros where its second half would be. Before the stage's arrival, which publishes them.
  __device__ static void clear_tail(const Sm90MainloopParams& p, const Ring& ring, const Source& source, int index) {
    ptx::mbarrier_wait(ring.empty(), ring.phase ^ 1);
#pragma unroll 1
    for (int group = 0; group < source.strips; ++group) {
      uint4* codes = reinterpret_cast<uint4*>(tail_place(p, ring, group, index) + p.tail_codes_bytes);
#pragma unroll 1
      for (int i = 0; i < p.tail_codes_bytes / 16; ++i) codes[i] = make_uint4(0, 0, 0, 0);
    }
    ptx::fence_proxy_async();  // a later bulk copy overwrites these stores
  }

  // Tokens of a whole stage. One copy brings all blocks where K is a multiple of a block, else one copy a block, so
  // that the columns past K are zeros and not the next token's.
  __device__ static void copy_tokens(const Sm90MainloopParams& p, const CUtensorMap* map, const Ring& ring,
                                     Source& source) {
    constexpr int kBlocks = tile().stage_tiles() * tile().token_blocks();
    constexpr int kBlockColumns = 128 / tile().value_bytes;
    uint32_t to = ptx::shared_address(ring.stage_tokens());
    if (p.k % kBlockColumns == 0) {
      ptx::tensor_copy(to, map, 0, source.token, source.block, ring.full());
    } else {
#pragma unroll 1
      for (int i = 0; i < kBlocks; ++i, to += tile().tokens * 128) {
        ptx::tensor_copy(to, map, (source.block + i) * kBlockColumns, source.token, 0, ring.full());
      }
    }
    source.block += kBlocks;
  }

  // Fills the ring for one work item. `early`: stages of weights, which do not depend on the grid ahead, to ask for
  // before it has ended; few, because tokens queue behind weights. 0 after the CTA's first work item.
  __device__ static void produce(const Sm90MainloopParams& p, const CUtensorMap* map, Ring& ring, const Work& work,
                                 int early) {
    constexpr int kStageTiles = tile().stage_tiles();
    const int stage_bytes = kStageTiles * p.record_bytes;
    const int strip = work.row_tile * tile().row_groups;
    Source source;
    source.weights = p.packed + strip * p.strip_bytes + static_cast<int64_t>(work.k_begin) * p.record_bytes;
    source.strips = min(tile().row_groups, p.num_strips - strip);
    source.token = work.token_tile * tile().tokens;
    source.block = work.k_begin * tile().token_blocks();

    const int tail = p.half_tail && work.k_end == p.num_k_tiles;
    const int records = work.k_end - work.k_begin - tail;
    const int full_stages = records / kStageTiles;
    const auto begin_stage = [&](int bytes) {
      ptx::mbarrier_wait(ring.empty(), ring.phase ^ 1);
      ptx::mbarrier_expect_tx(ring.full(), source.strips * bytes + tile().token_stage_bytes());
    };
    const auto next_full_stage = [&] {
      begin_stage(stage_bytes);
      copy_weights(p, ring, source, stage_bytes);
      source.weights += stage_bytes;
    };

    early = min(early, full_stages);
    Ring tokens_ring = ring;
#pragma unroll 1
    for (int i = 0; i < early; ++i, ring.next()) next_full_stage();
    if (p.dependent_launch) ptx::wait_for_dependencies();
#pragma unroll 1
    for (int i = 0; i < early; ++i, tokens_ring.next()) copy_tokens(p, map, tokens_ring, source);
#pragma unroll 1
    for (int i = early; i < full_stages; ++i, ring.next()) {
      next_full_stage();
      copy_tokens(p, map, ring, source);
    }
    const int rest = records - full_stages * kStageTiles;
    if (rest + tail > 0) {
      const int bytes = rest * p.record_bytes;
      if (kClearTail && tail) clear_tail(p, ring, source, rest);
      begin_stage(bytes + (tail ? p.tail_codes_bytes + p.tail_scale_bytes : 0));
      if (rest > 0) copy_weights(p, ring, source, bytes);
      if (tail) copy_tail(p, ring, source, rest);
      copy_tokens(p, map, ring, source);
      ring.next();
    }
  }

  // A warp of its own brings the tokens' scales of one work item, strided as they lie: zeros for what is no token.
  __device__ static void produce_scales(const Sm90MainloopParams& p, Ring& ring, const Work& work, int lane) {
    const int first = work.token_tile * tile().tokens;
    const int tokens = min(tile().tokens, p.tokens - first);
    const float* scales = p.token_scales + first * p.token_scale_stride;
#pragma unroll 1
    for (int k = work.k_begin; k < work.k_end; k += tile().stage_tiles(), ring.next()) {
      ptx::mbarrier_wait(ring.empty(), ring.phase ^ 1);
      const uint32_t to = ptx::shared_address(ring.stage_scales());
#pragma unroll 1
      for (int i = lane; i < tile().stage_tiles() * tile().tokens; i += 32) {
        const int token = i % tile().tokens;
        const int record = k + i / tile().tokens;
        const bool exists = token < tokens && record < work.k_end;
        ptx::async_copy_4(to + 4 * i, scales + (exists ? token * p.token_scale_stride + record : 0), exists ? 4 : 0);
      }
      ptx::mbarrier_arrive_after_copies(ring.full());
    }
  }

  // ---- consumers ----

  // What the lanes of a warp read is behind the arrival of one of them only where they meet before it.
  __device__ static void release(uint32_t empty, int lane) {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(empty);
  }

  // Shared-memory descriptor of B, K-major with 128-byte swizzle: 8 tokens a 1024-byte group.
  __device__ static uint64_t descriptor(const uint8_t* tokens) {
    constexpr uint64_t kGroupStride = uint64_t{1024 >> 4} << 32;
    constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
    return static_cast<uint64_t>((ptx::shared_address(tokens) & 0x3FFFF) >> 4) | kGroupStride | kSwizzle128;
  }
  // Descriptor steps (16-byte units) of MMA step `step` of half `half`.
  __device__ static constexpr uint64_t descriptor_step(int half, int step) {
    return k16 ? half * (tile().tokens * 128 >> 4) + 2 * step : 2 * (Weights::kSteps * half + step);
  }

  struct Consumer {
    int warp;  // of the warpgroup
    int lane;
    MmaType acc[kPatches][kSums];
    float total[kPatches][kPromoted ? kSums : 1];
  };

  // Which share of a stage a warp has, and the first of its patches.
  __device__ static int stage_share(const Consumer& c) { return kMmaSync ? c.warp % tile().stage_shares() : 0; }
  __device__ static int first_patch(const Consumer& c) {
    return kMmaSync ? c.warp / tile().stage_shares() * kPatches : c.warp;
  }

  // The finished sums of a thread, of one of its 16-row patches.
  __device__ static auto& sums(Consumer& c, int patch) {
    if constexpr (kPromoted)
      return c.total[patch];
    else
      return c.acc[patch];
  }

  // Reads what the rows of a new group of columns have, if one may begin at kColumn of the record.
  template <int kColumn>
  __device__ static void begin_group(const RecordView& view, const Weights& weights, typename Weights::Row (&rows)[2]) {
    if constexpr (Weights::begins_group(kColumn)) {
      const int group = Weights::group_of(view, kColumn);
      rows[0] = weights.row(view, 0, group);
      rows[1] = weights.row(view, 1, group);
    }
  }

  template <int kHalf, int kStep>
  __device__ static void fragments(const RecordView& view, const Weights& weights, typename Weights::Row (&rows)[2],
                                   uint32_t (&fragment)[Weights::kSteps][4]) {
    if constexpr (kStep < Weights::kSteps) {
      begin_group<kHalf * kHalfK + kStep * Weights::kStepK>(view, weights, rows);
      weights.template fragment<kHalf, kStep, false>(rows, fragment[kStep]);
      fragments<kHalf, kStep + 1>(view, weights, rows, fragment);
    }
  }

  // Dequantises and multiplies one half of a record. `accumulate`: whether acc holds a sum already.
  template <int kHalf>
  __device__ static void multiply_half(const RecordView& view, const Weights& weights, typename Weights::Row (&rows)[2],
                                       uint32_t (&fragment)[2][Weights::kSteps][4], uint64_t tokens, bool accumulate,
                                       Consumer& c) {
    fragments<kHalf, 0>(view, weights, rows, fragment[kHalf]);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Weights::kSteps; ++step) {
      Wgmma<kOperand, tile().tokens>::run(c.acc[0], fragment[kHalf][step], tokens + descriptor_step(kHalf, step),
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
    const uint64_t tokens = descriptor(ring.stage_tokens() + record * tile().token_tile_bytes());
    multiply_half<0>(p.view, weights, rows, fragment, tokens, !kPromoted, c);
    ptx::wgmma_wait_group<1>();
    if (pending != 0) release(pending, c.lane);
    pending = 0;
    multiply_half<1>(p.view, weights, rows, fragment, tokens, true, c);
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

  // Runs `multiply(records, record)` for the records of a share in every stage of the warpgroup `group`, and hands the
  // stages on: release_stage is called when the stage's last record has been issued. Full stages are unrolled without a
  // branch between records.
  template <class Multiply, class Release>
  __device__ static void for_each_record(Ring& ring, const Work& work, int group, int share, Multiply multiply,
                                         Release release_stage) {
    const int row_group = group % tile().row_groups;
    const int turn = group / tile().row_groups;
    const int first = share * tile().k_tiles;
    ring.next(turn);
#pragma unroll 1
    for (int k = work.k_begin + turn * tile().stage_tiles(); k < work.k_end;
         k += tile().split_k * tile().stage_tiles()) {
      ptx::mbarrier_wait(ring.full(), ring.phase);
      const uint8_t* records = ring.stage_weights() + row_group * tile().stage_tiles() * ring.p.record_bytes;
      if (tile().stage_tiles() == 1 || k + first + tile().k_tiles <= work.k_end) {
#pragma unroll
        for (int i = 0; i < tile().k_tiles; ++i) multiply(records, first + i);
      } else {
#pragma unroll 1
        for (int record = first; k + record < work.k_end; ++record) multiply(records, record);
      }
      release_stage(ring.empty());
      ring.next(tile().split_k);
    }
  }

  __device__ static void consume_wgmma(const Sm90MainloopParams& p, Ring& ring, const Work& work, int group,
                                       Consumer& c) {
    uint32_t pending = 0;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      c.acc[0][i] = 0;
      if constexpr (kPromoted) c.total[0][i] = 0;
    }
    for_each_record(
        ring, work, group, 0,
        [&](const uint8_t* records, int record) { multiply_wgmma(p, ring, records, record, pending, c); },
        [&](uint32_t empty) {
          if constexpr (kPromoted) {
            release(empty, c.lane);
          } else {
            pending = empty;
          }
        });
    if constexpr (!kPromoted) {
      ptx::wgmma_wait_group<0>();
      if (pending != 0) release(pending, c.lane);
      if constexpr (kOperand == Operand::s8) {
        // Else the zeros of a work item without records make two sets of registers: sums, and sums converted to float.
#pragma unroll
        for (int i = 0; i < kSums; ++i) ptx::forget(c.acc[0][i]);
      }
    }
  }

  // ---- mma.sync: 16-bit operands, few tokens ----

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

  __device__ static void consume_mma_sync(const Sm90MainloopParams& p, Ring& ring, const Work& work, int group,
                                          Consumer& c) {
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

  // Multiplies the warp's part of a work item into sums().
  __device__ static void consume(const Sm90MainloopParams& p, Ring& ring, const Work& work, int group, Consumer& c) {
    if constexpr (kMmaSync)
      consume_mma_sync(p, ring, work, group, c);
    else
      consume_wgmma(p, ring, work, group, c);
  }
};

}  // namespace humming
