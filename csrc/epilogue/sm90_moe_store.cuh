// From the consumers' accumulators to the output, for Hopper's MoE kernel, where warps do not share K (else
// store_moe_partials).
//
// Sums go through shared memory, a few tokens at a time, so that all that follows is one short loop over the tokens
// that exist, whatever the tile: code that stands once per accumulator would be most of the kernel.
#pragma once

#include "epilogue/moe_store.cuh"
#include "epilogue/sm90_store.cuh"

namespace humming {

// As SumEpilogue, of a tile with experts and without activation: a weight multiplies the scale of a token and the bias.
template <bool kTokenScales, class Tile>
struct MoeSumEpilogue {
  const Tile& tile;
  ChannelEpilogue channel[2];
  int token;  // 2t

  struct Factors {
    float2 scale, weight;
  };
  __device__ Factors factors(int j) const {
    const int at = token + 8 * j;
    const float2 weight = *reinterpret_cast<const float2*>(tile.weight + at);
    if constexpr (!kTokenScales) return {weight, weight};
    const float2 scale = *reinterpret_cast<const float2*>(tile.token_scale + at);
    return {{scale.x * weight.x, scale.y * weight.y}, weight};
  }
  __device__ float operator()(float sum, int i, const Factors& factors) const {
    const bool first = i % 2 == 0;
    const float scaled = sum * (first ? factors.scale.x : factors.scale.y) * channel[i / 2].scale;
    return fmaf(channel[i / 2].bias, first ? factors.weight.x : factors.weight.y, scaled);
  }
};

// By a warp, through `shared` of its own, the sums of its patches of 16 rows: sums(patch) from row(patch) of the tile
// on. Aligned 16-bit outputs without an activation, as the second product of a layer has: from registers. Else a lane
// has one of two octets of a token.
template <int kPatches, int kTokens, bool kTokenScales, class Tile, class Sums, class Row>
__device__ void store_moe_sums(const MoeEpilogueParams& p, const Tile& tile, const Sums& sums, const Row& row,
                               float unit, float* shared, int lane) {
  constexpr int kSlice = kMoeSliceTokens < kTokens ? kMoeSliceTokens : kTokens;
  constexpr int kPitch = 16 + Sm90Tile::kReductionPad;
  static_assert(kSlice * kPitch * 4 >= kSlice * Sm90Tile::kStagingBytes / 16);
  if (p.activation == Activation::none && p.dense.vector) {
#pragma unroll
    for (int patch = 0; patch < kPatches; ++patch) {
      const int half[2] = {row(patch) + lane / 4, row(patch) + lane / 4 + 8};
      const MoeSumEpilogue<kTokenScales, Tile> value{tile,
                                                     {{unit * tile.row_scale[half[0]], tile.row_bias[half[0]]},
                                                      {unit * tile.row_scale[half[1]], tile.row_bias[half[1]]}},
                                                     lane % 4 * 2};
      const Place place(p.dense, p.dense.channel_of(tile.first_row + row(patch) + lane % 2 * 8));
      const auto out_row = [&](int token) { return tile.out_row[token]; };
      store_vectors<kTokens>(p.dense.out_dtype, sums(patch), value, place, out_row, tile.count, lane,
                             reinterpret_cast<uint8_t*>(shared));
    }
    return;
  }
#pragma unroll
  for (int patch = 0; patch < kPatches; ++patch) {
    const RowOctet rows(p, tile, row(patch), lane % 2);
#pragma unroll 1
    for (int first = 0; first < tile.count; first += kSlice) {
#pragma unroll
      for (int i = 0; i < kTokens / kSlice; ++i) {
        if (i * kSlice == first) store_partial<kSlice>(sums(patch) + i * kSlice / 2, shared, kPitch, 0, lane);
      }
      __syncwarp();
      const int token = lane / 2;
      if (token < min(kSlice, tile.count - first)) {
        rows.template store<1>(p, tile, shared + token * kPitch, 0, unit, first + token);
      }
      __syncwarp();
    }
  }
}

}  // namespace humming
