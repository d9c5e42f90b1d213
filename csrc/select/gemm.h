// Selection of the dense GEMM among the families that have one: Hopper's, that of Ampere and Ada, and that of any
// format. The first family of which an instance can run the problem has it.
#pragma once

#include <string>
#include <vector>

#include "select/candidate.h"
#include "select/families.h"
#include "select/gemm_any.h"
#include "select/gemm_sm80.h"
#include "select/gemm_sm90.h"

namespace humming {

using GemmInstance = AnyInstance<GemmSm90Columns, GemmSm80Columns, GemmAnyColumns>;

struct GemmChoice {
  GemmInstance instance;
  const TunedRow* row;  // that decided; nullptr: the lowest estimate did
};

const char* cannot_run(GemmInstance instance, const GemmParams& problem, const DeviceInfo& device);

// Measured choices of every family.
struct TunedGemm {
  Table<TunedRow> sm90 = tuned_gemm_sm90();
  Table<TunedRow> sm80 = tuned_gemm_sm80();
};

// Called for every product: builds no strings.
GemmChoice choose_gemm(const GemmParams& problem, const DeviceInfo& device, const TunedGemm& tuned = {});

// Launches an instance that can run the problem.
void launch_gemm(GemmInstance instance, const GemmParams& problem, const DeviceInfo& device, CUstream_st* stream);

// As families::find.
GemmInstance find_gemm(const std::string& name, const DeviceInfo& device);

// The rest is for messages.

// What selection thinks of every instance.
std::vector<Candidate> candidates_gemm(const GemmParams& problem, const DeviceInfo& device);

// What choose_gemm chooses and why, the estimates of all that can run the problem, and the rejections.
std::string explain_gemm(const GemmParams& problem, const DeviceInfo& device, const TunedGemm& tuned = {});

}  // namespace humming
