// What the Hopper main loop is given. No CUDA needed: the host fills and tests it.
#pragma once

#include <cstdint>

#include "mainloop/record_view.h"

namespace humming {

struct Sm90MainloopParams : PackedRecords {
  const float* token_scales;   // [tokens][records along K], where tokens have groups
  int64_t token_scale_stride;  // of a token
  int64_t k;                   // columns of x
  int tokens;
  bool gathers_tokens;    // with experts: rows of x lie anywhere (Sm90Stage::kCopiesRows)
  int token_rows;         // of a token tile in shared memory
  int stages;             // of the ring
  int early_stages;       // of weights, asked for before the grid ahead has ended; at most `stages`
  bool dependent_launch;  // launched before the grid ahead of it has ended (programmatic dependent launch)
};

}  // namespace humming
