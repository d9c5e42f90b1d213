// What the small kernels share: values of tensors by storage type, launch extents, and launches that follow one another
// closely.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/float_codec.h"
#include "kernel/cuda_check.h"
#include "mainloop/ptx.h"

namespace humming {

inline constexpr int kMaxWarps = 32;  // of a block
inline constexpr int kVectorBytes = 16;

inline constexpr int64_t kMaxGridX = 2147483647;
inline constexpr int64_t kMaxGridY = 65535;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }

inline bool is_aligned(const void* pointer, int64_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// An element of the types fp32, bf16 or fp16, in the low bits of a word, as fp32.
template <DType kType>
__device__ float to_float(uint32_t bits) {
  if constexpr (kType == DType::fp32) return float_from_bits(bits);
  if constexpr (kType == DType::bf16) return bf16_to_float(static_cast<uint16_t>(bits));
  if constexpr (kType == DType::fp16) return fp16_to_float(static_cast<uint16_t>(bits));
}
template <DType kType>
__device__ uint32_t from_float(float value) {
  if constexpr (kType == DType::fp32) return bits_from_float(value);
  if constexpr (kType == DType::bf16) return float_to_bf16(value);
  if constexpr (kType == DType::fp16) return float_to_fp16(value);
}

// A 16-byte vector of elements as they lie.
template <DType kType>
struct Vector {
  static constexpr int kBits = dtype_bits(kType);
  static constexpr int kSize = 8 * kVectorBytes / kBits;
  uint32_t words[4] = {};

  __device__ void load(const uint8_t* from) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from);
    words[0] = raw.x;
    words[1] = raw.y;
    words[2] = raw.z;
    words[3] = raw.w;
  }
  __device__ float operator[](int i) const { return to_float<kType>(words[i * kBits / 32] >> i * kBits % 32); }

  __device__ static void store(uint8_t* to, const float (&values)[kSize]) {
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < kSize; ++i) words[i * kBits / 32] |= from_float<kType>(values[i]) << i * kBits % 32;
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  }
};

// Element `index` of a tensor of fp32, bf16 or fp16.
template <DType kType>
__device__ float load_element(const void* data, int64_t index) {
  if constexpr (kType == DType::fp32) return static_cast<const float*>(data)[index];
  return to_float<kType>(static_cast<const uint16_t*>(data)[index]);
}

template <DType kType>
__device__ void store_element(void* data, int64_t index, float value) {
  if constexpr (kType == DType::fp32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] = static_cast<uint16_t>(from_float<kType>(value));
  }
}

// Element `index` of a tensor of int32 or int64.
__device__ inline int64_t load_integer(const void* data, DType type, int64_t index) {
  return type == DType::int64 ? static_cast<const int64_t*>(data)[index] : static_cast<const int32_t*>(data)[index];
}

// Programmatic dependent launch, on the GPUs that have it: the kernel may begin before the grid ahead of it has ended.
template <class Config, class... Params>
void launch_dependent(void (*kernel)(Params...), dim3 blocks, unsigned threads, size_t shared_bytes,
                      cudaStream_t stream, const Params&... params) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = Config::kArch >= 90 ? 1 : 0;
  HUMMING_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, params...));
}

// The first thing that such a kernel does: waits for the grid ahead, and lets the next one begin.
template <class Config>
__device__ void begin_dependent() {
  if constexpr (Config::kArch >= 90) {
    ptx::wait_for_dependencies();
    ptx::launch_dependents();
  }
}

}  // namespace humming
