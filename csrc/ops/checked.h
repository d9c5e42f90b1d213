// From the dispatcher to a kernel: the arguments of an `.out` op are those of its check, in the order of the schema, on
// every device, and so stand in checks.h alone.
#pragma once

#include "ops/checks.h"

namespace humming {

// `kRun` gets the op's first tensor, which tells the device, and what `kCheck` made of all arguments.
template <auto kCheck, auto kRun>
struct Checked;

template <class Params, class... Args, Params (*kCheck)(const Tensor&, Args...),
          void (*kRun)(const Tensor&, const Params&)>
struct Checked<kCheck, kRun> {
  static void call(const Tensor& first, Args... args) { kRun(first, kCheck(first, args...)); }
};

}  // namespace humming

// The second argument of m.impl.
#define HUMMING_CHECKED(check, run) TORCH_BOX((&::humming::Checked<&::humming::check, &::humming::run>::call))
