// The MoE layer as a sequence of the ops of one device.
#pragma once

#include "ops/checks.h"

namespace humming {

struct LayerOps {
  void (*quantize)(const Tensor&, const QuantizeParams&);
  void (*align)(const Tensor&, const MoeAlignParams&);
  void (*product)(const Tensor&, const MoeParams&);
  void (*reduce)(const Tensor&, const MoeReduceParams&);
};

inline void run_fused_moe(const LayerOps& ops, const Tensor& x, const FusedMoeParams& params) {
  if (params.gate_up.gemm.rows == 0) return;
  const bool routes = params.align.num_pairs > 0;  // the layout indexed
  if (routes) ops.align(x, params.align);
  if (params.quantize_x.rows > 0) ops.quantize(x, params.quantize_x);
  ops.product(x, params.gate_up);
  if (params.quantize_h.rows > 0) ops.quantize(x, params.quantize_h);
  ops.product(x, params.down);
  if (routes) ops.reduce(x, params.reduce);
}

}  // namespace humming
