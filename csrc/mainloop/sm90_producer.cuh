// The producers of the Hopper main loop: the lane that brings weights and tokens, and the warp that brings the tokens'
// scales where they have groups.
//
//   global   packed [strip][record], tokens [M][K], scales [M][records along K]
#pragma once

#include "mainloop/sm90_stage.cuh"

namespace humming {

template <class Config>
struct Sm90Producer : Sm90Stage<Config> {
  using Stage = Sm90Stage<Config>;
  using Stage::kClearTail;
  using Stage::kCopiesRows;
  using Stage::kExperts;
  using Stage::tile;
  using Stage::token_rows;
  using typename Stage::Ring;
  using typename Stage::Work;

  static constexpr bool kVariesBoxes = kExperts && tile().fetches_boxes();
  static constexpr bool kBoxes = kVariesBoxes || tile().multicast;

  // Where the next copies of a work item come from. Running addresses, because one lane walks through this code and
  // every instruction delays the next copy.
  struct Source {
    const uint8_t* weights;  // of the first row group
    int strips;              // row groups that exist
    int token;
    int first_box, boxes;  // of tokens
    int block;             // of 128 bytes along K
    const int32_t* rows;   // of x, in shared memory; as many as `tokens`, where tokens lie anywhere
    int tokens;
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
  // that the columns past K are zeros and not the next token's; one for each box where tokens come in boxes. With
  // multicast a box is half of the tokens, the CTA's own, for both CTAs.
  __device__ static void copy_tokens(const Sm90MainloopParams& p, const CUtensorMap* map, const Ring& ring,
                                     Source& source) {
    constexpr int kBlocks = tile().stage_tiles() * tile().token_blocks();
    constexpr int kBlockColumns = 128 / tile().value_bytes;
    uint32_t to = ptx::shared_address(ring.stage_tokens());
    if (kCopiesRows && p.gathers_tokens) {
      const bool whole = p.k % kBlockColumns == 0;
#pragma unroll 1
      for (int token = 0; token < source.tokens; ++token, to += 128) {
        const int row = source.rows[token];
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
          const int block = source.block + i;
          ptx::tensor_copy(to + i * token_rows(p) * 128, map, whole ? 0 : block * kBlockColumns, row, whole ? block : 0,
                           ring.full());
        }
      }
    } else if constexpr (kBoxes) {
      const bool whole = p.k % kBlockColumns == 0;
#pragma unroll
      for (int i = 0; i < kBlocks; ++i, to += token_rows(p) * 128) {
        const int block = source.block + i;
#pragma unroll 1
        for (int box = source.first_box; box < source.first_box + source.boxes; ++box) {
          const int row = box * tile().box_rows(), x = whole ? 0 : block * kBlockColumns, z = whole ? block : 0;
          if constexpr (tile().multicast)
            ptx::tensor_copy_multicast(to + row * 128, map, x, source.token + row, z, ring.full(), 0b11);
          else
            ptx::tensor_copy(to + row * 128, map, x, source.token + row, z, ring.full());
        }
      }
    } else if (p.k % kBlockColumns == 0) {
      ptx::tensor_copy(to, map, 0, source.token, source.block, ring.full());
    } else {
#pragma unroll 1
      for (int i = 0; i < kBlocks; ++i, to += token_rows(p) * 128) {
        ptx::tensor_copy(to, map, (source.block + i) * kBlockColumns, source.token, 0, ring.full());
      }
    }
    source.block += kBlocks;
  }

  // Fills the ring for one work item with weights, tokens or both: two producers bring more copies on their way than
  // one. Tokens are those of the grid ahead, weights are not. `early`: stages of weights to ask for before it has
  // ended; few, because tokens queue behind weights, and so does what that grid still reads and writes. 0 after the
  // CTA's first work item.
  template <bool kWeights = true, bool kTokens = true>
  __device__ static void produce(const Sm90MainloopParams& p, const CUtensorMap* map, Ring& ring, const Work& work,
                                 int early) {
    constexpr int kStageTiles = tile().stage_tiles();
    const int stage_bytes = kStageTiles * p.record_bytes;
    const int strip = work.row_tile * tile().row_groups;
    Source source;
    source.weights = work.packed + strip * p.strip_bytes + static_cast<int64_t>(work.k_begin) * p.record_bytes;
    source.strips = max(0, min(tile().row_groups, p.num_strips - strip));  // of a pair, one may have none
    source.token = work.token;
    source.first_box = tile().multicast ? work.row_tile % 2 : 0;
    source.boxes = tile().multicast ? 1 : (work.tokens + tile().box_rows() - 1) / tile().box_rows();
    source.block = work.k_begin * tile().token_blocks();
    source.rows = work.rows;
    source.tokens = work.tokens;

    const int copied_rows = kCopiesRows && p.gathers_tokens ? work.tokens
                            : kVariesBoxes                  ? source.boxes * tile().box_rows()
                                                            : token_rows(p);
    const int token_bytes = tile().token_copy_bytes(copied_rows);
    const int tail = p.half_tail && work.k_end == p.num_k_tiles;
    const int records = work.k_end - work.k_begin - tail;
    const int full_stages = records / kStageTiles;
    const auto begin_stage = [&](int bytes) {
      ptx::mbarrier_wait(ring.empty(), ring.phase ^ 1);
      ptx::mbarrier_expect_tx(ring.full(), (kWeights ? source.strips * bytes : 0) + (kTokens ? token_bytes : 0));
    };
    const auto next_full_stage = [&] {
      begin_stage(stage_bytes);
      if (kWeights) copy_weights(p, ring, source, stage_bytes);
      source.weights += stage_bytes;
    };

    const bool waits = p.dependent_launch && (kTokens || early > 0);
    early = min(early, full_stages);
    Ring tokens_ring = ring;
#pragma unroll 1
    for (int i = 0; i < early; ++i, ring.next()) next_full_stage();
    if (waits) ptx::wait_for_dependencies();
#pragma unroll 1
    for (int i = 0; i < early && kTokens; ++i, tokens_ring.next()) copy_tokens(p, map, tokens_ring, source);
#pragma unroll 1
    for (int i = early; i < full_stages; ++i, ring.next()) {
      next_full_stage();
      if (kTokens) copy_tokens(p, map, ring, source);
    }
    const int rest = records - full_stages * kStageTiles;
    if (rest + tail > 0) {
      const int bytes = rest * p.record_bytes;
      if (kWeights && kClearTail && tail) clear_tail(p, ring, source, rest);
      begin_stage(bytes + (tail ? p.tail_codes_bytes + p.tail_scale_bytes : 0));
      if (kWeights && rest > 0) copy_weights(p, ring, source, bytes);
      if (kWeights && tail) copy_tail(p, ring, source, rest);
      if (kTokens) copy_tokens(p, map, ring, source);
      ring.next();
    }
  }

  // Tokens that lie anywhere: token i of the work item is row rows[i] of x, in shared memory; rows are row_bytes apart.
  // By kWarps warps, every lane of which arrives at the full barriers; consumers order these copies before the products
  // that read them (fence_proxy_async). A lane has one of the eight 16-byte chunks of a block, of a few neighbouring
  // tokens, whose rows it reads in one load. One warp waits for each of its instructions, so a copy has no more than
  // two.
  template <int kWarps>
  struct Gather {
    static constexpr int kBlocks = tile().stage_tiles() * tile().token_blocks();
    static constexpr int kTokens = tile().tokens < 16 ? 2 : 4;  // of a lane at a time
    static constexpr int kTurnTokens = 4 * kTokens * kWarps;
    static constexpr int kTurns = (tile().tokens + kTurnTokens - 1) / kTurnTokens;
    struct alignas(4 * kTokens) Rows {
      int32_t row[kTokens];
    };

    const Rows* rows;  // of the lane's first tokens
    uint32_t row_bytes;
    int first;  // of these
    int turns;  // in which the lane has tokens; those past the last one bring rows that nobody wants

    __device__ Gather(const int32_t* rows_of_tile, int64_t row_bytes, int warp, int lane, int tokens)
        : row_bytes(static_cast<uint32_t>(row_bytes)), first(kTokens * (4 * warp + lane / 8)) {
      rows = reinterpret_cast<const Rows*>(rows_of_tile + first);
      turns = (tokens - first + kTurnTokens - 1) / kTurnTokens;
    }

    // x: the lane's chunk of row 0. kWhole: no column of the stage is past the last one, of which otherwise a lane has
    // `left` bytes from its chunk on. Chunks of a token change places in the 128-byte swizzle.
    template <bool kWhole>
    __device__ void copy(const Sm90MainloopParams& p, uint32_t stage, const uint8_t* x, int left, int lane) const {
      const int chunk = lane % 8 ^ first % 8;
      stage += 128 * first;
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn, stage += 128 * kTurnTokens) {
        if (turn >= turns) break;
        const Rows mine = rows[turn * kTurnTokens / kTokens];
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
          const uint8_t* from = x + uint64_t{row_bytes} * static_cast<uint32_t>(mine.row[i]);
          const uint32_t to = stage + 128 * i + 16 * (chunk ^ i);
#pragma unroll
          for (int block = 0; block < kBlocks; ++block) {
            const uint32_t target = to + block * token_rows(p) * 128;
            const int size = max(0, min(16, left - 128 * block));
            if constexpr (kWhole)
              ptx::async_copy_16(target, from + 128 * block);
            else
              ptx::async_copy_16(target, size > 0 ? from + 128 * block : x, size);
          }
        }
      }
    }

    // All stages of the work item. What follows from the column is worked out again for each: registers are few.
    __device__ void run(const Sm90MainloopParams& p, Ring& ring, const Work& work, const uint8_t* x, int lane) const {
      constexpr int kRecordBytes = 128 * tile().token_blocks();  // of a row
#pragma unroll 1
      for (int k = work.k_begin; k < work.k_end; k += tile().stage_tiles(), ring.next()) {
        ptx::mbarrier_wait(ring.empty(), ring.phase ^ 1);
        const uint32_t stage = ptx::shared_address(ring.stage_tokens());
        const int column = k * kRecordBytes, chunk = lane % 8 * 16;
        const int left = static_cast<int>(p.k) * tile().value_bytes - column;
        if (left >= kRecordBytes * tile().stage_tiles())
          copy<true>(p, stage, x + column + chunk, 0, lane);
        else
          copy<false>(p, stage, x + column + chunk, left - chunk, lane);
        ptx::mbarrier_arrive_after_copies(ring.full());
      }
    }
  };

  // A warp of its own brings the tokens' scales of one work item, strided as they lie: zeros for what is no token.
  // row(token): of x.
  template <class Row>
  __device__ static void produce_scales(const Sm90MainloopParams& p, Ring& ring, const Work& work, const Row& row,
                                        int lane) {
#pragma unroll 1
    for (int k = work.k_begin; k < work.k_end; k += tile().stage_tiles(), ring.next()) {
      ptx::mbarrier_wait(ring.empty(), ring.phase ^ 1);
      const uint32_t to = ptx::shared_address(ring.stage_scales());
#pragma unroll 1
      for (int i = lane; i < tile().stage_tiles() * tile().tokens; i += 32) {
        const int token = i % tile().tokens;
        const int record = k + i / tile().tokens;
        const bool exists = token < work.tokens && record < work.k_end;
        const int64_t at = exists ? row(token) * p.token_scale_stride + record : 0;
        ptx::async_copy_4(to + 4 * i, p.token_scales + at, exists ? 4 : 0);
      }
      ptx::mbarrier_arrive_after_copies(ring.full());
    }
  }
};

}  // namespace humming
