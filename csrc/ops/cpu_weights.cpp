// CPU registration of prepack and decode_packed.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "ops/checks.h"
#include "ops/cpu_dispatch.h"

namespace humming {
namespace {

int64_t all_strips(const WeightDesc& desc) { return std::max<int64_t>(desc.experts, 1) * desc.num_strips(); }

void prepack_cpu(const Tensor& codes, int64_t code_bits, const OptionalTensor& scale, const OptionalTensor& zero,
                 std::vector<int64_t> desc, std::string row_order, Tensor packed, Tensor row_scale, Tensor stats) {
  const RepackParams params = check_prepack(codes, code_bits, scale, zero, desc, row_order, packed, row_scale, stats);
  std::atomic<int64_t> totals[2] = {{0}, {0}};
  torch::stable::parallel_for(0, all_strips(params.desc), 1, [&](int64_t begin, int64_t end) {
    int64_t own[2] = {0, 0};
    cpu_kernels().prepack(params, begin, end, own);
    for (int i = 0; i < 2; ++i) totals[i] += own[i];
  });
  for (int i = 0; i < 2; ++i) params.stats[i] = totals[i];
}

void decode_packed_cpu(const Tensor& packed, const OptionalTensor& scale2, std::vector<int64_t> desc, bool codes,
                       Tensor out) {
  const DecodeParams params = check_decode_packed(packed, scale2, desc, codes, out);
  torch::stable::parallel_for(0, all_strips(params.desc), 1,
                              [&](int64_t begin, int64_t end) { cpu_kernels().decode(params, begin, end); });
}

}  // namespace
}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CPU, m) {
  m.impl("prepack.out", TORCH_BOX(&humming::prepack_cpu));
  m.impl("decode_packed.out", TORCH_BOX(&humming::decode_packed_cpu));
}
