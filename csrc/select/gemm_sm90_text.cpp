// Names and reasons of Hopper's dense GEMM instances: for messages, never on the way to a launch.
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "core/check.h"
#include "select/gemm_sm90.h"

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

}  // namespace

const GemmSm90Instance& find_gemm_sm90(const std::string& name) {
  std::vector<std::pair<size_t, const char*>> others;
  for (const GemmSm90Instance& instance : instances<GemmSm90Columns>()) {
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

std::string rejections_gemm_sm90(const GemmParams& p, const DeviceInfo& device) {
  std::map<std::string, std::string> by_reason;
  int others = 0;
  for (const GemmSm90Instance& instance : instances<GemmSm90Columns>()) {
    const char* reason = cannot_run(instance, p, device);
    if (reason == nullptr) continue;
    if (is_for(instance, p.desc))
      by_reason[reason] += concat("\n    ", instance.entry.name);
    else
      ++others;
  }
  std::string text;
  for (const auto& [reason, names] : by_reason) text += concat("\n  ", reason, ":", names);
  if (others) text += concat("\n  is for another format or operand: ", others, " instances");
  return text.empty() ? text : concat("\nrejected, because an instance", text);
}

std::string explain_gemm_sm90(const GemmParams& p, const DeviceInfo& device, Table<TunedRow> tuned) {
  const GemmSm90Choice choice = choose_gemm_sm90(p, device, tuned);
  if (choice.instance == nullptr) return rejections_gemm_sm90(p, device);
  std::vector<std::pair<double, const GemmSm90Instance*>> runnable;
  for (const GemmSm90Instance& instance : instances<GemmSm90Columns>()) {
    if (cannot_run(instance, p, device) != nullptr) continue;
    runnable.emplace_back(estimate_gemm_sm90(instance, p, device), &instance);
  }
  std::stable_sort(runnable.begin(), runnable.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string text = "\nchosen by the lowest estimate";
  if (const TunedRow* row = choice.row) {
    text = concat("\nchosen by the tuned row n = ", row->n, ", k = ", row->k, ", ", row->tokens, " tokens, ", row->us,
                  " us");
  }
  text += "\nestimated cycles of those that can run it (> chosen):";
  for (const auto& [cycles, instance] : runnable) {
    text += concat("\n  ", instance == choice.instance ? "> " : "  ", std::llround(cycles), " ", instance->entry.name);
  }
  return text + rejections_gemm_sm90(p, device);
}

}  // namespace humming
