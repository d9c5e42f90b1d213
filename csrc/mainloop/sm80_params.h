// What the main loop of Ampere and Ada is given. No CUDA needed: the host fills and tests it.
#pragma once

#include <cstdint>

#include "mainloop/any_view.h"
#include "mainloop/record_view.h"

namespace humming {

struct Sm80MainloopParams : PackedRecords {
  const uint8_t* x;
  int64_t x_row_bytes;
  int64_t x_bytes;  // of a row that are columns of x
  int tokens;
  const float* token_scales;   // [tokens][records along K], where tokens have groups
  int64_t token_scale_stride;  // of a token
  int stages;                  // of the ring
};

struct Sm80AnyParams : Sm80MainloopParams {
  AnyView any;
};

}  // namespace humming
