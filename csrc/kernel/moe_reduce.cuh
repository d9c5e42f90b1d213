// Weighted sum of the top_k expert outputs of every token.
//
//   grid    x: tokens, y: stretches of kThreads vectors along `hidden`; both strided, so that any extent fits
//   thread  one 16-byte vector of out (one element where a row is not 16-byte aligned)
//   y       (tokens, top_k, hidden), or (rows, hidden), where ids say which;  weights, ids (tokens, top_k);
//           add, out (tokens, hidden)
//
// Slots are added in order, in fp32; rows of a few are asked for before the first is added. Where the rows are and what
// they are multiplied by, the lanes of a warp ask for together, and where only y is of the grid ahead, before that has
// ended. A slot with id < 0, and every row from num_valid_tokens on, is not read: it may hold anything.
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

// Slots first .. first + 31 of a token, of which a lane has one.
struct Slots {
  int64_t row;  // where it begins in y; -1: not read
  float weight;

  __device__ Slots(const MoeReduceParams& p, int64_t token, int64_t first) : row(-1), weight(1) {
    const int64_t slot = first + threadIdx.x % kWarpSize, pair = token * p.top_k + slot;
    if (slot >= p.top_k) return;
    const int64_t id = p.ids != nullptr ? load_integer(p.ids, p.id_dtype, pair) : 0;
    if (p.weights != nullptr) weight = p.weights[pair];
    if (id < 0) return;
    row = p.y_by_id ? id * p.y_slot_stride : token * p.y_token_stride + slot * p.y_slot_stride;
  }
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
  if (p.awaits == Awaits::all) begin_dependent<Config>();
  const auto at = [](const void* data, int64_t index) {
    return static_cast<const uint8_t*>(data) + index * dtype_bits(kType) / 8;
  };
  const int64_t valid = p.num_valid_tokens != nullptr ? *p.num_valid_tokens : p.tokens;
  const int64_t stretch = int64_t{kThreads} * kSize;

  for (int64_t token = blockIdx.x; token < p.tokens; token += gridDim.x) {
    Slots held(p, token, 0);
    if (p.awaits == Awaits::values) begin_dependent<Config>();
    // Whole warps share what their lanes hold, also those past the end of a row.
    for (int64_t base = blockIdx.y * stretch; base < p.hidden; base += gridDim.y * stretch) {
      const int64_t column = base + threadIdx.x * kSize;
      const bool is_column = column < p.hidden;
      float sum[kSize] = {};
      for (int64_t first = 0; first < p.top_k && token < valid; first += kWarpSize) {
        if (p.top_k > kWarpSize) held = Slots(p, token, first);
        const int count = static_cast<int>(at_most(p.top_k - first, kWarpSize));
        for (int next = 0; next < count; next += kAtOnce) {
          Values rows[kAtOnce];
          int64_t row[kAtOnce];
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {  // past the last slot the lanes hold none: next + i is at most 31
            row[i] = __shfl_sync(kFullWarp, held.row, next + i);
            if (row[i] >= 0 && is_column) rows[i].load(at(p.y, row[i] + column));
          }
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const float weight = __shfl_sync(kFullWarp, held.weight, next + i);
            if (row[i] < 0) continue;
#pragma unroll
            for (int j = 0; j < kSize; ++j) sum[j] = reduce_accumulate(sum[j], weight, rows[i][j]);
          }
        }
      }
      if (!is_column) continue;
      if (token < valid) {
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
