// Selection of the dense GEMM of Ampere and Ada, as gemm_sm90.h for Hopper's.
#pragma once

#include "instances/instances.h"
#include "kernel/gemm_params.h"
#include "kernel/params.h"
#include "select/choice.h"
#include "select/device_info.h"
#include "select/tuned.h"

namespace humming {

using GemmSm80Instance = Instance<GemmSm80Columns>;

// Why an instance cannot run a problem; nullptr if it can.
const char* cannot_run(const GemmSm80Instance& instance, const GemmParams& problem, const DeviceInfo& device);

// Estimated time of an instance that can run the problem, in SM cycles; only the order of two means something.
double estimate(const GemmSm80Instance& instance, const GemmParams& problem, const DeviceInfo& device);

using GemmSm80Choice = Choice<GemmSm80Columns>;

// Called for every product: builds no strings.
GemmSm80Choice choose_gemm_sm80(const GemmParams& problem, const DeviceInfo& device,
                                Table<TunedRow> tuned = tuned_gemm_sm80());

// What an instance that can run the problem is launched with.
GemmSm80Params params_of(const GemmSm80Instance& instance, const GemmParams& problem, const DeviceInfo& device);

}  // namespace humming
