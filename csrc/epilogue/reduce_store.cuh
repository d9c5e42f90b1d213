// From accumulators to the output by way of shared memory, where the shares of a split K meet.
//
//   shared   planes [share][token][rows + pad] fp32, then a scale and a bias per row and a scale per token
//
// A thread of a warp holds, for a patch of 16 packed rows, rows g and g + 8 of tokens 8j + 2t and 8j + 2t + 1: sums[4j
// + 2 * row half + token bit].
#pragma once

#include "epilogue/gemm_epilogue.h"
#include "mainloop/ptx.h"
#include "mainloop/reduction.h"

namespace humming {

// The sums of a warp's patch of 16 rows, `row` the first of them, into its share's plane.
template <int kTokens, class T>
__device__ void store_partial(const T* sums, float* plane, int row_pitch, int row, int lane) {
  const int g = lane / 4;
  const int t = lane % 4;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int token = i / 4 * 8 + 2 * t + i % 2;
    plane[token * row_pitch + row + g + 8 * (i / 2 % 2)] = static_cast<float>(sums[i]);
  }
}

// What the epilogue needs of a tile, in shared memory: loaded while the first stage is on its way, so that nothing is
// waited for at the end.
struct EpilogueTable {
  float* scale;        // [rows], times the unit
  float* bias;         // [rows]
  float* token_scale;  // [tokens]

  __device__ EpilogueTable(uint8_t* shared, int rows)
      : scale(reinterpret_cast<float*>(shared)), bias(scale + rows), token_scale(bias + rows) {}

  // Rows do not depend on the grid ahead, token scales do.
  __device__ void load_rows(const EpilogueParams& p, float unit, int first_row, int rows, int thread, int threads) {
    for (int row = thread; row < rows; row += threads) {
      const ChannelEpilogue channel(p, p.channel_of(first_row + row), unit);
      scale[row] = channel.scale;
      bias[row] = channel.bias;
    }
  }
  __device__ void load_tokens(const EpilogueParams& p, int first_token, int count, int thread, int threads) {
    for (int token = thread; token < count; token += threads) {
      token_scale[token] = p.token_scale(first_token + token);
    }
  }
};

// Adds the partial sums of all shares and CTAs of the cluster, in one order for every run, and stores. The CTAs divide
// the tile among them; a thread has four neighbouring rows of a token.
template <int kShares, int kCtas, int kRows>
__device__ void reduce_and_store(const EpilogueParams& p, const float* partials, const EpilogueTable& table,
                                 int tile_tokens, int first_row, int first_token, int count, int thread, int threads,
                                 int rank) {
  constexpr int kRowPitch = kRows + kReductionPad;
  constexpr int kQuads = kRows / 4;
  const int plane = tile_tokens * kRowPitch;
  const uint32_t address = ptx::shared_address(partials);
#pragma unroll 1
  for (int i = thread + rank * threads; i < count * kQuads; i += threads * kCtas) {
    const int token = i / kQuads;
    const int row = i % kQuads * 4;
    float4 part[kCtas * kShares];
#pragma unroll
    for (int j = 0; j < kCtas * kShares; ++j) {
      const int at = j % kShares * plane + token * kRowPitch + row;
      if constexpr (kCtas > 1)
        part[j] = ptx::load_cluster_f32x4(address + 4 * at, j / kShares);
      else
        part[j] = *reinterpret_cast<const float4*>(partials + at);
    }
    float sum[4] = {part[0].x, part[0].y, part[0].z, part[0].w};
#pragma unroll
    for (int j = 1; j < kCtas * kShares; ++j) {
      sum[0] += part[j].x;
      sum[1] += part[j].y;
      sum[2] += part[j].z;
      sum[3] += part[j].w;
    }
    const float token_scale = table.token_scale[token];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sum[j] = ChannelEpilogue{table.scale[row + j], table.bias[row + j]}(sum[j], token_scale);
    }
    // The rows of a quad are neighbouring channels: gate and up alternate in blocks of 8.
    const int channel = p.channel_of(first_row + row);
    if (channel < 0) continue;
    if (p.vector) {
      uint16_t* to = static_cast<uint16_t*>(p.out) + static_cast<int64_t>(first_token + token) * p.out_row_stride;
      *reinterpret_cast<uint2*>(to + channel) =
          make_uint2(pack_pair(p.out_dtype, sum[0], sum[1]), pack_pair(p.out_dtype, sum[2], sum[3]));
    } else {
      const int end = p.gate_half == 0 || channel >= p.gate_half ? p.n : p.gate_half;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (channel + j < end) store_value(p, first_token + token, channel + j, sum[j]);
      }
    }
  }
}

}  // namespace humming
