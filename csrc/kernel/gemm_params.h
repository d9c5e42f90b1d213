// What the dense GEMM kernels are given. No CUDA needed; select/ fills them.
#pragma once

#include "epilogue/gemm_epilogue.h"
#include "formats/format.h"
#include "layout/weight_desc.h"
#include "mainloop/record_view.h"
#include "mainloop/sm80_params.h"
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

struct GemmSm80Params {
  Sm80MainloopParams mainloop;
  EpilogueParams epilogue;
  int raster;          // token tiles in a row of the grid
  int grid_x, grid_y;  // row tiles * raster, token tiles / raster

  // The tile of a CTA, tokens fastest: CTAs that run side by side share their weights in L2. In the last row of the
  // grid there may be more CTAs than token tiles.
  HUMMING_HD int row_tile(int x) const { return x / raster; }
  HUMMING_HD int token_tile(int x, int y) const { return y * raster + x % raster; }
};

}  // namespace humming
