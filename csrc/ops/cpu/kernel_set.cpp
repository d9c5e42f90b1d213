// The table of one instruction-set level.
#include "ops/cpu/kernel_set.h"

namespace humming::HUMMING_CPU_NAMESPACE {

#if defined(__AVX512F__)
#define HUMMING_CPU_LEVEL_NAME "x86-64-v4"
#elif defined(__AVX2__)
#define HUMMING_CPU_LEVEL_NAME "x86-64-v3"
#else
#define HUMMING_CPU_LEVEL_NAME "baseline"
#endif

const CpuKernels kKernels = {HUMMING_CPU_LEVEL_NAME, gemm, quantize, moe_reduce, prepack, decode};

}  // namespace humming::HUMMING_CPU_NAMESPACE
