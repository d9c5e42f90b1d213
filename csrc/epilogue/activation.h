// Activation functions of the MoE epilogue and of the quantiser, in fp32; with Sigmoid::exact the same bits on CPU and
// GPU.
//
//   gated (gate, up -> one value)             plain (one value -> one value)
//   swiglu     g * sigmoid(alpha g) * (u + beta)     silu_no_mul       v * sigmoid(v)
//   gelu       gelu(gate) * up                       gelu_no_mul       v * Phi(v), Phi(v) = erfc(-v / sqrt 2) / 2
//   gelu_tanh  gelu_tanh(gate) * up                  gelu_tanh_no_mul  v * sigmoid(2 sqrt(2 / pi) (v + 0.044715 v^3))
//   relu2      max(gate, 0)^2 * up                   relu2_no_mul      max(v, 0)^2
//
// swiglu: g = min(gate, limit), u = clamp(up, -limit, limit) if limit > 0. "gelu_tanh" uses (1 + tanh z) / 2 =
// sigmoid(2z), which does not cancel for negative z. Names are parsed by epilogue/activation_name.h.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/math.h"

namespace humming {

enum class Activation : int32_t {
  none,
  swiglu,
  gelu,
  gelu_tanh,
  relu2,
  silu_no_mul,
  gelu_no_mul,
  gelu_tanh_no_mul,
  relu2_no_mul,
};

// Parameters of swiglu.
struct ActivationArgs {
  float limit;  // 0: none
  float alpha;
  float beta;
};

HUMMING_HD constexpr bool is_gated(Activation activation) {
  return activation >= Activation::swiglu && activation <= Activation::relu2;
}

// How sigmoid is computed. native: by the GPU's own exponential and division, a tenth of the instructions, which are
// off by 2 + 1.17 |x| and 2 ulp (CUDA C++ Programming Guide, intrinsic functions); below -87 the result is 0. For the
// epilogues of products, whose sums differ between CPU and GPU anyway.
enum class Sigmoid { exact, native };

template <Sigmoid kSigmoid>
HUMMING_HD float sigmoid(float x) {
#ifdef __CUDA_ARCH__
  if constexpr (kSigmoid == Sigmoid::native) return __fdividef(1.0f, 1.0f + __expf(-x));
#endif
  return math::sigmoid(x);
}

HUMMING_HD float gelu(float v) { return 0.5f * v * math::erfc(v * -0.707106781f); }

template <Sigmoid kSigmoid>
HUMMING_HD float gelu_tanh(float v) {
  constexpr float kTwoRootTwoOverPi = 1.59576912f;
  return v * sigmoid<kSigmoid>(kTwoRootTwoOverPi * math::fma(0.044715f * v, v * v, v));
}

// NaN passes, as in torch.
HUMMING_HD float relu2(float v) {
  const float positive = v < 0 ? 0.0f : v;
  return positive * positive;
}

template <Sigmoid kSigmoid>
HUMMING_HD float swiglu(const ActivationArgs& args, float gate, float up) {
  const bool limited = args.limit > 0;
  const float g = limited && gate > args.limit ? args.limit : gate;
  const float u = limited && up > args.limit ? args.limit : limited && up < -args.limit ? -args.limit : up;
  return g * sigmoid<kSigmoid>(args.alpha * g) * (u + args.beta);
}

// One value of the output: of `gate` and `up` for gated activations, of `gate` alone for the others.
template <Activation kActivation, Sigmoid kSigmoid = Sigmoid::exact>
HUMMING_HD float activate(const ActivationArgs& args, float gate, float up) {
  switch (kActivation) {
    case Activation::none: return gate;
    case Activation::swiglu: return swiglu<kSigmoid>(args, gate, up);
    case Activation::gelu: return gelu(gate) * up;
    case Activation::gelu_tanh: return gelu_tanh<kSigmoid>(gate) * up;
    case Activation::relu2: return relu2(gate) * up;
    case Activation::silu_no_mul: return gate * sigmoid<kSigmoid>(gate);
    case Activation::gelu_no_mul: return gelu(gate);
    case Activation::gelu_tanh_no_mul: return gelu_tanh<kSigmoid>(gate);
    case Activation::relu2_no_mul: return relu2(gate);
  }
  return gate;
}

// The same with the activation known at run time only.
HUMMING_HD float activate(Activation activation, const ActivationArgs& args, float gate, float up) {
  switch (activation) {
    case Activation::none: return gate;
    case Activation::swiglu: return activate<Activation::swiglu>(args, gate, up);
    case Activation::gelu: return activate<Activation::gelu>(args, gate, up);
    case Activation::gelu_tanh: return activate<Activation::gelu_tanh>(args, gate, up);
    case Activation::relu2: return activate<Activation::relu2>(args, gate, up);
    case Activation::silu_no_mul: return activate<Activation::silu_no_mul>(args, gate, up);
    case Activation::gelu_no_mul: return activate<Activation::gelu_no_mul>(args, gate, up);
    case Activation::gelu_tanh_no_mul: return activate<Activation::gelu_tanh_no_mul>(args, gate, up);
    case Activation::relu2_no_mul: return activate<Activation::relu2_no_mul>(args, gate, up);
  }
  return gate;
}

}  // namespace humming
