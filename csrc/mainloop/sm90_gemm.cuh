// The Hopper dense main loop: one producer warp fills a ring of stages, consumer warpgroups turn codes into fragments
// and multiply. Extents and names: sm90_tile.h.
//
//   global   packed [strip][record], tokens [M][K]
//   shared   stage s: tokens [record of the stage][block][token][128 bytes], 128-byte swizzle
//                     weights [row group][record of the stage][record_bytes]
//   register A: WeightTile, 64 rows x 64 columns at a time, double buffered so that the next half is dequantised
//            while the asynchronous MMAs of the last one run
//            D: acc[4 * j + r] is channel g + 8 * (r / 2), token 8 * j + 2 * t + r % 2
//
// Barriers of stage s: full (the producer's arrive with its byte count), empty (lane 0 of every consumer warp, of every
// CTA that shares the tokens).
#pragma once

#include "mainloop/ptx.h"
#include "mainloop/sm90_params.h"
#include "mainloop/sm90_tile.h"
#include "mainloop/weight_tile.cuh"
#include "mainloop/wgmma_generated.h"

namespace humming {

// Config: the manifest's columns. kMmaSync: mma.sync instead of wgmma, for 8 tokens of a 16-bit operand.
template <class Config>
struct Sm90Gemm {
  static constexpr Operand kOperand = Config::kOperand;
  static constexpr bool k16 = order_of(kOperand) == Order::k16;
  // A function: device code cannot use a static member object.
  __host__ __device__ static constexpr Sm90Tile tile() {
    return {Config::kRowGroups, Config::kSplitK, Config::kClusterK, Config::kMulticast,
            Config::kTokens,    Config::kKTiles, k16 ? 2 : 1,       Config::kMmaSync};
  }
  using Weights = WeightTile<Config>;
  static constexpr bool kAccumulatorScale = Config::kScaleMode == ScaleMode::accumulator;
  using MmaType = std::conditional_t<kOperand == Operand::s8, int, float>;
  static constexpr int kSums = tile().tokens / 2;            // accumulators of a thread and 16 rows
  static constexpr int kPatches = Config::kMmaSync ? 4 : 1;  // of 16 rows that a warp has

  static_assert(!Config::kMmaSync || k16, "8-bit mma.sync is emulated on sm_90");
  static_assert(!Config::kMmaSync || tile().row_groups == 1, "with mma.sync a warp has all rows of the tile");
  static_assert(tile().multicast == 1 || !tile().reduces(), "a cluster either splits K or shares tokens");
  static_assert(tile().multicast <= tile().token_blocks(),
                "every CTA of a multicast cluster fetches whole token blocks");

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
    uint32_t barriers;
    int stage = 0;
    uint32_t phase = 0;

    __device__ uint32_t full() const { return barriers + 8 * stage; }
    __device__ uint32_t empty() const { return barriers + 8 * (p.stages + stage); }
    __device__ uint8_t* stage_tokens() const { return tokens + stage * tile().token_stage_bytes(); }
    __device__ uint8_t* stage_weights() const { return weights + stage * tile().weight_stage_bytes(p.record_bytes); }
    __device__ void next() {
      if (++stage == p.stages) {
        stage = 0;
        phase ^= 1;
      }
    }
  };

  // ---- producer ----

  // The producer of one work item: where its next weights and tokens come from. Kept as running addresses, because one
  // lane walks through this code and every instruction delays the next copy.
  struct Source {
    const uint8_t* weights;  // of the first row group
    int strips;              // row groups that exist
    int token;
    int block;  // of 128 bytes along K
  };

  __device__ static void load_weights(const Sm90MainloopParams& p, const Source& source, uint32_t to, int bytes,
                                      uint32_t barrier) {
    const int pitch = tile().stage_tiles() * p.record_bytes;
    const uint8_t* from = source.weights;
#pragma unroll
    for (int group = 0; group < tile().row_groups; ++group) {
      if (group < source.strips) ptx::bulk_copy(to + group * pitch, from, bytes, barrier);
      from += p.strip_bytes;
    }
  }

  // The half tail record, at record `index` of the stage: its codes, and its scales where a full record has them.
  __device__ static void load_tail(const Sm90MainloopParams& p, const Source& source, uint8_t* stage, int index,
                                   uint32_t barrier) {
#pragma unroll 1
    for (int group = 0; group < source.strips; ++group) {
      const uint8_t* from = source.weights + group * p.strip_bytes + index * p.record_bytes;
      uint8_t* to = stage + (group * tile().stage_tiles() + index) * p.record_bytes;
      if constexpr (kClearTail) {
        uint4* codes = reinterpret_cast<uint4*>(to + p.tail_codes_bytes);
#pragma unroll 1
        for (int i = 0; i < p.tail_codes_bytes / 16; ++i) codes[i] = make_uint4(0, 0, 0, 0);
        ptx::fence_proxy_async();  // a later bulk copy overwrites these stores
      }
      ptx::bulk_copy(ptx::shared_address(to), from, p.tail_codes_bytes, barrier);
      if (p.tail_scale_bytes > 0) {
        ptx::bulk_copy(ptx::shared_address(to + p.view.scale_offset), from + p.tail_codes_bytes, p.tail_scale_bytes,
                       barrier);
      }
    }
  }

  // Tokens of a whole stage. One copy brings all blocks where K is a multiple of a block, else one copy a block, so
  // that the columns past K are zeros and not the next token's.
  __device__ static void load_tokens(const Sm90MainloopParams& p, const CUtensorMap* map, const Source& source,
                                     uint32_t to, uint32_t barrier) {
    constexpr int kBlocks = tile().stage_tiles() * tile().token_blocks() / tile().multicast;
    constexpr int kBlockColumns = 128 / tile().value_bytes;
    const auto copy = [&](int x, int z) {
      if constexpr (tile().multicast > 1) {
        ptx::tensor_copy_multicast(to, map, x, source.token, z, barrier, (1 << tile().multicast) - 1);
      } else {
        ptx::tensor_copy(to, map, x, source.token, z, barrier);
      }
    };
    if (p.k % kBlockColumns == 0) {
      copy(0, source.block);
    } else {
#pragma unroll 1
      for (int i = 0; i < kBlocks; ++i, to += tile().tokens * 128) copy((source.block + i) * kBlockColumns, 0);
    }
  }

  // Runs in one elected lane. `first`: the CTA's first work item, whose weights do not depend on the grid before and
  // are asked for ahead of its end; no more than one stage of them, because tokens queue behind weights.
  __device__ static void produce(const Sm90MainloopParams& p, const CUtensorMap* map, Ring& ring, const Work& work,
                                 uint32_t rank, bool first) {
    constexpr int kStageTiles = tile().stage_tiles();
    constexpr int kStageBlocks = kStageTiles * tile().token_blocks();
    const int strip = work.row_tile * tile().row_groups;
    Source source;
    source.weights = p.packed + strip * p.strip_bytes + static_cast<int64_t>(work.k_begin) * p.record_bytes;
    source.strips = max(0, min(tile().row_groups, p.num_strips - strip));
    source.token = work.token_tile * tile().tokens;
    source.block = work.k_begin * tile().token_blocks();
    uint32_t token_offset = 0;
    if constexpr (tile().multicast > 1) {
      constexpr int kShare = kStageBlocks / tile().multicast;
      source.block += rank * kShare;
      token_offset = rank * kShare * tile().tokens * 128;
    }
    const int stage_bytes = kStageTiles * p.record_bytes;
#pragma unroll 1
    for (int k = work.k_begin; k < work.k_end; k += kStageTiles) {
      const int count = min(kStageTiles, work.k_end - k);
      const bool tail = p.half_tail && k + count == p.num_k_tiles;
      const int full_bytes = tail                   ? (count - 1) * p.record_bytes
                             : count == kStageTiles ? stage_bytes
                                                    : count * p.record_bytes;
      const int bytes = full_bytes + (tail ? p.tail_codes_bytes + p.tail_scale_bytes : 0);
      const uint32_t barrier = ring.full();
      ptx::mbarrier_wait(ring.empty(), ring.phase ^ 1);
      ptx::mbarrier_expect_tx(barrier, source.strips * bytes + tile().token_stage_bytes());
      if (full_bytes > 0) load_weights(p, source, ptx::shared_address(ring.stage_weights()), full_bytes, barrier);
      if (tail) load_tail(p, source, ring.stage_weights(), count - 1, barrier);
      if (first) {
        first = false;
        if (p.dependent_launch) ptx::wait_for_dependencies();
      }
      load_tokens(p, map, source, ptx::shared_address(ring.stage_tokens()) + token_offset, barrier);
      source.weights += stage_bytes;
      source.block += kStageBlocks;
      ring.next();
    }
  }

  // ---- consumers ----

  __device__ static void release(uint32_t empty, int lane) {
    if (lane == 0) {
      if constexpr (tile().multicast == 1) {
        ptx::mbarrier_arrive(empty);
      } else {
#pragma unroll
        for (int cta = 0; cta < tile().multicast; ++cta) ptx::mbarrier_arrive_cluster(empty, cta);
      }
    }
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
    float total[kPatches][kAccumulatorScale ? kSums : 1];
  };

  // The finished sums of a thread, of one of its 16-row patches.
  __device__ static auto& sums(Consumer& c, int patch) {
    if constexpr (kAccumulatorScale)
      return c.total[patch];
    else
      return c.acc[patch];
  }

  template <int kHalf, int kStep>
  __device__ static void fragments(const RecordView& view, const Weights& weights, typename Weights::Row (&rows)[2],
                                   uint32_t (&fragment)[Weights::kSteps][4]) {
    if constexpr (kStep < Weights::kSteps) {
      constexpr int kColumn = kHalf * kHalfK + kStep * Weights::kStepK;
      if constexpr (Weights::begins_group(kColumn)) {
        const int group = Weights::group_of(view, kColumn);
        rows[0] = weights.row(view, 0, group);
        rows[1] = weights.row(view, 1, group);
      }
      weights.template fragment<kHalf, kStep>(rows, fragment[kStep]);
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
    weights.load(records + record * p.record_bytes, c.warp, c.lane);
    const uint64_t tokens = descriptor(ring.stage_tokens() + record * tile().token_tile_bytes());
    multiply_half<0>(p.view, weights, rows, fragment, tokens, !kAccumulatorScale, c);
    ptx::wgmma_wait_group<1>();
    if (pending != 0) release(pending, c.lane);
    pending = 0;
    multiply_half<1>(p.view, weights, rows, fragment, tokens, true, c);
    if constexpr (kAccumulatorScale) {
      const float scale[2] = {weights.scale(p.view, 0, 0), weights.scale(p.view, 1, 0)};
      ptx::wgmma_wait_group<0>();
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        c.total[0][i] = fmaf(static_cast<float>(c.acc[0][i]), scale[i / 2 % 2], c.total[0][i]);
      }
    } else {
      ptx::wgmma_wait_group<1>();
    }
  }

  // Runs `multiply(record)` for a share's records of every stage of a work item, and hands the stages on:
  // release_stage is called when the stage's last record has been issued. Full stages are unrolled without a branch
  // between records.
  template <class Multiply, class Release>
  __device__ static void for_each_record(Ring& ring, const Work& work, int row_group, int share, Multiply multiply,
                                         Release release_stage) {
    const int first = share * tile().k_tiles;
#pragma unroll 1
    for (int k = work.k_begin; k < work.k_end; k += tile().stage_tiles()) {
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
      ring.next();
    }
  }

  __device__ static void consume_wgmma(const Sm90MainloopParams& p, Ring& ring, const Work& work, int group,
                                       Consumer& c) {
    uint32_t pending = 0;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      c.acc[0][i] = 0;
      if constexpr (kAccumulatorScale) c.total[0][i] = 0;
    }
    for_each_record(
        ring, work, group % tile().row_groups, group / tile().row_groups,
        [&](const uint8_t* records, int record) { multiply_wgmma(p, ring, records, record, pending, c); },
        [&](uint32_t empty) {
          if constexpr (kAccumulatorScale) {
            release(empty, c.lane);
          } else {
            if (pending != 0) release(pending, c.lane);  // this share had no record in the stage
            pending = empty;
          }
        });
    if constexpr (!kAccumulatorScale) {
      ptx::wgmma_wait_group<0>();
      if (pending != 0) release(pending, c.lane);
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

  // 32 columns (two MMA steps) of a patch, from column 32 * kQuarter of the record, into two independent sums; then the
  // quarters after it. After the last quarter of a group its scale joins the sums to the patch's total.
  template <int kQuarter>
  __device__ static void multiply_quarters(const RecordView& view, const Weights& weights,
                                           typename Weights::Row (&rows)[2],
                                           const uint32_t (&tokens)[kQuarters][kQuarterTokens], float (&even)[kSums],
                                           float (&odd)[kSums], float* total) {
    if constexpr (kQuarter < kQuarters) {
      constexpr int kHalf = kQuarter / 2;
      constexpr int kStep = kQuarter % 2 * 2;
      uint32_t fragment[2][4];
      begin_group<32 * kQuarter>(view, weights, rows);
      weights.template fragment<kHalf, kStep>(rows, fragment[0]);
      begin_group<32 * kQuarter + 16>(view, weights, rows);
      weights.template fragment<kHalf, kStep + 1>(rows, fragment[1]);
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
          total[i] = fmaf(even[i] + odd[i], scale[i / 2 % 2], total[i]);
          even[i] = odd[i] = 0;
        }
      }
      multiply_quarters<kQuarter + 1>(view, weights, rows, tokens, even, odd, total);
    }
  }

  template <int kColumn>
  __device__ static void begin_group(const RecordView& view, const Weights& weights, typename Weights::Row (&rows)[2]) {
    if constexpr (Weights::begins_group(kColumn)) {
      const int group = Weights::group_of(view, kColumn);
      rows[0] = weights.row(view, 0, group);
      rows[1] = weights.row(view, 1, group);
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
        ring, work, 0, 4 * group + c.warp,
        [&](const uint8_t* records, int record) {
          uint32_t tokens[kQuarters][kQuarterTokens];
          load_tokens(ptx::shared_address(ring.stage_tokens() + record * tile().token_tile_bytes()), c.lane, tokens);
#pragma unroll
          for (int patch = 0; patch < kPatches; ++patch) {
            Weights weights;
            typename Weights::Row rows[2];
            weights.load(records + record * p.record_bytes, patch, c.lane);
            multiply_quarters<0>(p.view, weights, rows, tokens, c.acc[patch], odd[patch], c.total[patch]);
          }
        },
        [&](uint32_t empty) {
          __syncwarp();
          release(empty, c.lane);
        });
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
