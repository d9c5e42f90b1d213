// Measured choices. csrc/select/tuned/h200.csv has the rows, cmake/generate_tuned.py turns them into the table; they
// serve every device that runs their instances.
#pragma once

#include <cstdint>

#include "instances/instances.h"

namespace humming {

// Of the instances that can run `tokens` rows on an n x k weight this one was the fastest.
struct TunedRow {
  int instance;  // its place in instances<GemmSm90Columns>()
  int64_t n, k, tokens;
  float us;
};

// In the order of the instances.
Table<TunedRow> tuned_gemm_sm90();

}  // namespace humming
