// From sums in shared memory to the output, for every MoE kernel: scales and bias, an activation, which takes gate and
// up from rows r and r + 8, a weight per row, and rows of the output in any order.
//
//   sums    [share][token][rows + pad] fp32
#pragma once

#include "epilogue/moe_epilogue.h"
#include "epilogue/reduce_store.cuh"

namespace humming {

// What the tokens and rows of a tile have, in shared memory.
template <int kTokens, int kRows>
struct alignas(16) MoeTile {
  int32_t x_row[kTokens];
  int32_t out_row[kTokens];
  float token_scale[kTokens];
  float weight[kTokens];  // of the results
  float row_scale[kRows], row_bias[kRows];
  int first_row, count;  // packed row, tokens

  // By a warp: asks for all of it. first: of the rows, in the order of experts. It is here once the lanes' asynchronous
  // copies and their stores are.
  __device__ void fetch(const MoeEpilogueParams& p, int expert, int first, int tokens, int row, int lane) {
    const auto copy_or = [](auto* to, const auto* from, int64_t at, bool exists, auto otherwise) {
      if (from != nullptr)
        ptx::async_copy_4(ptx::shared_address(to), from + (exists ? at : 0), exists ? 4 : 0);
      else
        *to = otherwise;
    };
    const auto pair_of = [&](int i) {
      return p.pairs.sorted != nullptr && i < tokens ? __ldcg(p.pairs.sorted + first + i) : 0;
    };
    int pair = pair_of(lane);
#pragma unroll 1
    for (int i = lane; i < kTokens; i += kWarpSize) {
      const MoePairs::Row mine = p.pairs.row(first + i, pair);
      const bool exists = i < tokens;
      pair = pair_of(i + kWarpSize);  // it is waited for in the next turn
      x_row[i] = mine.x;
      out_row[i] = mine.out;
      copy_or(token_scale + i, p.dense.x_scale, mine.x * p.dense.x_scale_stride, exists, 1.0f);
      copy_or(weight + i, p.row_weights, mine.pair, exists, 1.0f);
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
  }
};

template <Activation kActivation>
__device__ void activate_octet(const ActivationArgs& args, float (&values)[8]) {
#pragma unroll
  for (int i = 0; i < (is_gated(kActivation) ? 4 : 8); ++i) {
    values[i] = activate<kActivation, Sigmoid::native>(args, values[i], values[(i + 4) % 8]);
  }
}
// With gated activations the first four values are gates, which become the results, the others theirs.
__device__ inline void activate_octet(Activation activation, const ActivationArgs& args, float (&values)[8]) {
  switch (activation) {
    case Activation::none: return;
    case Activation::swiglu: return activate_octet<Activation::swiglu>(args, values);
    case Activation::gelu: return activate_octet<Activation::gelu>(args, values);
    case Activation::gelu_tanh: return activate_octet<Activation::gelu_tanh>(args, values);
    case Activation::relu2: return activate_octet<Activation::relu2>(args, values);
    case Activation::silu_no_mul: return activate_octet<Activation::silu_no_mul>(args, values);
    case Activation::gelu_no_mul: return activate_octet<Activation::gelu_no_mul>(args, values);
    case Activation::gelu_tanh_no_mul: return activate_octet<Activation::gelu_tanh_no_mul>(args, values);
    case Activation::relu2_no_mul: return activate_octet<Activation::relu2_no_mul>(args, values);
  }
}

// Eight rows that a thread has of every token: two quads of neighbours, side by side, or, with gated activations, gates
// and what belongs to them.
struct RowOctet {
  int first;    // row of the tile from which on sums are there
  int quad[2];  // where the quads begin among these
  int channel;  // of the first, -1: padding

  // octet: of the rows from `first` on.
  template <class Tile>
  __device__ RowOctet(const MoeEpilogueParams& p, const Tile& tile, int first, int octet) : first(first) {
    const bool gated = is_gated(p.activation);
    quad[0] = gated ? octet / 2 * 16 + octet % 2 * 4 : octet * 8;
    quad[1] = quad[0] + (gated ? 8 : 4);
    channel = p.dense.channel_of(tile.first_row + first + quad[0]);
  }

  // The sums of one token: of all shares, added in one order for every run; then scales, bias, activation and weight.
  // unit: the power of two that the dequantiser left.
  template <int kShares, class Tile>
  __device__ void store(const MoeEpilogueParams& p, const Tile& tile, const float* sums, int plane, float unit,
                        int token) const {
    float4 part[2][kShares];
#pragma unroll
    for (int i = 0; i < kShares; ++i) {
      part[0][i] = *reinterpret_cast<const float4*>(sums + i * plane + quad[0]);
      part[1][i] = *reinterpret_cast<const float4*>(sums + i * plane + quad[1]);
    }
    float value[8];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* four = value + 4 * half;
      four[0] = part[half][0].x, four[1] = part[half][0].y, four[2] = part[half][0].z, four[3] = part[half][0].w;
#pragma unroll
      for (int i = 1; i < kShares; ++i) {
        four[0] += part[half][i].x, four[1] += part[half][i].y, four[2] += part[half][i].z, four[3] += part[half][i].w;
      }
    }
    const float token_scale = unit * tile.token_scale[token], weight = tile.weight[token];
    const int out_row = tile.out_row[token];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 scale = *reinterpret_cast<const float4*>(tile.row_scale + first + quad[half]);
      const float4 bias = *reinterpret_cast<const float4*>(tile.row_bias + first + quad[half]);
      float* four = value + 4 * half;
      four[0] = ChannelEpilogue{scale.x, bias.x}(four[0], token_scale);
      four[1] = ChannelEpilogue{scale.y, bias.y}(four[1], token_scale);
      four[2] = ChannelEpilogue{scale.z, bias.z}(four[2], token_scale);
      four[3] = ChannelEpilogue{scale.w, bias.w}(four[3], token_scale);
    }
    activate_octet(p.activation, p.activation_args, value);
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] *= weight;
    if (channel < 0) return;

    const EpilogueParams& dense = p.dense;
    const bool gated = is_gated(p.activation);
    if (dense.vector) {
      uint4 packed;
      packed.x = pack_pair(dense.out_dtype, value[0], value[1]);
      packed.y = pack_pair(dense.out_dtype, value[2], value[3]);
      packed.z = pack_pair(dense.out_dtype, value[4], value[5]);
      packed.w = pack_pair(dense.out_dtype, value[6], value[7]);
      uint16_t* to = static_cast<uint16_t*>(dense.out) + out_row * dense.out_row_stride + channel;
      if (gated)
        *reinterpret_cast<uint2*>(to) = make_uint2(packed.x, packed.y);
      else
        *reinterpret_cast<uint4*>(to) = packed;
    } else {
      const int end = dense.gate_half == 0 || channel >= dense.gate_half ? dense.n : dense.gate_half;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (channel + i < end && !(gated && i >= 4)) store_value(dense, out_row, channel + i, value[i]);
      }
    }
  }
};

// K was split over warps, whose partial sums of all rows and tokens lie in shared memory. By `threads` threads, a
// multiple of the octets.
template <int kShares, int kRows, int kTokens, class Tile>
__device__ void store_moe_partials(const MoeEpilogueParams& p, const Tile& tile, const float* sums, float unit,
                                   int thread, int threads) {
  constexpr int kOctets = kRows / 8, kPitch = kRows + kReductionPad;
  const RowOctet rows(p, tile, 0, thread % kOctets);
#pragma unroll 1
  for (int token = thread / kOctets; token < tile.count; token += threads / kOctets) {
    rows.store<kShares>(p, tile, sums + token * kPitch, kTokens * kPitch, unit, token);
  }
}

}  // namespace humming
