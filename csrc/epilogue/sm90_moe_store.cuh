// From the consumers' accumulators to the output, for Hopper's MoE kernel: scales and bias, an activation, which takes
// gate and up from rows r and r + 8, a weight per row, and rows of the output in any order.
//
// Sums go through shared memory, a few tokens at a time, so that all that follows is one short loop over the tokens
// that exist, whatever the tile: code that stands once per accumulator would be most of the kernel.
//
//   sums    [share][token][rows + pad] fp32: of a warp's 16 rows, or, where K is split over warps, of 64 rows from all
//   of
//           them
#pragma once

#include "epilogue/moe_epilogue.h"
#include "epilogue/sm90_store.cuh"

namespace humming {

// What the tokens and rows of a tile have, in shared memory.
template <int kTokens, int kRows>
struct MoeTile {
  int32_t out_row[kTokens];
  float token_scale[kTokens];
  float weight[kTokens];  // of the results
  float row_scale[kRows], row_bias[kRows];
  int first_row, count;  // packed row, tokens

  // By a warp: asks for all of it. first: row of x. Two arrivals of every lane at `barrier` say that it is here.
  __device__ void fetch(const MoeEpilogueParams& p, int expert, int first, int tokens, int row, int lane,
                        uint32_t barrier) {
    const auto copy_or = [](auto* to, const auto* from, int64_t at, bool exists, auto otherwise) {
      if (from != nullptr)
        ptx::async_copy_4(ptx::shared_address(to), from + (exists ? at : 0), exists ? 4 : 0);
      else
        *to = otherwise;
    };
#pragma unroll 1
    for (int i = lane; i < kTokens; i += kWarpSize) {
      const int64_t at = first + i;
      copy_or(out_row + i, p.out_rows, at, i < tokens, first + i);
      copy_or(token_scale + i, p.dense.x_scale, at * p.dense.x_scale_stride, i < tokens, 1.0f);
      copy_or(weight + i, p.row_weights, at, i < tokens, 1.0f);
    }
    const EpilogueParams mine = p.of_expert(expert);
#pragma unroll 1
    for (int i = lane; i < kRows; i += kWarpSize) {
      const int channel = mine.channel_of(row + i);
      copy_or(row_scale + i, mine.scale2, static_cast<int64_t>(channel) * mine.scale2_stride, channel >= 0, 1.0f);
      row_bias[i] = mine.channel_bias(channel);
    }
    if (lane == 0) {
      first_row = row;
      count = tokens;
    }
    ptx::mbarrier_arrive_after_copies(barrier);
    ptx::mbarrier_arrive(barrier);
  }
};

// The sum over shares of four neighbouring rows, in one order for every run; then scales and bias. row: of the tile.
template <int kShares, class Tile>
__device__ void finished_rows(const Tile& tile, const float* sums, int plane, float unit, int row, float token_scale,
                              float (&values)[4]) {
  float4 part[kShares];
#pragma unroll
  for (int i = 0; i < kShares; ++i) part[i] = *reinterpret_cast<const float4*>(sums + i * plane);
  values[0] = part[0].x, values[1] = part[0].y, values[2] = part[0].z, values[3] = part[0].w;
#pragma unroll
  for (int i = 1; i < kShares; ++i) {
    values[0] += part[i].x, values[1] += part[i].y, values[2] += part[i].z, values[3] += part[i].w;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[i] = ChannelEpilogue{unit * tile.row_scale[row + i], tile.row_bias[row + i]}(values[i], token_scale);
  }
}

// Stores `count` tokens from the tile's `first` on, whose sums of kRows rows from `row` on lie in shared memory. By
// `threads` threads; one has four neighbouring rows of a token, and with gated activations the other four that belong
// to them. unit: the power of two that the dequantiser left.
template <int kShares, int kRows, int kSlice, class Tile>
__device__ void store_slice(const MoeEpilogueParams& p, const Tile& tile, const float* sums, float unit, int row,
                            int first, int count, int thread, int threads) {
  constexpr int kPitch = kRows + Sm90Tile::kReductionPad;
  constexpr int kPlane = kSlice * kPitch;
  const bool gated = is_gated(p.activation);
  static_assert((kRows & (kRows - 1)) == 0);
  const int quads = gated ? kRows / 8 : kRows / 4;
  const int quad_bits = 31 - __clz(quads);
#pragma unroll 1
  for (int i = thread; i < count * quads; i += threads) {
    const int token = i >> quad_bits, quad = i & (quads - 1);
    const int at = gated ? quad / 2 * 16 + quad % 2 * 4 : quad * 4;
    const float token_scale = tile.token_scale[first + token], weight = tile.weight[first + token];
    const float* from = sums + token * kPitch + at;
    float value[4], up[4] = {};
    finished_rows<kShares>(tile, from, kPlane, unit, row + at, token_scale, value);
    if (gated) finished_rows<kShares>(tile, from + 8, kPlane, unit, row + at + 8, token_scale, up);
    if (p.activation != Activation::none) {
#pragma unroll
      for (int j = 0; j < 4; ++j) value[j] = activate(p.activation, p.activation_args, value[j], up[j]);
    }
    // The rows of a quad are neighbouring channels: gate and up alternate in blocks of 8.
    const int channel = p.dense.channel_of(tile.first_row + row + at);
    if (channel < 0) continue;
    const int out_row = tile.out_row[first + token];
    if (p.dense.vector) {
      uint16_t* to = static_cast<uint16_t*>(p.dense.out) + out_row * p.dense.out_row_stride + channel;
      *reinterpret_cast<uint2*>(to) = make_uint2(pack_pair(p.dense.out_dtype, value[0] * weight, value[1] * weight),
                                                 pack_pair(p.dense.out_dtype, value[2] * weight, value[3] * weight));
    } else {
      const int end = p.dense.gate_half == 0 || channel >= p.dense.gate_half ? p.dense.n : p.dense.gate_half;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (channel + j < end) store_value(p.dense, out_row, channel + j, value[j] * weight);
      }
    }
  }
}

// By a warp, the sums of its 16 rows from `row` on, through `shared` of its own.
template <int kTokens, class Tile, class T>
__device__ void store_moe_sums(const MoeEpilogueParams& p, const Tile& tile, const T* sums, float unit, int row,
                               float* shared, int lane) {
  constexpr int kSlice = kMoeSliceTokens < kTokens ? kMoeSliceTokens : kTokens;
#pragma unroll 1
  for (int first = 0; first < tile.count; first += kSlice) {
#pragma unroll
    for (int i = 0; i < kTokens / kSlice; ++i) {
      if (i * kSlice != first) continue;
      store_partial<kSlice>(sums + i * kSlice / 2, shared, 16 + Sm90Tile::kReductionPad, 0, lane);
    }
    __syncwarp();
    store_slice<1, 16, kSlice>(p, tile, shared, unit, row, first, min(kSlice, tile.count - first), lane, kWarpSize);
    __syncwarp();
  }
}

}  // namespace humming
