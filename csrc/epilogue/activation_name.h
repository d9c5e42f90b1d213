// From the op's `activation` and `activation_args` to an Activation with its parameters. Host only.
#pragma once

#include <string>
#include <vector>

#include "core/check.h"
#include "epilogue/activation.h"

namespace humming {

struct ActivationSpec {
  Activation activation;
  ActivationArgs args;
};

// Throws std::runtime_error naming `op` and the argument for an unknown name, for arguments where the activation takes
// none, for more than three of them and for a negative or NaN limit.
inline ActivationSpec parse_activation(const char* op, const std::string& name, const std::vector<double>& args) {
  struct Named {
    const char* name;
    ActivationSpec spec;
    bool takes_args;
  };
  static constexpr ActivationArgs kSilu = {0.0f, 1.0f, 0.0f};
  static constexpr Named kNames[] = {
      {"none", {Activation::none, kSilu}, false},
      {"silu", {Activation::swiglu, kSilu}, true},
      {"swigluoai", {Activation::swiglu, {7.0f, 1.702f, 1.0f}}, true},
      {"gelu", {Activation::gelu, kSilu}, false},
      {"gelu_tanh", {Activation::gelu_tanh, kSilu}, false},
      {"relu2", {Activation::relu2, kSilu}, false},
      {"silu_no_mul", {Activation::silu_no_mul, kSilu}, false},
      {"gelu_no_mul", {Activation::gelu_no_mul, kSilu}, false},
      {"gelu_tanh_no_mul", {Activation::gelu_tanh_no_mul, kSilu}, false},
      {"relu2_no_mul", {Activation::relu2_no_mul, kSilu}, false},
  };
  std::string known;
  for (const Named& row : kNames) {
    known += known.empty() ? row.name : std::string(", ") + row.name;
    if (name != row.name) continue;
    HUMMING_CHECK(args.empty() || row.takes_args, op, ": activation_args has ", args.size(),
                  " values, but activation \"", name, "\" takes none; pass an empty list");
    HUMMING_CHECK(args.size() <= 3, op, ": activation_args has ", args.size(), " values; at most [limit, alpha, beta]");
    ActivationSpec spec = row.spec;
    float* const fields[] = {&spec.args.limit, &spec.args.alpha, &spec.args.beta};
    for (size_t i = 0; i < args.size(); ++i) *fields[i] = static_cast<float>(args[i]);
    HUMMING_CHECK(spec.args.limit >= 0, op, ": activation_args limit = ", spec.args.limit,
                  " must be >= 0; 0 means none");
    return spec;
  }
  HUMMING_CHECK(false, op, ": unknown activation \"", name, "\"; choose one of ", known);
  return {};
}

}  // namespace humming
