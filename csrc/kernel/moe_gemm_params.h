// What the MoE kernels are given. No CUDA needed; select/ and ops/ fill them.
#pragma once

#include "epilogue/moe_epilogue.h"
#include "kernel/gemm_params.h"
#include "kernel/params.h"
#include "mainloop/sm80_tile.h"
#include "mainloop/sm90_tile.h"

namespace humming {

// Where the rows of every expert are. Bad numbers make fewer rows, never an access outside of x.
struct MoeRows {
  int experts;
  int rows;               // together, at most
  const void* offsets;    // [experts + 1], where every expert's rows begin; nullptr: masked
  DType offset_dtype;     // int32, int64
  const int32_t* counts;  // masked: expert e has so many, from e * capacity on; nullptr: as many as there is room for
  int64_t capacity;
};

struct MoeGemmSm90Params {
  Sm90MainloopParams mainloop;  // packed: of expert 0
  MoeEpilogueParams epilogue;
  MoeRows rows;
  int64_t expert_bytes;
  const void* x;
  int64_t x_row_bytes;
  int num_ctas;
  int early_stages;    // of a CTA's first tile: of weights, to ask for before the grid ahead has ended
  bool known_routing;  // `rows` and weights may be read before the grid ahead has ended
};

template <class Mainloop>
struct MoeProductSm80 {
  Mainloop mainloop;  // packed: of expert 0
  MoeEpilogueParams epilogue;
  MoeRows rows;
  int64_t expert_bytes;
  int num_ctas;
};
struct MoeGemmSm80Params : MoeProductSm80<Sm80MainloopParams> {};
// Of weights of any format, dense ones too, which are one expert.
struct GemmAnyParams : MoeProductSm80<Sm80AnyParams> {};

// One producer more than a dense tile has.
constexpr int moe_threads(const Sm90Tile& tile) { return tile.threads() + (tile.moves_registers() ? 0 : 32); }

// Shared memory of a CTA:
//
//   ring of stages | its barriers | barriers of the tables | sums on their way to the output | tables | list of blocks
//
// A table (MoeTile) is what the tokens and rows of a tile have; those of the next tiles are fetched ahead. Where warps
// share the rows of a tile, all of their sums are there together, else those of a few tokens at a time.
constexpr int moe_tables(const Sm90Tile& tile) { return tile.tokens <= 64 ? 4 : 2; }
constexpr int moe_table_bytes(int tokens, int rows) { return 16 * tokens + 8 * rows + 16; }
constexpr int moe_table_bytes(const Sm90Tile& tile) { return moe_table_bytes(tile.tokens, tile.rows()); }
constexpr int moe_sums_bytes(const Sm90Tile& tile) {
  if (tile.reduces()) return tile.reduction_bytes();
  const int slice = tile.tokens < kMoeSliceTokens ? tile.tokens : kMoeSliceTokens;
  return 4 * tile.consumer_groups() * slice * (16 + Sm90Tile::kReductionPad) * 4;
}
constexpr int moe_list_bytes(int experts) { return 4 * (3 * experts + 1 + (experts + 31) / 32); }
constexpr int moe_ring_bytes(const Sm90Tile& tile, int stages, int record_bytes) {
  return stages * tile.stage_bytes(record_bytes, tile.tokens);
}
constexpr int moe_shared_bytes(const Sm90Tile& tile, int stages, int record_bytes, int experts) {
  return moe_ring_bytes(tile, stages, record_bytes) + 16 * (stages + moe_tables(tile)) + moe_sums_bytes(tile) +
         moe_tables(tile) * moe_table_bytes(tile) + moe_list_bytes(experts);
}

// On Ampere and Ada: ring of stages, then sums in their place | a table | list of blocks.
constexpr int moe_table_offset(const Sm80Tile& tile, int stages, int record_bytes) {
  return tile.epilogue_offset(stages, record_bytes);
}
constexpr int moe_shared_bytes(const Sm80Tile& tile, int stages, int record_bytes, int experts) {
  return moe_table_offset(tile, stages, record_bytes) + moe_table_bytes(tile.tokens, tile.rows()) +
         moe_list_bytes(experts);
}

// The blocks of the layout indexed, whose pairs are to be sorted by expert. A pair that is not in [0, limit) is none.
struct MoeSortParams {
  const int32_t* ids;         // [count], sorted_token_ids
  const int32_t* experts;     // [count / block], expert_ids
  const int32_t* num_padded;  // [1]
  int64_t count, block;
  int64_t limit;
  int num_experts;
  // Written:
  int32_t* sorted;   // [limit]
  int32_t* offsets;  // [num_experts + 1]
  int32_t* counts;   // [2 * num_experts], scratch; as the next field only if the ids are not few
};
// So few that every block of the sorting kernel counts for itself what experts have.
inline constexpr int64_t kFewPairs = 8192;

}  // namespace humming
