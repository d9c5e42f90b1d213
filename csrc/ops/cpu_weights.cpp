// CPU registration of prepack and decode_packed.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "ops/checked.h"
#include "ops/cpu_dispatch.h"

namespace humming {
namespace {

int64_t all_strips(const WeightDesc& desc) { return std::max<int64_t>(desc.experts, 1) * desc.num_strips(); }

void prepack_cpu(const Tensor&, const RepackParams& params) {
  std::atomic<int64_t> totals[2] = {{0}, {0}};
  torch::stable::parallel_for(0, all_strips(params.desc), 1, [&](int64_t begin, int64_t end) {
    int64_t own[2] = {0, 0};
    cpu_kernels().prepack(params, begin, end, own);
    for (int i = 0; i < 2; ++i) totals[i] += own[i];
  });
  for (int i = 0; i < 2; ++i) params.stats[i] = totals[i];
}

void decode_packed_cpu(const Tensor&, const DecodeParams& params) {
  torch::stable::parallel_for(0, all_strips(params.desc), 1,
                              [&](int64_t begin, int64_t end) { cpu_kernels().decode(params, begin, end); });
}

}  // namespace
}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CPU, m) {
  m.impl("prepack.out", HUMMING_CHECKED(check_prepack, prepack_cpu));
  m.impl("decode_packed.out", HUMMING_CHECKED(check_decode_packed, decode_packed_cpu));
}
