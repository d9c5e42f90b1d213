#include "kernel/tensor_map.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

#include "kernel/cuda_check.h"

namespace humming {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// Asked of the driver at run time: linking to libcuda.so would keep the library from loading without a GPU.
Encode encode_function() {
  static const Encode function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
    HUMMING_CUDA_CHECK(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result));
    HUMMING_CHECK(entry != nullptr, "humming: this CUDA driver has no cuTensorMapEncodeTiled; update it");
    return reinterpret_cast<Encode>(entry);
  }();
  return function;
}

}  // namespace

CUtensorMap token_map(const void* x, int64_t row_bytes, int64_t rows, int64_t k, int value_bytes, int box_rows,
                      int blocks) {
  const cuuint64_t block = 128 / value_bytes;
  const bool whole = k % block == 0;
  const cuuint64_t extent[3] = {whole ? block : static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows),
                                whole ? k / block : 1};
  const cuuint64_t stride[2] = {static_cast<cuuint64_t>(row_bytes), 128};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(block), static_cast<cuuint32_t>(box_rows),
                             whole ? static_cast<cuuint32_t>(blocks) : 1};
  const cuuint32_t step[3] = {1, 1, 1};
  const CUtensorMapDataType type = value_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  CUtensorMap map;
  const CUresult error = encode_function()(&map, type, 3, const_cast<void*>(x), extent, stride, box, step,
                                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  HUMMING_CHECK(error == CUDA_SUCCESS, "humming: cuTensorMapEncodeTiled -> ", static_cast<int>(error), " for x [", rows,
                ", ", k, "] with a row pitch of ", row_bytes, " bytes");
  return map;
}

void allow_shared_memory(const void* kernel, int bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> allowed;  // kernel, device -> bytes
  int device = 0;
  HUMMING_CUDA_CHECK(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  int& limit = allowed[{kernel, device}];
  if (bytes <= limit) return;
  HUMMING_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  limit = bytes;
}

}  // namespace humming
