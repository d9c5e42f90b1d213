// From the consumers' accumulators to the output, for Hopper's MoE kernel: sm90_store.cuh with an activation, which
// takes gate and up from the two rows of a thread, a weight per row, and rows of the output in any order.
//
// What the tokens and rows of a tile have is fetched while the product is under way, so that nothing is waited for at
// the end, and lies in shared memory, so that the main loop keeps its registers.
#pragma once

#include "epilogue/moe_epilogue.h"
#include "epilogue/sm90_store.cuh"

namespace humming {

// Of a warpgroup's part of a tile, in shared memory.
template <int kTokens>
struct MoeTile {
  int32_t out_row[kTokens];
  float token_scale[kTokens];
  float weight[kTokens];  // of the results
  float row_scale[64], row_bias[64];
  int first_row, count;  // packed row, tokens

  // By the warpgroup's threads: asks for what the tokens have. first: row of x.
  __device__ void fetch(const MoeEpilogueParams& p, int first, int tokens, int row, int thread) {
#pragma unroll 1
    for (int i = thread; i < kTokens; i += 128) {
      const int bytes = i < tokens ? 4 : 0;
      const auto copy_or = [&](auto* to, const auto* from, int64_t at, auto otherwise) {
        if (from != nullptr)
          ptx::async_copy_4(ptx::shared_address(to + i), from + (bytes ? at : 0), bytes);
        else
          to[i] = otherwise;
      };
      copy_or(out_row, p.out_rows, first + i, first + i);
      copy_or(token_scale, p.dense.x_scale, static_cast<int64_t>(first + i) * p.dense.x_scale_stride, 1.0f);
      copy_or(weight, p.row_weights, first + i, 1.0f);
    }
    if (thread == 0) {
      first_row = row;
      count = tokens;
    }
  }
  // After the main loop, and a barrier behind it: the tile is here. row: of a thread below 64.
  __device__ void finish(const ChannelEpilogue& row, int thread) {
    if (thread < 64) {
      row_scale[thread] = row.scale;
      row_bias[thread] = row.bias;
    }
    ptx::wait_for_copies();
  }
  __device__ ChannelEpilogue channel(int row) const { return {row_scale[row], row_bias[row]}; }
};

// The results of 16 rows of weights for the tokens of a tile.
template <int kTokens, class T>
struct MoeStore {
  static constexpr int kEights = kTokens < 16 ? 1 : 2;  // of tokens at a time
  static constexpr int kPitch = Sm90Tile::kStagingRowBytes;

  const MoeEpilogueParams& p;
  const MoeTile<kTokens>& tile;
  ChannelEpilogue channel[2];  // of the thread's two rows
  int count;                   // of tokens
  bool gated;

  // Results of tokens 8j + 2t and 8j + 2t + 1: [row half][token], of gated activations in the first half.
  __device__ void results(const T* sums, int j, int lane, float (&out)[2][2]) const {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int token = 8 * j + lane % 4 * 2 + b;
      const float low = channel[0](static_cast<float>(sums[4 * j + b]), tile.token_scale[token]);
      const float high = channel[1](static_cast<float>(sums[4 * j + 2 + b]), tile.token_scale[token]);
      out[0][b] = activate(p.activation, p.activation_args, low, high) * tile.weight[token];
      out[1][b] = gated ? 0.0f : activate(p.activation, p.activation_args, high, 0.0f) * tile.weight[token];
    }
  }

  // 16-bit outputs whose 8 channels lie aligned: through the warp's staging buffer. With gated activations a token has
  // one vector, else two.
  __device__ void vectors(const T* sums, int first_row, int lane, uint8_t* staging) const {
    const uint32_t address = ptx::shared_address(staging);
    const int vectors = gated ? 1 : 2;
    const int column = p.dense.channel_of(first_row + lane % vectors * 8);
#pragma unroll
    for (int j = 0; j < kTokens / 8; j += kEights) {
      if (8 * j >= count) break;
      uint32_t packed[2][2] = {};  // [eight tokens][row half]
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        float value[2][2];
        results(sums, j + i, lane, value);
        packed[i][0] = pack_pair(p.dense.out_dtype, value[0][0], value[0][1]);
        packed[i][1] = pack_pair(p.dense.out_dtype, value[1][0], value[1][1]);
      }
      if (gated) {
        ptx::stmatrix_x2_transposed(address + lane % 16 * kPitch, packed[0][0], packed[1][0]);
      } else {
#pragma unroll
        for (int i = 0; i < kEights; ++i) {
          ptx::stmatrix_x2_transposed(address + (8 * i + lane % 8) * kPitch + lane / 8 % 2 * 16, packed[i][0],
                                      packed[i][1]);
        }
      }
      __syncwarp();
      const int token = 8 * j + lane / vectors;
      if (lane < 8 * kEights * vectors && token < count && column >= 0) {
        uint16_t* to = static_cast<uint16_t*>(p.dense.out) + tile.out_row[token] * p.dense.out_row_stride + column;
        *reinterpret_cast<uint4*>(to) =
            *reinterpret_cast<const uint4*>(staging + lane / vectors * kPitch + lane % vectors * 16);
      }
      __syncwarp();
    }
  }

  // Any output, one value at a time.
  __device__ void values(const T* sums, int first_row, int lane) const {
    const int column[2] = {p.dense.channel_of(first_row + lane / 4), p.dense.channel_of(first_row + lane / 4 + 8)};
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      float value[2][2];
      results(sums, j, lane, value);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * j + lane % 4 * 2 + i % 2;
        const bool stored = token < count && column[i / 2] >= 0 && !(gated && i / 2 == 1);
        if (stored) store_value(p.dense, tile.out_row[token], column[i / 2], value[i / 2][i % 2]);
      }
    }
  }
};

// `sums` of the warp's 16 packed rows.
template <int kTokens, class T>
__device__ void store_moe_sums(const MoeEpilogueParams& p, const MoeTile<kTokens>& tile, const T* sums, int warp,
                               int lane, uint8_t* staging) {
  const int row = 16 * warp + lane / 4;  // of the warpgroup
  const MoeStore<kTokens, T> store{
      p, tile, {tile.channel(row), tile.channel(row + 8)}, tile.count, is_gated(p.activation)};
  if constexpr (kTokens <= kMaxScalarTokens) {
    if (!p.dense.vector) {
      store.values(sums, tile.first_row + 16 * warp, lane);
      return;
    }
  }
  store.vectors(sums, tile.first_row + 16 * warp, lane, staging);
}

}  // namespace humming
