// What the sums of a tile take in shared memory, on their way to the output (epilogue/reduce_store.cuh). No CUDA
// needed: selection asks the same questions.
#pragma once

namespace humming {

// Floats behind the rows of a token: a warp's stores, at two tokens' distance for t and side by side for g, then meet
// every bank once.
inline constexpr int kReductionPad = 4;

// Planes [share][token][rows + pad] fp32. They take the place of the stages.
constexpr int reduction_bytes(int shares, int tokens, int rows) { return shares * tokens * (rows + kReductionPad) * 4; }

// A scale and a bias per row, and a scale per token.
constexpr int epilogue_table_bytes(int rows, int tokens) { return 8 * rows + 4 * tokens; }

}  // namespace humming
