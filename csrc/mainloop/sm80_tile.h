// Extents of a GEMM tile of Ampere and Ada, from the columns of its manifest row, and where its tokens lie in shared
// memory. No CUDA needed: selection and tests ask the same questions.
//
// The product is transposed, as on Hopper: weights are the MMA's A operand, from registers, tokens its B operand, from
// shared memory, D has channels as rows and tokens as columns.
//
//   CTA tile   64 * row_groups channels x `tokens` tokens
//   stage      split_k records along K of every row group, then their columns of all tokens
//   warps      split_k teams, of which each has one record of every stage. A warp has `patches` 16-row patches of a row
//              group and all tokens: it dequantises for itself alone, and reads tokens once for its patches
#pragma once

#include "layout/weight_desc.h"
#include "mainloop/reduction.h"

namespace humming {

struct Sm80Tile {
  static constexpr int kMaxStages = 5;

  int row_groups, patches, split_k, tokens;
  int value_bits;  // of a token's element

  constexpr int rows() const { return kStripRows * row_groups; }
  constexpr int team_warps() const { return 4 * row_groups / patches; }
  constexpr int warps() const { return split_k * team_warps(); }
  constexpr int threads() const { return 32 * warps(); }

  // What a warp has of every stage: the record of its team, and there patches of a row group, `patch` the first.
  struct Role {
    int team, row_group, patch;
  };
  constexpr Role role_of(int warp) const {
    const int first = warp % team_warps() * patches;
    return {warp / team_warps(), first / 4, first % 4};
  }

  // Tokens of a record: [block][token][line], a token's columns cut into lines of at most 128 bytes. Within a line the
  // 16-byte chunks are turned (exclusive-or), so that the same chunk of eight neighbouring tokens, which ldmatrix reads
  // at a time, lies in eight places of the 128 bytes that memory serves at a time: lines of 128 bytes turn by the
  // token, lines of 64 bytes, two of which lie side by side, by the pair.
  constexpr int row_bytes() const { return kTileK * value_bits / 8; }
  constexpr int row_chunks() const { return row_bytes() / 16; }
  constexpr int line_bytes() const { return row_bytes() < 128 ? row_bytes() : 128; }
  constexpr int line_chunks() const { return line_bytes() / 16; }
  constexpr int token_offset(int token, int chunk) const {
    const int turn = token * line_bytes() / 128 % line_chunks();
    return (chunk / line_chunks() * tokens + token) * line_bytes() + (chunk % line_chunks() ^ turn) * 16;
  }
  constexpr int token_bytes() const { return tokens * row_bytes(); }

  // Threads copy chunks side by side, so many rows at a time, after which the turns repeat; and what a lane reads with
  // ldmatrix, of the tokens and columns of two MMA steps: the first of every eight, and the pair's chunks 0 to 3.
  struct Chunk {
    int token, chunk;
  };
  constexpr int rows_at_a_time() const { return threads() / row_chunks(); }
  constexpr Chunk copied_by(int thread) const { return {thread / row_chunks(), thread % row_chunks()}; }
  constexpr int pairs() const { return row_chunks() / 4; }
  constexpr Chunk read_by(int lane, int pair) const { return {lane % 8, 4 * pair + lane / 8}; }

  constexpr int weight_stage_bytes(int record_bytes) const { return row_groups * split_k * record_bytes; }
  constexpr int stage_bytes(int record_bytes) const {
    return weight_stage_bytes(record_bytes) + split_k * token_bytes();
  }
  // Sums leave so many tokens at a time, in the place of the stages: those of 256 x 128 would not fit.
  constexpr int slice_tokens() const { return tokens < 64 ? tokens : 64; }
  // Behind both: what the epilogue keeps.
  constexpr int epilogue_offset(int stages, int record_bytes) const {
    const int pipeline = stages * stage_bytes(record_bytes);
    const int sums = reduction_bytes(split_k, slice_tokens(), rows());
    return pipeline > sums ? pipeline : sums;
  }
  constexpr int shared_bytes(int stages, int record_bytes) const {
    return epilogue_offset(stages, record_bytes) + epilogue_table_bytes(rows(), tokens);
  }
};

}  // namespace humming
