// Names and reasons of Hopper's GEMM instances: for messages, never on the way to a launch.
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "core/check.h"
#include "select/gemm_sm90.h"
#include "select/moe_gemm_sm90.h"

namespace humming {
namespace {

// Insertions, deletions and replacements of letters that turn `a` into `b`.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);  // of the letters of `a` so far, to every prefix of `b`
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

template <class Columns>
const Instance<Columns>& find(const std::string& name) {
  std::vector<std::pair<size_t, const char*>> others;
  for (const Instance<Columns>& instance : instances<Columns>()) {
    if (instance.entry.name == name) return instance;
    others.emplace_back(edit_distance(name, instance.entry.name), instance.entry.name);
  }
  std::sort(others.begin(), others.end());
  std::string nearest;
  for (size_t i = 0; i < std::min<size_t>(others.size(), 3); ++i) nearest += concat("\n  ", others[i].second);
  throw std::runtime_error(
      concat("instance = \"", name, "\" is none of the ", others.size(), " instances of this build (preset ", kPreset,
             "); humming_ext.explain lists those that run a product. The nearest names:", nearest));
}

// How the choice was made.
template <class Columns>
std::string reason(const Choice<Columns>& choice) {
  const TunedRow* row = choice.row;
  if (row == nullptr) return "\nchosen by the lowest estimate";
  return concat("\nchosen by the tuned row n = ", row->n, ", k = ", row->k,
                row->experts ? concat(", ", row->experts, " experts") : "", ", ", row->tokens, " tokens, ", row->us,
                " us");
}

template <class Columns, class Problem>
std::string rejections(const Problem& p, const WeightDesc& desc, const DeviceInfo& device) {
  std::map<std::string, std::string> by_reason;
  int others = 0;
  for (const Instance<Columns>& instance : instances<Columns>()) {
    const char* reason = cannot_run(instance, p, device);
    if (reason == nullptr) continue;
    if (is_for(instance, desc))
      by_reason[reason] += concat("\n    ", instance.entry.name);
    else
      ++others;
  }
  std::string text;
  for (const auto& [reason, names] : by_reason) text += concat("\n  ", reason, ":", names);
  if (others) text += concat("\n  is for another format or operand: ", others, " instances");
  return text.empty() ? text : concat("\nrejected, because an instance", text);
}

// The instances that can run a problem, by estimate.
template <class Columns, class Problem, class Estimate>
std::string ranking(const Problem& p, const Instance<Columns>* chosen, const DeviceInfo& device, Estimate estimate) {
  std::vector<std::pair<double, const Instance<Columns>*>> runnable;
  for (const Instance<Columns>& instance : instances<Columns>()) {
    if (cannot_run(instance, p, device) == nullptr) runnable.emplace_back(estimate(instance, p, device), &instance);
  }
  std::stable_sort(runnable.begin(), runnable.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string text = "\nestimated cycles of those that can run it (> chosen):";
  for (const auto& [cycles, instance] : runnable) {
    text += concat("\n  ", instance == chosen ? "> " : "  ", std::llround(cycles), " ", instance->entry.name);
  }
  return text;
}

}  // namespace

const GemmSm90Instance& find_gemm_sm90(const std::string& name) { return find<GemmSm90Columns>(name); }

const MoeGemmSm90Instance& find_moe_gemm_sm90(const std::string& name) { return find<MoeGemmSm90Columns>(name); }

std::string rejections_gemm_sm90(const GemmParams& p, const DeviceInfo& device) {
  return rejections<GemmSm90Columns>(p, p.desc, device);
}

std::string rejections_moe_gemm_sm90(const MoeProblem& p, const DeviceInfo& device) {
  return rejections<MoeGemmSm90Columns>(p, p.gemm.desc, device);
}

std::string explain_gemm_sm90(const GemmParams& p, const DeviceInfo& device, Table<TunedRow> tuned) {
  const GemmSm90Choice choice = choose_gemm_sm90(p, device, tuned);
  if (choice.instance == nullptr) return rejections_gemm_sm90(p, device);
  return reason(choice) + ranking<GemmSm90Columns>(p, choice.instance, device, estimate_gemm_sm90) +
         rejections_gemm_sm90(p, device);
}

std::string explain_moe_gemm_sm90(const MoeProblem& p, const DeviceInfo& device, Table<TunedRow> tuned) {
  const MoeGemmSm90Choice choice = choose_moe_gemm_sm90(p, device, tuned);
  if (choice.instance == nullptr) return rejections_moe_gemm_sm90(p, device);
  return concat(reason(choice), ", for ", p.expected_rows, " rows together",
                ranking<MoeGemmSm90Columns>(p, choice.instance, device, estimate_moe_gemm_sm90),
                rejections_moe_gemm_sm90(p, device));
}

}  // namespace humming
