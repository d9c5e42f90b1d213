#include "select/moe_gemm.h"

#include "core/check.h"
#include "select/selection.h"

namespace humming {
const char* cannot_run(MoeGemmInstance instance, const MoeProblem& p, const DeviceInfo& device) {
  return std::visit([&](const auto* i) { return cannot_run(*i, p, device); }, instance);
}

MoeGemmChoice choose_moe_gemm(const MoeProblem& p, const DeviceInfo& device) {
  const MoeGemmSm90Choice hopper = choose_moe_gemm_sm90(p, device);
  if (hopper.instance != nullptr) return {hopper.instance, hopper.row};
  const MoeGemmSm80Choice earlier = choose_moe_gemm_sm80(p, device);
  if (earlier.instance != nullptr) return {earlier.instance, earlier.row};
  return {choose_gemm_any(p, device), nullptr};
}

void launch_moe_gemm(MoeGemmInstance instance, const MoeProblem& p, const DeviceInfo& device, CUstream_st* stream) {
  std::visit([&](const auto* i) { i->launch(params_of(*i, p, device), stream); }, instance);
}

MoeGemmInstance find_moe_gemm(const std::string& name, const DeviceInfo& device) {
  return families::find<MoeGemmSm90Columns, MoeGemmSm80Columns, GemmAnyColumns>(name, device);
}

std::vector<Candidate> candidates_moe_gemm(const MoeProblem& p, const DeviceInfo& device) {
  return families::candidates<MoeGemmSm90Columns, MoeGemmSm80Columns, GemmAnyColumns>(p, device);
}

std::string explain_moe_gemm(const MoeProblem& p, const DeviceInfo& device) {
  const MoeGemmChoice choice = choose_moe_gemm(p, device);
  return explain(candidates_moe_gemm(p, device), entry_of(choice.instance), choice.row,
                 concat(", for ", p.expected_rows, " rows together"));
}

}  // namespace humming
