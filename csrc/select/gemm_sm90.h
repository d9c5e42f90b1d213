// What lives in csrc/select: which kernel instance runs a problem, and with what parameters. What may not: CUDA calls,
// torch.
//
// This file: Hopper's dense GEMM.
#pragma once

#include "instances/instances.h"
#include "kernel/gemm_params.h"
#include "kernel/params.h"
#include "select/choice.h"
#include "select/device_info.h"
#include "select/tuned.h"

namespace humming {

// A call with contiguous, aligned rows, a scale per token and a bf16 result: what plans are made for.
GemmParams typical_gemm(const WeightDesc& desc, DType x, int64_t tokens);

using GemmSm90Instance = Instance<GemmSm90Columns>;

// Why an instance cannot run a problem; nullptr if it can.
const char* cannot_run(const GemmSm90Instance& instance, const GemmParams& problem, const DeviceInfo& device);

// Estimated time of an instance that can run the problem, in SM cycles; only the order of two means something.
double estimate(const GemmSm90Instance& instance, const GemmParams& problem, const DeviceInfo& device);

using GemmSm90Choice = Choice<GemmSm90Columns>;

// Called for every product: builds no strings.
GemmSm90Choice choose_gemm_sm90(const GemmParams& problem, const DeviceInfo& device,
                                Table<TunedRow> tuned = tuned_gemm_sm90());

// What an instance that can run the problem is launched with.
GemmSm90Params params_of(const GemmSm90Instance& instance, const GemmParams& problem, const DeviceInfo& device);

}  // namespace humming
