// Weighted sum of the top_k expert outputs of every token.
//
//   grid    x: tokens, y: stretches of kThreads vectors along `hidden`; both strided, so that any extent fits
//   thread  one 16-byte vector of out (one element where a row is not 16-byte aligned)
//   y       (tokens, top_k, hidden), or (rows, hidden), where ids say which;  weights, ids (tokens, top_k);
//           add, out (tokens, hidden)
//
// Slots are added in order, in fp32; those of a few are asked for before the first is added. A slot with id < 0, and
// every row from num_valid_tokens on, is not read: it may hold anything.
#pragma once

#include <type_traits>

#include "epilogue/reduce.h"
#include "kernel/device.cuh"
#include "kernel/params.h"

namespace humming {

namespace moe_reduce {

inline constexpr int kThreads = 256;
inline constexpr int kBlocks = 4;  // per SM; without this bound ptxas may spill a few bytes to fit more
inline constexpr int kAtOnce = 4;  // slots

// One element, where rows are not vectors.
template <DType kType>
struct Element {
  float value = 0;

  __device__ void load(const uint8_t* from) { value = load_element<kType>(from, 0); }
  __device__ float operator[](int) const { return value; }
};

template <DType kType, int kSize>
__device__ void store(void* data, int64_t index, const float (&values)[kSize]) {
  if constexpr (kSize == 1) {
    store_element<kType>(data, index, values[0]);
  } else {
    Vector<kType>::store(static_cast<uint8_t*>(data) + index * dtype_bits(kType) / 8, values);
  }
}

}  // namespace moe_reduce

template <class Config, DType kType, int kSize>
__global__ void __launch_bounds__(moe_reduce::kThreads, moe_reduce::kBlocks)
    moe_reduce_kernel(const __grid_constant__ MoeReduceParams p) {
  using namespace moe_reduce;
  using Values = std::conditional_t<kSize == 1, Element<kType>, Vector<kType>>;
  begin_dependent<Config>();
  const auto at = [](const void* data, int64_t index) {
    return static_cast<const uint8_t*>(data) + index * dtype_bits(kType) / 8;
  };
  const int64_t valid = p.num_valid_tokens != nullptr ? *p.num_valid_tokens : p.tokens;
  const int64_t first = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kSize;
  const int64_t step = int64_t{gridDim.y} * kThreads * kSize;

  for (int64_t token = blockIdx.x; token < p.tokens; token += gridDim.x) {
    for (int64_t column = first; column < p.hidden; column += step) {
      float sum[kSize] = {};
      if (token < valid) {
        for (int64_t base = 0; base < p.top_k; base += kAtOnce) {
          Values slots[kAtOnce];
          float weights[kAtOnce];
          bool exists[kAtOnce];
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const int64_t slot = base + i, pair = token * p.top_k + slot;
            int64_t id = slot < p.top_k ? 0 : -1;
            if (slot < p.top_k && p.ids != nullptr) id = load_integer(p.ids, p.id_dtype, pair);
            exists[i] = id >= 0;
            weights[i] = slot < p.top_k && p.weights != nullptr ? p.weights[pair] : 1.0f;
            const int64_t row = p.y_by_id ? id * p.y_slot_stride : token * p.y_token_stride + slot * p.y_slot_stride;
            if (exists[i]) slots[i].load(at(p.y, row + column));
          }
#pragma unroll
          for (int slot = 0; slot < kAtOnce; ++slot) {
            if (!exists[slot]) continue;
#pragma unroll
            for (int i = 0; i < kSize; ++i) sum[i] = reduce_accumulate(sum[i], weights[slot], slots[slot][i]);
          }
        }
        Values add;
        if (p.add != nullptr) add.load(at(p.add, token * p.add_row_stride + column));
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          sum[i] = p.add != nullptr ? reduce_finish(sum[i], p.scale, add[i]) : reduce_finish(sum[i], p.scale);
        }
      }
      store<kType>(p.out, token * p.out_row_stride + column, sum);
    }
  }
}

namespace moe_reduce {

template <class Config, DType kType, int kSize>
void launch(const MoeReduceParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(at_most(p.tokens, kMaxGridX)),
                  static_cast<unsigned>(at_most(ceil_div(p.hidden, kThreads * kSize), kMaxGridY)));
  launch_dependent<Config>(moe_reduce_kernel<Config, kType, kSize>, grid, kThreads, 0, stream, p);
}

template <class Config, DType kType>
void launch(const MoeReduceParams& p, cudaStream_t stream) {
  constexpr int kSize = Vector<kType>::kSize;
  const auto whole_vectors = [](int64_t elements) { return elements % kSize == 0; };
  const bool vectors = whole_vectors(p.hidden) && whole_vectors(p.y_token_stride) && whole_vectors(p.y_slot_stride) &&
                       whole_vectors(p.out_row_stride) && (p.add == nullptr || whole_vectors(p.add_row_stride)) &&
                       is_aligned(p.y, kVectorBytes) && is_aligned(p.out, kVectorBytes) &&
                       is_aligned(p.add, kVectorBytes);
  vectors ? launch<Config, kType, kSize>(p, stream) : launch<Config, kType, 1>(p, stream);
}

}  // namespace moe_reduce

template <class Config>
void launch_moe_reduce(const MoeReduceParams& p, cudaStream_t stream) {
  if (p.tokens == 0 || p.hidden == 0) return;
  switch (p.dtype) {
    case DType::bf16: return moe_reduce::launch<Config, DType::bf16>(p, stream);
    case DType::fp16: return moe_reduce::launch<Config, DType::fp16>(p, stream);
    default: return moe_reduce::launch<Config, DType::fp32>(p, stream);
  }
}

}  // namespace humming
