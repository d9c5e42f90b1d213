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

// Why an instance cannot run a problem; nullptr if it can.
const char* cannot_run(const GemmSm90Columns& columns, const GemmParams& problem, const DeviceInfo& device);

// An instance and its parameters; `entry` is nullptr if none fits.
struct GemmSm90Plan {
  const Instance<GemmSm90Columns>* entry;
  GemmSm90Params params;
};

// The runnable instance of the lowest estimated time. Called for every product: builds no strings.
GemmSm90Plan plan_gemm_sm90(const GemmParams& problem, const DeviceInfo& device);

// A line for every instance: why it was not chosen for a problem that none fits.
std::string rejections_gemm_sm90(const GemmParams& problem, const DeviceInfo& device);

}  // namespace humming
