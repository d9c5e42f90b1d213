// The register-blocked product of the CPU gemm: acc[token][row] += sum over 64 columns of x[token][column] *
// w[column][row], columns in order, so that a token's sum does not depend on how tokens are blocked.
//
// Written with the compiler's vector types, so that the accumulators stay in registers; vectors as wide as the level
// has, blocks sized for its register count: 6 x 64 of 32 registers (AVX-512), 6 x 16 and 4 x 8 of 16.
#pragma once

#include <cstdint>

#include "layout/weight_desc.h"

namespace humming::HUMMING_CPU_NAMESPACE {

#if defined(__AVX512F__)
inline constexpr int kLanesPerVector = 16, kBlockTokens = 6, kBlockVectors = 4;
#elif defined(__AVX2__)
inline constexpr int kLanesPerVector = 8, kBlockTokens = 6, kBlockVectors = 2;
#else
inline constexpr int kLanesPerVector = 4, kBlockTokens = 4, kBlockVectors = 2;
#endif

typedef float Vector __attribute__((vector_size(kLanesPerVector * sizeof(float))));

// Where there is no fma instruction it would be a library call, a hundred times as dear, and fp32 accumulation does not
// ask for it.
__attribute__((always_inline)) inline Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__FMA__)
  Vector result;
#pragma GCC unroll 16
  for (int i = 0; i < kLanesPerVector; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return result;
#else
  return a * b + c;
#endif
}

// kTokens tokens; rows of x and acc are x_stride and kStripRows apart. w and acc are aligned to vectors.
template <int kTokens, int kVectors>
__attribute__((always_inline)) inline void multiply_block(const float* x, int x_stride, const float* w, float* acc) {
  for (int first = 0; first < kStripRows; first += kVectors * kLanesPerVector) {
    Vector sum[kTokens][kVectors];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        sum[t][v] = *reinterpret_cast<const Vector*>(acc + t * kStripRows + first + v * kLanesPerVector);
      }
    }
    for (int column = 0; column < kHalfK; ++column) {
      Vector weights[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        weights[v] = *reinterpret_cast<const Vector*>(w + column * kStripRows + first + v * kLanesPerVector);
      }
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const Vector value = x[t * x_stride + column] - Vector{};  // the same in all lanes
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sum[t][v] = multiply_add(value, weights[v], sum[t][v]);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        *reinterpret_cast<Vector*>(acc + t * kStripRows + first + v * kLanesPerVector) = sum[t][v];
      }
    }
  }
}

inline void multiply(const float* x, int x_stride, const float* w, int tokens, float* acc) {
  int t = 0;
  for (; t + kBlockTokens <= tokens; t += kBlockTokens) {
    multiply_block<kBlockTokens, kBlockVectors>(x + t * x_stride, x_stride, w, acc + t * kStripRows);
  }
  for (; t < tokens; ++t) {
    multiply_block<1, kStripRows / kLanesPerVector>(x + t * x_stride, x_stride, w, acc + t * kStripRows);
  }
}

}  // namespace humming::HUMMING_CPU_NAMESPACE
