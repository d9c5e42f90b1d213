// The functions of one level, and the table that the dispatcher takes.
#pragma once

#include "ops/cpu/kernels.h"

namespace humming::HUMMING_CPU_NAMESPACE {

void gemm(const GemmParams& params, const GemmRows& rows, int64_t strip);
void quantize(const QuantizeParams& params, int64_t begin, int64_t end);
void moe_reduce(const MoeReduceParams& params, int64_t begin, int64_t end);
void prepack(const RepackParams& params, int64_t begin, int64_t end, int64_t* stats);
void decode(const DecodeParams& params, int64_t begin, int64_t end);

extern const CpuKernels kKernels;

}  // namespace humming::HUMMING_CPU_NAMESPACE
