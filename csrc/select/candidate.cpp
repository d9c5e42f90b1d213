#include "select/candidate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>

#include "core/check.h"

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

// How the choice was made.
std::string reason(const TunedRow* row) {
  if (row == nullptr) return "\nchosen by the lowest estimate";
  return concat("\nchosen by the tuned row n = ", row->n, ", k = ", row->k,
                row->experts ? concat(", ", row->experts, " experts") : "", ", ", row->tokens, " tokens, ", row->us,
                " us");
}

// The candidates that can run a problem, by estimate.
std::string ranking(std::vector<Candidate> candidates, const KernelEntry* chosen) {
  const auto rejected = [](const Candidate& c) { return c.rejection != nullptr; };
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(), rejected), candidates.end());
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.cycles < b.cycles; });
  std::string text = "\nestimated cycles of those that can run it (> chosen):";
  for (const Candidate& c : candidates) {
    text += concat("\n  ", c.entry == chosen ? "> " : "  ", std::llround(c.cycles), " ", c.entry->name);
  }
  return text;
}

}  // namespace

std::string rejections(const std::vector<Candidate>& candidates) {
  std::map<std::string, std::string> by_reason;
  int others = 0;
  for (const Candidate& c : candidates) {
    if (c.rejection == nullptr) continue;
    if (c.is_for)
      by_reason[c.rejection] += concat("\n    ", c.entry->name);
    else
      ++others;
  }
  std::string text;
  for (const auto& [reason, names] : by_reason) text += concat("\n  ", reason, ":", names);
  if (others) text += concat("\n  is for another format or operand: ", others, " instances");
  return text.empty() ? text : concat("\nrejected, because an instance", text);
}

std::string explain(const std::vector<Candidate>& candidates, const KernelEntry* chosen, const TunedRow* row,
                    const std::string& detail) {
  if (chosen == nullptr) return rejections(candidates);
  return concat(reason(row), detail, ranking(candidates, chosen), rejections(candidates));
}

void throw_unknown_instance(const std::string& name, const std::vector<const char*>& names) {
  std::vector<std::pair<size_t, std::string>> others;
  for (const char* other : names) others.emplace_back(edit_distance(name, other), other);
  std::sort(others.begin(), others.end());
  std::string nearest;
  for (size_t i = 0; i < std::min<size_t>(others.size(), 3); ++i) nearest += concat("\n  ", others[i].second);
  throw std::runtime_error(
      concat("instance = \"", name, "\" is none of the ", others.size(), " instances of this build (preset ", kPreset,
             "); humming_ext.explain lists those that run a product. The nearest names:", nearest));
}

}  // namespace humming
