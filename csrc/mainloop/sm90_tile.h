// Extents of a Hopper GEMM tile, from the columns of its manifest row. No CUDA needed: selection asks the same
// questions.
//
// The product is transposed: weights are the MMA's A operand (64 rows a warpgroup, from registers), tokens its B
// operand (128-byte swizzled shared memory), D has channels as rows and tokens as columns.
//
//   CTA tile      64 * row_groups channels x `tokens` tokens
//   consumers     row_groups * split_k warpgroups, with `two_strips` half as many of two row groups each. Of so many
//                 teams w that split the rows, warpgroup i has the rows of i % w and every split_k-th stage, from stage
//                 i / w on. wgmma: it multiplies the k_tiles records of a stage together. mma.sync: each of its warps
//                 has `mma_patches` of the four 16-row patches of k_tiles records, and reads their tokens once for all
//                 of them
//   record        128 columns of 64 rows, or with `half_records` 64: where it has nothing but codes, its halves are
//                 records too, and where tokens are many, three stages of whole ones do not fit
//   stage         k_tiles records along K, with mma.sync mma_patches * k_tiles, for each of the row groups, and their
//                 columns of all tokens. Small stages let the first warpgroup begin early
//   cluster       cluster_k CTAs split K. `multicast`: two CTAs have neighbouring row tiles of the same tokens, half of
//                 which each brings to both
#pragma once

#include <cstdint>

#include "formats/format.h"
#include "layout/weight_desc.h"
#include "mainloop/reduction.h"

namespace humming {

struct Sm90Tile {
  int row_groups, split_k, cluster_k, tokens, k_tiles;
  int value_bytes;    // of a token's element
  int mma_patches;    // 0: wgmma. 1, 2, 4: mma.sync, row_groups is 1
  bool token_groups;  // tokens have a scale per record, not one for all of K
  bool multicast;
  bool half_records;
  bool two_strips;

  constexpr int rows() const { return kStripRows * row_groups; }
  constexpr int strips() const { return two_strips ? 2 : 1; }  // row groups of a warpgroup
  constexpr int row_teams() const { return row_groups / strips(); }
  constexpr int consumer_groups() const { return row_teams() * split_k; }
  // Parts of a stage, each with sums of its own.
  constexpr int stage_shares() const { return mma_patches > 0 ? mma_patches : 1; }
  constexpr int shares() const { return split_k * stage_shares(); }
  constexpr int stage_tiles() const { return stage_shares() * k_tiles; }
  constexpr int cluster_rows() const { return multicast ? 2 : 1; }  // row tiles
  constexpr int cluster() const { return cluster_k * cluster_rows(); }
  constexpr bool reduces() const { return shares() * cluster_k > 1; }
  // Accumulators of 64 x 128 and more, and four warpgroups side by side, want registers moved from producers to
  // consumers, warpgroup by warpgroup.
  constexpr bool moves_registers() const { return tokens >= 128 || row_groups == 4; }
  // The last warps are producers: of weights and tokens, and of the tokens' scales where they have groups.
  constexpr int threads() const { return 128 * consumer_groups() + (moves_registers() ? 128 : token_groups ? 64 : 32); }

  // Shared memory. Tokens of a record: blocks of 128 bytes per token, [block][token row][128]. Where tokens are few
  // there are no more rows than tokens, because copies that run past the last one are slow; what a product finds in
  // place of others gives columns of sums that nobody stores.
  constexpr bool drops_rows() const { return tokens <= 32 && !multicast; }
  constexpr int token_rows(int64_t existing) const {
    return drops_rows() && existing < tokens ? static_cast<int>(existing) : tokens;
  }
  // With experts a block of rows ends anywhere in x, and its product is as wide as its rows want: first_width(), or one
  // of those after it. Each has a loop of its own, and the largest tiles have registers for a few of them only, close
  // to the tile's width. Tiles of many tokens fetch no more of them than that, `box_rows` at a time.
  constexpr int width_step() const { return tokens > 128 ? 32 : tokens > 32 ? 16 : 8; }
  constexpr bool few_widths() const { return tokens == 256 || two_strips; }
  constexpr int first_width() const { return few_widths() ? 64 : width_step(); }
  constexpr int next_width(int width) const {
    return width + (few_widths() && 4 * width < 3 * tokens ? 2 : 1) * width_step();
  }
  constexpr bool fetches_boxes() const { return tokens > 32; }
  constexpr int box_rows() const { return multicast ? tokens / 2 : tokens > 64 ? 32 : fetches_boxes() ? 16 : tokens; }
  constexpr int record_halves() const { return half_records ? 1 : 2; }
  constexpr int token_blocks() const { return record_halves() * kHalfK * value_bytes / 128; }  // of one record
  constexpr int token_copy_bytes(int token_rows) const { return stage_tiles() * token_blocks() * token_rows * 128; }
  constexpr int token_stage_bytes(int token_rows) const { return (token_copy_bytes(token_rows) + 1023) / 1024 * 1024; }
  constexpr int weight_stage_bytes(int record_bytes) const { return stage_tiles() * row_groups * record_bytes; }
  constexpr int scale_stage_bytes() const { return token_groups ? stage_tiles() * tokens * 4 : 0; }
  constexpr int stage_bytes(int record_bytes, int token_rows) const {
    return token_stage_bytes(token_rows) + weight_stage_bytes(record_bytes) + scale_stage_bytes();
  }
  static constexpr int kReductionPad = humming::kReductionPad;
  constexpr int reduction_bytes() const { return reduces() ? humming::reduction_bytes(shares(), tokens, rows()) : 0; }
  // Behind the stages: what the epilogue keeps. Where K is split, a scale and a bias per row and a scale per token;
  // else staging for 16-bit outputs, for each warp two buffers of 16 tokens x 16 channels. Then two barriers a stage.
  static constexpr int kStagingBytes = 2 * 16 * 32;
  constexpr int epilogue_bytes() const {
    return reduces() ? epilogue_table_bytes(rows(), tokens) : 4 * consumer_groups() * kStagingBytes;
  }
  constexpr int shared_bytes(int stages, int record_bytes, int token_rows) const {
    const int pipeline = stages * stage_bytes(record_bytes, token_rows);
    const int area = pipeline > reduction_bytes() ? pipeline : reduction_bytes();
    return area + epilogue_bytes() + 16 * stages;
  }
};

}  // namespace humming
