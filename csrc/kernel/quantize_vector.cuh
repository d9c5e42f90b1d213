// What the kernels that quantise share: a vector of values, its codes, and the scale of a group.
//
//   vector  kValues = 8 neighbouring columns: 16 bytes of 16-bit x, 8 bytes of out (int4: 4)
#pragma once

#include "epilogue/quantize.h"
#include "kernel/device.cuh"
#include "kernel/params.h"

namespace humming {

namespace quantize {

inline constexpr int kValues = 8;

enum class Scope { tensor, row, group };  // what shares a scale; tensor: it is given

// The codes of a vector's quotients, side by side.
template <DType kOut>
__device__ uint2 codes_as(const float (&values)[kValues]) {
  uint32_t pairs[kValues / 2];  // of codes, a byte each
#pragma unroll
  for (int i = 0; i < kValues / 2; ++i) pairs[i] = quantize_pair<kOut>(values[2 * i], values[2 * i + 1]);
  if constexpr (kOut == DType::int4) {
    uint32_t packed = 0;
#pragma unroll
    for (int i = 0; i < kValues / 2; ++i) packed |= uint32_t{pack_int4(pairs[i], pairs[i] >> 8)} << (8 * i);
    return make_uint2(packed, 0);
  }
  return make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}

// Quotients by one scale. bounded: no value is larger than what the scale stands for.
struct Quotients {
  math::Divisor divisor;
  bool multiplies;

  __device__ Quotients(float scale, bool bounded) : divisor(scale), multiplies(bounded && divisor.works) {}

  __device__ uint2 codes(DType out, const float (&values)[kValues]) const {
    float quotients[kValues];
    if (multiplies) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) quotients[i] = divisor.quotient(values[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kValues; ++i) quotients[i] = values[i] / divisor.divisor;
    }
    switch (out) {
      case DType::e4m3: return codes_as<DType::e4m3>(quotients);
      case DType::e5m2: return codes_as<DType::e5m2>(quotients);
      case DType::int8: return codes_as<DType::int8>(quotients);
      default: return codes_as<DType::int4>(quotients);
    }
  }
};

// The codes of a vector to `out`, aligned.
__device__ inline void store_vector(uint8_t* out, DType type, uint2 codes) {
  if (type == DType::int4)
    *reinterpret_cast<uint32_t*>(out) = codes.x;
  else
    *reinterpret_cast<uint2*>(out) = codes;
}

// Where the code of a column of row `row` of out goes; of an even column, if two share a byte.
__device__ inline uint8_t* place_of(const QuantizeParams& p, int64_t row, int64_t column) {
  return p.out + row * p.out_row_bytes + (p.out_dtype == DType::int4 ? column / 2 : column);
}

inline Scope scope_of(const QuantizeParams& p) {
  return p.static_scale != nullptr ? Scope::tensor : p.num_groups > 1 ? Scope::group : Scope::row;
}

// By one block.
__device__ inline void copy_static_scale(const QuantizeParams& p) {
  if (threadIdx.x == 0) *static_cast<float*>(p.scale) = *p.static_scale;
}

// Of the neighbouring lanes that hold a group.
__device__ inline uint32_t largest_of_group(const QuantizeParams& p, uint32_t largest) {
  for (int lanes = 1; lanes < p.group / kValues; lanes *= 2) {
    largest = max(largest, __shfl_xor_sync(kFullWarp, largest, lanes));
  }
  return largest;
}

// Before a kernel reads what the grid ahead writes; where that is something else, nothing.
template <class Config>
__device__ void await(const QuantizeParams& p, Awaits what) {
  if (p.awaits == what) begin_dependent<Config>();
}

// The rows to which the results of a row go, for a whole warp: a lane has one of them. They are asked for together,
// and before anything is stored: behind stores, every load would wait for the one before it.
class Destinations {
 public:
  __device__ Destinations(const RowCopies& copies, int64_t row)
      : copies_(copies), row_(row), mine_(copies.to != nullptr ? load(0) : -1) {}

  // visit(row) by all lanes.
  template <class Visit>
  __device__ void visit(const Visit& visit) const {
    if (copies_.to == nullptr) return visit(row_);
    for (int64_t first = 0; first < copies_.count; first += kWarpSize) {
      const int32_t mine = first == 0 ? mine_ : load(first);
      const int count = static_cast<int>(at_most(copies_.count - first, kWarpSize));
      for (int i = 0; i < count; ++i) {
        const int32_t copy = __shfl_sync(kFullWarp, mine, i);
        if (copies_.has(copy)) visit(int64_t{copy});
      }
    }
  }

 private:
  __device__ int32_t load(int64_t first) const {
    const int64_t i = first + threadIdx.x % kWarpSize;
    return i < copies_.count ? copies_.to[row_ * copies_.count + i] : -1;
  }

  const RowCopies& copies_;
  int64_t row_;
  int32_t mine_;
};

// The scale of a group of a row with largest magnitude `amax`, written by one thread and returned as fp32 to
// all. By whole warps.
__device__ inline float make_scale(const QuantizeParams& p, uint32_t amax, int64_t row, const Destinations& to,
                                   int64_t group, bool write) {
  if (p.scale_dtype == DType::e8m0) {
    const uint8_t code = group_scale_e8m0(amax, p.out_dtype);
    to.visit([&](int64_t out) {
      if (write) static_cast<uint8_t*>(p.scale)[out * p.num_groups + group] = code;
    });
    return e8m0_to_float(code);
  }
  const float scale = group_scale(amax, p.out_dtype);
  const float stored = write && p.row_factors != nullptr ? scale * p.row_factors[row] : scale;
  to.visit([&](int64_t out) {
    if (write) static_cast<float*>(p.scale)[out * p.num_groups + group] = stored;
  });
  return scale;
}

}  // namespace quantize

}  // namespace humming
