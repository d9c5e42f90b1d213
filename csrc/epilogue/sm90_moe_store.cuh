// From the consumers' accumulators to the output, for Hopper's MoE kernel: sm90_store.cuh with an activation, which
// takes gate and up from the two rows of a thread, a weight per row, and rows of the output in any order.
#pragma once

#include "epilogue/moe_epilogue.h"
#include "epilogue/sm90_store.cuh"

namespace humming {

// The results of 16 rows of weights for the tokens of a work item.
template <int kTokens, class T>
struct MoeStore {
  static constexpr int kEights = kTokens < 16 ? 1 : 2;  // of tokens at a time
  static constexpr int kPitch = Sm90Tile::kStagingRowBytes;

  const MoeEpilogueParams& p;
  const EpilogueParams& dense;
  ChannelEpilogue channel[2];  // of the thread's two rows
  int first, end;              // rows of x
  bool gated;

  __device__ int out_row(int token) const { return p.out_rows != nullptr ? p.out_rows[token] : token; }

  // Results of tokens 8j + 2t and 8j + 2t + 1: [row half][token], of gated activations in the first half.
  __device__ void results(const T* sums, int j, int lane, float (&out)[2][2]) const {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int token = first + 8 * j + lane % 4 * 2 + b;
      const bool exists = token < end;
      const float token_scale = exists ? dense.token_scale(token) : 1.0f;
      const float low = channel[0](static_cast<float>(sums[4 * j + b]), token_scale);
      const float high = channel[1](static_cast<float>(sums[4 * j + 2 + b]), token_scale);
      out[0][b] = activate(p.activation, p.activation_args, low, high);
      out[1][b] = gated ? 0.0f : activate(p.activation, p.activation_args, high, 0.0f);
      if (p.row_weights != nullptr && exists) {
        const float weight = p.row_weights[out_row(token)];
        out[0][b] *= weight;
        out[1][b] *= weight;
      }
    }
  }

  // 16-bit outputs whose 8 channels lie aligned: through the warp's staging buffer, sixteen tokens at a time. With
  // gated activations a token has one vector, else two.
  __device__ void vectors(const T* sums, int first_row, int lane, uint8_t* staging) const {
    const uint32_t address = ptx::shared_address(staging);
    const int vectors = gated ? 1 : 2;
    const int column = dense.channel_of(first_row + lane % vectors * 8);
#pragma unroll
    for (int j = 0; j < kTokens / 8; j += kEights) {
      if (first + 8 * j >= end) break;
      uint32_t packed[2][2] = {};  // [eight tokens][row half]
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        float value[2][2];
        results(sums, j + i, lane, value);
        packed[i][0] = pack_pair(dense.out_dtype, value[0][0], value[0][1]);
        packed[i][1] = pack_pair(dense.out_dtype, value[1][0], value[1][1]);
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
      const int token = first + 8 * j + lane / vectors;
      if (lane < 8 * kEights * vectors && token < end && column >= 0) {
        uint16_t* to = static_cast<uint16_t*>(dense.out) + out_row(token) * dense.out_row_stride + column;
        *reinterpret_cast<uint4*>(to) =
            *reinterpret_cast<const uint4*>(staging + lane / vectors * kPitch + lane % vectors * 16);
      }
      __syncwarp();
    }
  }

  // Any output, one value at a time.
  __device__ void values(const T* sums, const int (&column)[2], int lane) const {
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      float value[2][2];
      results(sums, j, lane, value);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = first + 8 * j + lane % 4 * 2 + i % 2;
        const bool stored = token < end && column[i / 2] >= 0 && !(gated && i / 2 == 1);
        if (stored) store_value(dense, out_row(token), column[i / 2], value[i / 2][i % 2]);
      }
    }
  }
};

// `sums` of the 16 packed rows from first_row on, for rows first .. end - 1 of x.
template <int kTokens, class T>
__device__ void store_moe_sums(const MoeEpilogueParams& p, const T* sums, float unit, int expert, int first_row,
                               int first, int end, int lane, uint8_t* staging) {
  const EpilogueParams dense = p.of_expert(expert);
  const int channel[2] = {dense.channel_of(first_row + lane / 4), dense.channel_of(first_row + lane / 4 + 8)};
  const MoeStore<kTokens, T> store{p,     dense, {{dense, channel[0], unit}, {dense, channel[1], unit}},
                                   first, end,   is_gated(p.activation)};
  if constexpr (kTokens <= kMaxScalarTokens) {
    if (!dense.vector) {
      store.values(sums, channel, lane);
      return;
    }
  }
  store.vectors(sums, first_row, lane, staging);
}

}  // namespace humming
