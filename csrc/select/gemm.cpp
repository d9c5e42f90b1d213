#include "select/gemm.h"

#include "select/selection.h"

namespace humming {
namespace {

double estimate(const GemmSm90Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  return estimate_gemm_sm90(instance, p, device);
}
double estimate(const GemmSm80Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  return estimate_gemm_sm80(instance, p, device);
}

double estimate(const GemmAnyInstance& instance, const GemmParams& p, const DeviceInfo& device) {
  return estimate_gemm_any(instance, of_one_expert(p), device);
}

GemmSm90Params params_of(const GemmSm90Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  return params_gemm_sm90(instance, p, device);
}
GemmSm80Params params_of(const GemmSm80Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  return params_gemm_sm80(instance, p, device);
}
GemmAnyParams params_of(const GemmAnyInstance& instance, const GemmParams& p, const DeviceInfo& device) {
  return params_gemm_any(instance, of_one_expert(p), device);
}

}  // namespace

const char* cannot_run(const GemmAnyInstance& instance, const GemmParams& p, const DeviceInfo& device) {
  if (p.desc.experts != 0) return "is for dense weights";
  return cannot_run(instance, of_one_expert(p), device);
}

const char* cannot_run(GemmInstance instance, const GemmParams& p, const DeviceInfo& device) {
  return std::visit([&](const auto* i) { return cannot_run(*i, p, device); }, instance);
}

GemmChoice choose_gemm(const GemmParams& p, const DeviceInfo& device, const TunedGemm& tuned) {
  const GemmSm90Choice hopper = choose_gemm_sm90(p, device, tuned.sm90);
  if (hopper.instance != nullptr) return {hopper.instance, hopper.row};
  const GemmSm80Choice earlier = choose_gemm_sm80(p, device, tuned.sm80);
  if (earlier.instance != nullptr) return {earlier.instance, earlier.row};
  return {p.desc.experts == 0 ? choose_gemm_any(of_one_expert(p), device) : nullptr, nullptr};
}

void launch_gemm(GemmInstance instance, const GemmParams& p, const DeviceInfo& device, CUstream_st* stream) {
  std::visit([&](const auto* i) { i->launch(params_of(*i, p, device), stream); }, instance);
}

GemmInstance find_gemm(const std::string& name, const DeviceInfo& device) {
  return families::find<GemmSm90Columns, GemmSm80Columns, GemmAnyColumns>(name, device);
}

std::vector<Candidate> candidates_gemm(const GemmParams& p, const DeviceInfo& device) {
  return families::candidates<GemmSm90Columns, GemmSm80Columns, GemmAnyColumns>(
      p, device, [&](const auto& instance) { return estimate(instance, p, device); });
}

std::string explain_gemm(const GemmParams& p, const DeviceInfo& device, const TunedGemm& tuned) {
  const GemmChoice choice = choose_gemm(p, device, tuned);
  return explain(candidates_gemm(p, device), entry_of(choice.instance), choice.row);
}

}  // namespace humming
