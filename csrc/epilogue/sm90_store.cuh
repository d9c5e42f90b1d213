// From the consumers' accumulators to the output, for Hopper's dense kernel, where K is not split.
//
// A thread of warp w holds, for 64 packed rows of a row group, rows 16w + g and 16w + g + 8 of tokens 8j + 2t and
// 8j + 2t + 1: sums[4j + 2 * row half + token bit].
#pragma once

#include "epilogue/gemm_epilogue.h"
#include "mainloop/ptx.h"
#include "mainloop/sm90_tile.h"

namespace humming {

// Scaled values of a thread's sums. kTokenScales: tokens may have scales, as 8-bit ones do.
template <bool kTokenScales>
struct SumEpilogue {
  const EpilogueParams& p;
  ChannelEpilogue channel[2];  // of the row halves
  int token;                   // first_token + 2t
  int tokens;

  // What tokens 8j + 2t and 8j + 2t + 1 have.
  using Factors = float2;
  __device__ Factors factors(int j) const {
    if constexpr (!kTokenScales) return {1, 1};
    const int at = token + 8 * j;
    return {at < tokens ? p.token_scale(at) : 1.0f, at + 1 < tokens ? p.token_scale(at + 1) : 1.0f};
  }
  // Of sum 4j + i.
  __device__ float operator()(float sum, int i, const Factors& factors) const {
    if constexpr (kTokenScales) sum *= i % 2 == 0 ? factors.x : factors.y;
    return sum * channel[i / 2].scale + channel[i / 2].bias;
  }
  // Of sums 4j to 4j + 3 of some j one after the other, as pairs of tokens: [j][row half].
  template <int kGroups, class T>
  __device__ void pack(DType type, const T* sums, const Factors (&factors)[kGroups],
                       uint32_t (&packed)[kGroups][2]) const {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      float four[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) four[k] = (*this)(static_cast<float>(sums[4 * i + k]), k, factors[i]);
      packed[i][0] = pack_pair(type, four[0], four[1]);
      packed[i][1] = pack_pair(type, four[2], four[3]);
    }
  }
};

// Where 8 channels of a row of the output lie.
struct Place {
  uint8_t* base;
  uint32_t row_bytes;  // vector: below 2^32

  __device__ Place(const EpilogueParams& p, int channel)
      : base(channel < 0 ? nullptr : static_cast<uint8_t*>(p.out) + 2 * channel),
        row_bytes(static_cast<uint32_t>(2 * p.out_row_stride)) {}
  __device__ bool exists() const { return base != nullptr; }
  __device__ uint16_t* of(int row) const {
    return reinterpret_cast<uint16_t*>(base + uint64_t{row_bytes} * static_cast<uint32_t>(row));
  }
};

// From registers through the warp's staging buffer, which turns them so that neighbouring channels of a token lie side
// by side and leave in 16-byte stores: aligned 16-bit outputs, the case that prefill needs fast. For the tokens of a
// tile that exist, 16 at a time. Nothing is waited for where it is asked for: what the next tokens have is fetched
// before these are staged, and they are stored once the next ones are computed, which is why there are two buffers.
//   value          as SumEpilogue
//   place          of the 8 channels of a lane, which are those of row half lane % 2; of none, if that half stays
//   row(token)     of the output
//   buffer         [token][row half] of 16 bytes. The halves of every other four tokens change places: else eight
//                  tokens, which lie 32 bytes apart, would share half of the banks
template <int kTokens, class T, class Value, class Row>
__device__ void store_vectors(DType type, const T* sums, const Value& value, const Place& place, const Row& row,
                              int count, int lane, uint8_t* staging) {
  constexpr int kGroups = kTokens / 8 < 2 ? 1 : 2;  // of 8 tokens at a time
  constexpr int kBuffer = kGroups * 8 * 32;
  static_assert(2 * kBuffer <= Sm90Tile::kStagingBytes);
  const int mine = lane / 2;
  const uint32_t to_stage = ptx::shared_address(staging) + 32 * (lane % 8) + 16 * (lane / 8 % 2 ^ lane % 8 / 4);
  const uint4* staged = reinterpret_cast<const uint4*>(staging) + (2 * mine + (lane % 2 ^ mine / 4 % 2));

  typename Value::Factors factors[kGroups];
#pragma unroll
  for (int i = 0; i < kGroups; ++i) factors[i] = value.factors(i);
  int next = row(mine % kTokens);
  uint16_t* to;  // of the vector on its way
  uint4 vector;
#pragma unroll
  for (int j = 0; j < kTokens / 8; j += kGroups) {
    if (8 * j >= count) break;
    uint32_t packed[kGroups][2];
    value.template pack<kGroups>(type, sums + 4 * j, factors, packed);
    if (j > 0 && place.exists()) *reinterpret_cast<uint4*>(to) = vector;  // all 16 exist, as there are more
    to = place.of(next);
    if (j + kGroups < kTokens / 8) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) factors[i] = value.factors(j + kGroups + i);
      next = row(8 * (j + kGroups) + mine);
    }
    const int buffer = j / kGroups % 2 * kBuffer;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      ptx::stmatrix_x2_transposed(to_stage + buffer + 256 * i, packed[i][0], packed[i][1]);
    }
    __syncwarp();
    vector = staged[buffer / 16];
  }
  constexpr int kSlice = 8 * kGroups;
  const int last = (count - 1) / kSlice * kSlice + mine;
  if (place.exists() && mine < kSlice && last < count) *reinterpret_cast<uint4*>(to) = vector;
  __syncwarp();  // the buffers are free
}

// Any output, one value at a time. Tiles of many tokens do not have it: it would be most of their code.
template <int kTokens, class T, class Value>
__device__ void store_values(const EpilogueParams& p, const T* sums, const Value& value, const int (&channel)[2]) {
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int token = value.token + i / 4 * 8 + i % 2;
    if (token < value.tokens && channel[i / 2 % 2] >= 0) {
      store_value(p, token, channel[i / 2 % 2], value(static_cast<float>(sums[i]), i % 4, value.factors(i / 4)));
    }
  }
}

inline constexpr int kMaxScalarTokens = 64;

template <int kTokens, bool kTokenScales, class T>
__device__ void store_sums(const EpilogueParams& p, const T* sums, float unit, int first_row, int first_token,
                           int tokens, int lane, uint8_t* staging) {
  const int channel[2] = {p.channel_of(first_row + lane / 4), p.channel_of(first_row + lane / 4 + 8)};
  const SumEpilogue<kTokenScales> value{
      p, {{p, channel[0], unit}, {p, channel[1], unit}}, first_token + lane % 4 * 2, tokens};
  if constexpr (kTokens <= kMaxScalarTokens) {
    if (!p.vector) {
      store_values<kTokens>(p, sums, value, channel);
      return;
    }
  }
  // The 8 channels of a row half are all padding or none: n, and gate and up each, are multiples of 8.
  const Place place(p, p.channel_of(first_row + lane % 2 * 8));
  const auto row = [&](int token) { return first_token + token; };
  store_vectors<kTokens>(p.out_dtype, sums, value, place, row, min(tokens - first_token, kTokens), lane, staging);
}

}  // namespace humming
