// Selection of Hopper's MoE GEMM, as gemm_sm90.h for the dense one.
#pragma once

#include "instances/instances.h"
#include "select/choice.h"
#include "select/device_info.h"
#include "select/moe_problem.h"

namespace humming {

using MoeGemmSm90Instance = Instance<MoeGemmSm90Columns>;

// Why an instance cannot run a problem; nullptr if it can.
const char* cannot_run(const MoeGemmSm90Instance& instance, const MoeProblem& problem, const DeviceInfo& device);

// Estimated time of an instance that can run the problem, in SM cycles; only the order of two means something.
double estimate(const MoeGemmSm90Instance& instance, const MoeProblem& problem, const DeviceInfo& device);

using MoeGemmSm90Choice = Choice<MoeGemmSm90Columns>;

MoeGemmSm90Choice choose_moe_gemm_sm90(const MoeProblem& problem, const DeviceInfo& device,
                                       Table<TunedRow> tuned = tuned_moe_gemm_sm90());

MoeGemmSm90Params params_of(const MoeGemmSm90Instance& instance, const MoeProblem& problem, const DeviceInfo& device);

}  // namespace humming
