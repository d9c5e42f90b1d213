// From the consumers' accumulators to the output, for Hopper's MoE kernel, where warps do not share K (else
// store_moe_partials).
//
// Sums go through shared memory, a few tokens at a time, so that all that follows is one short loop over the tokens
// that exist, whatever the tile: code that stands once per accumulator would be most of the kernel.
#pragma once

#include "epilogue/moe_store.cuh"
#include "epilogue/sm90_store.cuh"

namespace humming {

// As SumEpilogue, of a tile with experts, without an activation or with swiglu, of which the first row half is gates,
// and then results, and the other what belongs to them. A weight multiplies the scale of a token and the bias, or the
// result.
template <bool kTokenScales, class Tile>
struct MoeSumEpilogue {
  const Tile& tile;
  ChannelEpilogue channel[2];
  int token;  // 2t
  bool gated;
  const ActivationArgs& args;

  struct Factors {
    float2 scale, weight;
  };
  __device__ Factors factors(int j) const {
    const int at = token + 8 * j;
    const float2 weight = *reinterpret_cast<const float2*>(tile.weight + at);
    if constexpr (!kTokenScales) return {weight, weight};
    return {*reinterpret_cast<const float2*>(tile.token_scale + at), weight};
  }
  template <int kGroups, class T>
  __device__ void pack(DType type, const T* sums, const Factors (&factors)[kGroups],
                       uint32_t (&packed)[kGroups][2]) const {
    if (gated) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const auto value = [&](int k, float scale) {
          if constexpr (!kTokenScales) scale = 1;
          return channel[k / 2](static_cast<float>(sums[4 * i + k]), scale);
        };
        const Factors& f = factors[i];
        const float first = swiglu<Sigmoid::native>(args, value(0, f.scale.x), value(2, f.scale.x)) * f.weight.x;
        const float second = swiglu<Sigmoid::native>(args, value(1, f.scale.y), value(3, f.scale.y)) * f.weight.y;
        packed[i][0] = packed[i][1] = pack_pair(type, first, second);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const Factors& f = factors[i];
      const float2 scale = kTokenScales ? float2{f.scale.x * f.weight.x, f.scale.y * f.weight.y} : f.weight;
      float four[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float scaled =
            static_cast<float>(sums[4 * i + k]) * (k % 2 == 0 ? scale.x : scale.y) * channel[k / 2].scale;
        four[k] = fmaf(channel[k / 2].bias, k % 2 == 0 ? f.weight.x : f.weight.y, scaled);
      }
      packed[i][0] = pack_pair(type, four[0], four[1]);
      packed[i][1] = pack_pair(type, four[2], four[3]);
    }
  }
};

// By a warp, through `shared` of its own, the sums of its patches of 16 rows: sums(patch) from row(patch) of the tile
// on. Aligned 16-bit outputs without an activation or with the usual one, as the products of a layer have: from
// registers. Else a lane has one of two octets of a token.
template <int kPatches, int kTokens, bool kTokenScales, class Tile, class Sums, class Row>
__device__ void store_moe_sums(const MoeEpilogueParams& p, const Tile& tile, const Sums& sums, const Row& row,
                               float unit, float* shared, int lane) {
  constexpr int kSlice = kMoeSliceTokens < kTokens ? kMoeSliceTokens : kTokens;
  constexpr int kPitch = 16 + Sm90Tile::kReductionPad;
  static_assert(kSlice * kPitch * 4 >= kSlice * Sm90Tile::kStagingBytes / 16);
  const bool gated = p.activation == Activation::swiglu;
  // 16-bit tokens have scales where a layer weighs them before its first product.
  const bool usual = (gated || p.activation == Activation::none) && (kTokenScales || p.dense.x_scale == nullptr);
  if (p.dense.vector && usual) {
#pragma unroll
    for (int patch = 0; patch < kPatches; ++patch) {
      const int half[2] = {row(patch) + lane / 4, row(patch) + lane / 4 + 8};
      const MoeSumEpilogue<kTokenScales, Tile> value{tile,
                                                     {{unit * tile.row_scale[half[0]], tile.row_bias[half[0]]},
                                                      {unit * tile.row_scale[half[1]], tile.row_bias[half[1]]}},
                                                     lane % 4 * 2,
                                                     gated,
                                                     p.activation_args};
      const int octet = lane % 2;
      const int channel = p.dense.channel_of(tile.first_row + row(patch) + octet * 8);
      const Place place(p.dense, gated && octet == 1 ? -1 : channel);
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
