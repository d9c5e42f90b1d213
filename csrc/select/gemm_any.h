// Selection of the product of weights of any format, as moe_gemm_sm80.h: the last resort, of dense products too.
#pragma once

#include "instances/instances.h"
#include "select/device_info.h"
#include "select/moe_problem.h"

namespace humming {

using GemmAnyInstance = Instance<GemmAnyColumns>;

// Why an instance cannot run a problem; nullptr if it can.
const char* cannot_run(const GemmAnyInstance& instance, const MoeProblem& problem, const DeviceInfo& device);

// Estimated time of an instance that can run the problem, in SM cycles; only the order of two means something.
double estimate(const GemmAnyInstance& instance, const MoeProblem& problem, const DeviceInfo& device);

// The instance of the lowest estimate; nullptr if none can run it.
const GemmAnyInstance* choose_gemm_any(const MoeProblem& problem, const DeviceInfo& device);

GemmAnyParams params_of(const GemmAnyInstance& instance, const MoeProblem& problem, const DeviceInfo& device);

// Of dense products, which are those of a single expert.
const char* cannot_run(const GemmAnyInstance& instance, const GemmParams& problem, const DeviceInfo& device);
double estimate(const GemmAnyInstance& instance, const GemmParams& problem, const DeviceInfo& device);
const GemmAnyInstance* choose_gemm_any(const GemmParams& problem, const DeviceInfo& device);
GemmAnyParams params_of(const GemmAnyInstance& instance, const GemmParams& problem, const DeviceInfo& device);

}  // namespace humming
