// What the dense GEMM kernels are given. No CUDA needed; select/ fills them.
#pragma once

#include "epilogue/gemm_epilogue.h"
#include "formats/format.h"
#include "layout/weight_desc.h"
#include "mainloop/record_view.h"
#include "mainloop/sm90_params.h"

namespace humming {

struct GemmSm90Params {
  Sm90MainloopParams mainloop;
  EpilogueParams epilogue;
  const void* x;
  int64_t x_row_bytes;
  int raster;    // token tiles per raster group: tiles of a group share their weights in L2
  int num_ctas;  // of the grid, whole clusters
};

}  // namespace humming
