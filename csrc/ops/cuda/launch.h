// From validated parameters to a launch.
#pragma once

#include "instances/instances.h"
#include "kernel/cuda_check.h"
#include "ops/cuda/stream.h"

namespace humming {

// Launches the instance whose columns `match`, on the device and torch's current stream of `tensor`. Allocates nothing
// and does not wait. Throws if this build has no instance for the device, or if the launch fails.
template <class Columns, class Match>
void launch(const char* op, const torch::stable::Tensor& tensor, const typename Columns::Params& params, Match match) {
  const OnDeviceOf device(tensor);
  const int capability = device.compute_capability();
  const Instance<Columns>* instance = find_instance<Columns>(capability, match);
  HUMMING_CHECK(instance != nullptr, op, ": no CUDA instance in this build for cuda:", device.index(),
                " of compute capability ", capability / 10, ".", capability % 10, " (it holds architectures ",
                kCudaArchs, "); move the tensors to the CPU, or build with HUMMING_CUDA_ARCHS set for this GPU");
  instance->launch(params, device.stream());
  HUMMING_CUDA_CHECK(cudaGetLastError());
}

// Families with one instance per architecture.
template <class Columns>
void launch(const char* op, const torch::stable::Tensor& tensor, const typename Columns::Params& params) {
  launch<Columns>(op, tensor, params, [](const Columns&) { return true; });
}

}  // namespace humming
