// Selection of the MoE GEMM among the families that have one, as gemm.h for the dense one.
#pragma once

#include <string>
#include <vector>

#include "select/candidate.h"
#include "select/families.h"
#include "select/gemm_any.h"
#include "select/moe_gemm_sm80.h"
#include "select/moe_gemm_sm90.h"

namespace humming {

using MoeGemmInstance = AnyInstance<MoeGemmSm90Columns, MoeGemmSm80Columns, GemmAnyColumns>;

struct MoeGemmChoice {
  MoeGemmInstance instance;
  const TunedRow* row;  // that decided; nullptr: the lowest estimate did
};

const char* cannot_run(MoeGemmInstance instance, const MoeProblem& problem, const DeviceInfo& device);

// Called for every product: builds no strings.
MoeGemmChoice choose_moe_gemm(const MoeProblem& problem, const DeviceInfo& device);

// Launches an instance that can run the problem.
void launch_moe_gemm(MoeGemmInstance instance, const MoeProblem& problem, const DeviceInfo& device,
                     CUstream_st* stream);

// As families::find.
MoeGemmInstance find_moe_gemm(const std::string& name, const DeviceInfo& device);

// The rest is for messages, as in gemm.h.
std::vector<Candidate> candidates_moe_gemm(const MoeProblem& problem, const DeviceInfo& device);
std::string explain_moe_gemm(const MoeProblem& problem, const DeviceInfo& device);

}  // namespace humming
