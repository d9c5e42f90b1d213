// The product of weights of any format, with experts or without, on every GPU: the MoE kernel of Ampere and Ada with
// weights that are told apart at run time. It is there for what has no kernel of its own, and is slow.
#pragma once

#include "kernel/moe_gemm_sm80.cuh"

namespace humming {

namespace gemm_any {

template <class Config>
struct Any : Config {
  static constexpr bool kExperts = true, kAny = true;
  static constexpr ScaleMode kScaleMode =
      order_of(Config::kOperand) == Order::k16 ? ScaleMode::operand : ScaleMode::accumulator;
};
template <class Config>
using GemmOf = Sm80Gemm<Any<Config>>;

template <class Config>
__global__ __launch_bounds__(GemmOf<Config>::tile().threads(),
                             Config::kCtas) void gemm_any_kernel(const __grid_constant__ GemmAnyParams p) {
  moe_gemm_sm80::multiply_tiles<GemmOf<Config>>(p);
}

}  // namespace gemm_any

template <class Config>
void launch_gemm_any(const GemmAnyParams& p, cudaStream_t stream) {
  using namespace gemm_any;
  moe_gemm_sm80::launch<GemmOf<Config>>(&gemm_any_kernel<Config>, p, stream);
}

}  // namespace humming
