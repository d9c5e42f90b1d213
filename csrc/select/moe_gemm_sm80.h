// Selection of the MoE GEMM of Ampere and Ada, as moe_gemm_sm90.h for Hopper's.
#pragma once

#include "instances/instances.h"
#include "select/choice.h"
#include "select/device_info.h"
#include "select/moe_problem.h"

namespace humming {

using MoeGemmSm80Instance = Instance<MoeGemmSm80Columns>;

// Why an instance cannot run a problem; nullptr if it can.
const char* cannot_run(const MoeGemmSm80Instance& instance, const MoeProblem& problem, const DeviceInfo& device);

// Estimated time of an instance that can run the problem, in SM cycles; only the order of two means something.
double estimate(const MoeGemmSm80Instance& instance, const MoeProblem& problem, const DeviceInfo& device);

using MoeGemmSm80Choice = Choice<MoeGemmSm80Columns>;

MoeGemmSm80Choice choose_moe_gemm_sm80(const MoeProblem& problem, const DeviceInfo& device,
                                       Table<TunedRow> tuned = tuned_moe_gemm_sm80());

MoeGemmSm80Params params_of(const MoeGemmSm80Instance& instance, const MoeProblem& problem, const DeviceInfo& device);

}  // namespace humming
