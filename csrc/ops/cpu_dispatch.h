// The CPU kernels of this process: the highest instruction-set level that the processor has.
#pragma once

#include "ops/cpu/kernels.h"

namespace humming {

const CpuKernels& cpu_kernels();

}  // namespace humming
