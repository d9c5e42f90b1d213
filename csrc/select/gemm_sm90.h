// What lives in csrc/select: which kernel instance runs a problem, and with what parameters. What may not: CUDA calls,
// torch.
//
// This file: Hopper's dense GEMM.
#pragma once

#include <string>

#include "instances/instances.h"
#include "kernel/gemm_params.h"
#include "kernel/params.h"

namespace humming {

// The facts of a GPU that selection uses.
struct DeviceInfo {
  int capability;  // major * 10 + minor
  int num_sms;
  int shared_per_block;  // bytes a block may have, opted in
  int shared_per_sm;
};

using GemmSm90Instance = Instance<GemmSm90Columns>;

// Why an instance cannot run a problem; nullptr if it can.
const char* cannot_run(const GemmSm90Instance& instance, const GemmParams& problem, const DeviceInfo& device);

// The runnable instance of the lowest estimated time; nullptr if none can run. Called for every product: builds no
// strings.
const GemmSm90Instance* choose_gemm_sm90(const GemmParams& problem, const DeviceInfo& device);

// What an instance that can run the problem is launched with.
GemmSm90Params params_gemm_sm90(const GemmSm90Instance& instance, const GemmParams& problem, const DeviceInfo& device);

// The instance of this name; throws, naming the nearest ones, if this build has none.
const GemmSm90Instance& find_gemm_sm90(const std::string& name);

// A line for every instance that cannot run a problem: why.
std::string rejections_gemm_sm90(const GemmParams& problem, const DeviceInfo& device);

}  // namespace humming
