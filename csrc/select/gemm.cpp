#include "select/gemm.h"

#include "select/selection.h"

namespace humming {
const char* cannot_run(GemmInstance instance, const GemmParams& p, const DeviceInfo& device) {
  return std::visit([&](const auto* i) { return cannot_run(*i, p, device); }, instance);
}

GemmChoice choose_gemm(const GemmParams& p, const DeviceInfo& device, const TunedGemm& tuned) {
  const GemmSm90Choice hopper = choose_gemm_sm90(p, device, tuned.sm90);
  if (hopper.instance != nullptr) return {hopper.instance, hopper.row};
  const GemmSm80Choice earlier = choose_gemm_sm80(p, device, tuned.sm80);
  if (earlier.instance != nullptr) return {earlier.instance, earlier.row};
  return {choose_gemm_any(p, device), nullptr};
}

void launch_gemm(GemmInstance instance, const GemmParams& p, const DeviceInfo& device, CUstream_st* stream) {
  std::visit([&](const auto* i) { i->launch(params_of(*i, p, device), stream); }, instance);
}

GemmInstance find_gemm(const std::string& name, const DeviceInfo& device) {
  return families::find<GemmSm90Columns, GemmSm80Columns, GemmAnyColumns>(name, device);
}

std::vector<Candidate> candidates_gemm(const GemmParams& p, const DeviceInfo& device) {
  return families::candidates<GemmSm90Columns, GemmSm80Columns, GemmAnyColumns>(p, device);
}

std::string explain_gemm(const GemmParams& p, const DeviceInfo& device, const TunedGemm& tuned) {
  const GemmChoice choice = choose_gemm(p, device, tuned);
  return explain(candidates_gemm(p, device), entry_of(choice.instance), choice.row);
}

}  // namespace humming
