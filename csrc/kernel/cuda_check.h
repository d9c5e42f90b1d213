// Errors of the CUDA runtime as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include "core/check.h"

// Throws std::runtime_error with the expression, the error's name and CUDA's text if the call fails.
#define HUMMING_CUDA_CHECK(expression)                                                                                 \
  do {                                                                                                                 \
    const cudaError_t humming_error = (expression);                                                                    \
    HUMMING_CHECK(humming_error == cudaSuccess, "humming: " #expression " -> ", cudaGetErrorName(humming_error), ": ", \
                  cudaGetErrorString(humming_error));                                                                  \
  } while (0)
