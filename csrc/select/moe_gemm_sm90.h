// Selection of Hopper's MoE GEMM, as gemm_sm90.h for the dense one.
#pragma once

#include <string>
#include <vector>

#include "instances/instances.h"
#include "kernel/moe_gemm_params.h"
#include "select/candidate.h"
#include "select/choice.h"
#include "select/device_info.h"

namespace humming {

using MoeGemmSm90Instance = Instance<MoeGemmSm90Columns>;

// What a MoE product wants of an instance. Of the layout "indexed" once its pairs are sorted.
struct MoeProblem {
  GemmParams gemm;
  MoeRows rows;
  MoePairs pairs;
  int64_t expected_rows;  // that experts have together, as far as the host knows
  bool known_routing;     // see MoeParams

  bool gathers() const { return pairs.sorted != nullptr; }  // rows of x, which lie anywhere
};

// As typical_gemm: so many rows, together.
MoeProblem typical_moe_gemm(const WeightDesc& desc, DType x, int64_t rows);

// Where blocks of pairs are sorted (MoeSortParams).
struct MoeWorkspace {
  int32_t *sorted, *offsets, *counts;
  int64_t bytes;  // of all
};
// `base`, at a multiple of 128, may be nullptr to ask only for the bytes.
MoeWorkspace moe_workspace(int64_t experts, int64_t pairs, void* base);

// Why an instance cannot run a problem; nullptr if it can.
const char* cannot_run(const MoeGemmSm90Instance& instance, const MoeProblem& problem, const DeviceInfo& device);

// Estimated time of an instance that can run the problem, in SM cycles; only the order of two means something.
double estimate_moe_gemm_sm90(const MoeGemmSm90Instance& instance, const MoeProblem& problem, const DeviceInfo& device);

using MoeGemmSm90Choice = Choice<MoeGemmSm90Columns>;

MoeGemmSm90Choice choose_moe_gemm_sm90(const MoeProblem& problem, const DeviceInfo& device,
                                       Table<TunedRow> tuned = tuned_moe_gemm_sm90());

// The instance of this name; throws, naming the nearest ones, if this build has none.
const MoeGemmSm90Instance& find_moe_gemm_sm90(const std::string& name);

MoeGemmSm90Params params_moe_gemm_sm90(const MoeGemmSm90Instance& instance, const MoeProblem& problem,
                                       const DeviceInfo& device);

// The rest is for messages, as in gemm.h.
std::vector<Candidate> candidates_moe_gemm_sm90(const MoeProblem& problem, const DeviceInfo& device);
std::string explain_moe_gemm_sm90(const MoeProblem& problem, const DeviceInfo& device,
                                  Table<TunedRow> tuned = tuned_moe_gemm_sm90());

}  // namespace humming
