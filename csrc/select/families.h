// What the families of kernels that have an op share: one choice among the instances of all of them.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "instances/instances.h"
#include "select/candidate.h"
#include "select/device_info.h"

namespace humming {

// An instance of one of several families. nullptr of any: none.
template <class... Columns>
using AnyInstance = std::variant<const Instance<Columns>*...>;

// nullptr of none.
template <class... Columns>
const KernelEntry* entry_of(std::variant<const Instance<Columns>*...> instance) {
  return std::visit([](const auto* i) { return i == nullptr ? nullptr : &i->entry; }, instance);
}

namespace families {

// Visits every instance, family after family.
template <class... Columns, class Visit>
void for_each_instance(Visit visit) {
  const auto visit_all = [&](const auto& table) {
    for (const auto& instance : table) visit(instance);
  };
  (visit_all(instances<Columns>()), ...);
}

// The instance of this name, the one nearest to the device if it is compiled for several; throws, naming the nearest
// names, if this build has none.
template <class... Columns>
AnyInstance<Columns...> find(const std::string& name, const DeviceInfo& device) {
  AnyInstance<Columns...> found;
  int nearest = -1;
  std::vector<const char*> names;
  for_each_instance<Columns...>([&](const auto& instance) {
    names.push_back(instance.entry.name);
    const int arch = runs_on(instance.entry.arch, device.capability) ? instance.entry.arch : 0;
    if (name != instance.entry.name || arch <= nearest) return;
    found = &instance;
    nearest = arch;
  });
  if (entry_of(found) == nullptr) throw_unknown_instance(name, names);
  return found;
}

// What selection thinks of every instance.
template <class... Columns, class Problem>
std::vector<Candidate> candidates(const Problem& p, const DeviceInfo& device) {
  std::vector<Candidate> all;
  for_each_instance<Columns...>([&](const auto& instance) {
    const char* rejection = cannot_run(instance, p, device);
    const double cycles = rejection == nullptr ? estimate(instance, p, device) : 0;
    all.push_back({&instance.entry, is_for(instance, weight_of(p)), rejection, cycles});
  });
  return all;
}

}  // namespace families

}  // namespace humming
