#include "ops/cpu_dispatch.h"

namespace humming {

namespace baseline {
extern const CpuKernels kKernels;
}
#ifdef HUMMING_CPU_X86_LEVELS
namespace x86_64_v3 {
extern const CpuKernels kKernels;
}
namespace x86_64_v4 {
extern const CpuKernels kKernels;
}
#endif

namespace {

const CpuKernels& choose() {
#ifdef HUMMING_CPU_X86_LEVELS
  // The levels are sets of extensions; gcc 12 and later know them by name, and what the operating system does not save
  // counts as absent.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return x86_64_v4::kKernels;
  if (__builtin_cpu_supports("x86-64-v3")) return x86_64_v3::kKernels;
#endif
  return baseline::kKernels;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& kernels = choose();
  return kernels;
}

}  // namespace humming
