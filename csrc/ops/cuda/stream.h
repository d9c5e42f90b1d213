// The device and the stream that an op runs on.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime_api.h>

#include "select/gemm_sm90.h"

namespace humming {

// Makes the device of a tensor the current one for as long as it lives.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor& tensor);

  int index() const { return index_; }
  int compute_capability() const;  // major * 10 + minor
  DeviceInfo info() const;
  cudaStream_t stream() const;  // torch's current stream

 private:
  int index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace humming
