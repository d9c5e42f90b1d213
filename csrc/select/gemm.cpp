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

GemmSm90Params params_of(const GemmSm90Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  return params_gemm_sm90(instance, p, device);
}
GemmSm80Params params_of(const GemmSm80Instance& instance, const GemmParams& p, const DeviceInfo& device) {
  return params_gemm_sm80(instance, p, device);
}

// Visits every instance, family after family.
template <class Visit>
void for_each_instance(Visit visit) {
  for (const GemmSm90Instance& instance : instances<GemmSm90Columns>()) visit(instance);
  for (const GemmSm80Instance& instance : instances<GemmSm80Columns>()) visit(instance);
}

}  // namespace

const KernelEntry* entry_of(GemmInstance instance) {
  return std::visit([](const auto* i) { return i == nullptr ? nullptr : &i->entry; }, instance);
}

const char* cannot_run(GemmInstance instance, const GemmParams& p, const DeviceInfo& device) {
  return std::visit([&](const auto* i) { return cannot_run(*i, p, device); }, instance);
}

GemmChoice choose_gemm(const GemmParams& p, const DeviceInfo& device, const TunedGemm& tuned) {
  const GemmSm90Choice hopper = choose_gemm_sm90(p, device, tuned.sm90);
  if (hopper.instance != nullptr) return {hopper.instance, hopper.row};
  const GemmSm80Choice earlier = choose_gemm_sm80(p, device, tuned.sm80);
  return {earlier.instance, earlier.row};
}

void launch_gemm(GemmInstance instance, const GemmParams& p, const DeviceInfo& device, CUstream_st* stream) {
  std::visit([&](const auto* i) { i->launch(params_of(*i, p, device), stream); }, instance);
}

GemmInstance find_gemm(const std::string& name, const DeviceInfo& device) {
  GemmInstance found;
  int nearest = -1;
  std::vector<const char*> names;
  for_each_instance([&](const auto& instance) {
    names.push_back(instance.entry.name);
    const int arch = runs_on(instance.entry.arch, device.capability) ? instance.entry.arch : 0;
    if (name != instance.entry.name || arch <= nearest) return;
    found = &instance;
    nearest = arch;
  });
  if (entry_of(found) == nullptr) throw_unknown_instance(name, names);
  return found;
}

std::vector<Candidate> candidates_gemm(const GemmParams& p, const DeviceInfo& device) {
  std::vector<Candidate> all;
  for_each_instance([&](const auto& instance) {
    const char* rejection = cannot_run(instance, p, device);
    const double cycles = rejection == nullptr ? estimate(instance, p, device) : 0;
    all.push_back({&instance.entry, is_for(instance, p.desc), rejection, cycles});
  });
  return all;
}

std::string explain_gemm(const GemmParams& p, const DeviceInfo& device, const TunedGemm& tuned) {
  const GemmChoice choice = choose_gemm(p, device, tuned);
  return explain(candidates_gemm(p, device), entry_of(choice.instance), choice.row);
}

}  // namespace humming
