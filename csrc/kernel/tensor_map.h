// Host side of tensor copies and large shared memory.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace humming {

// Tensor map of tokens [rows, k] of 1- or 2-byte values for copies of [blocks][box_rows][128 bytes], 128-byte swizzle,
// rows and columns past the end read as zeros. Where k is a multiple of a block (128 bytes) its third dimension is the
// block and one copy brings `blocks` of them; else it is [rows, k] and one copy brings one block.
// `x` is 16-byte aligned, row_bytes a multiple of 16. Throws std::runtime_error with the driver's error.
CUtensorMap token_map(const void* x, int64_t row_bytes, int64_t rows, int64_t k, int value_bytes, int box_rows,
                      int blocks);

// Raises a kernel's dynamic shared memory limit on the current device, once.
void allow_shared_memory(const void* kernel, int bytes);

}  // namespace humming
