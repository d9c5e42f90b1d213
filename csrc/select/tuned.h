// Measured choices. csrc/select/tuned/h200.csv has the rows, cmake/generate_tuned.py turns them into the table; they
// serve every device that runs their instances.
#pragma once

#include <cstdint>

#include "instances/instances.h"

namespace humming {

// Of the instances that can run `tokens` rows, those of all experts together, on n x k weights this one was the
// fastest.
struct TunedRow {
  int instance;                   // its place among the instances of its family
  int64_t n, k, experts, tokens;  // experts 0: dense
  float us;
};

// In the order of the instances.
Table<TunedRow> tuned_gemm_sm80();
Table<TunedRow> tuned_gemm_sm90();
Table<TunedRow> tuned_moe_gemm_sm80();
Table<TunedRow> tuned_moe_gemm_sm90();

}  // namespace humming
