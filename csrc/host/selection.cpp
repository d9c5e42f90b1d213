// Selection for the tests: the instances of preset `serving`, without their kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "select/gemm_sm90.h"
#include "select/moe_gemm_sm90.h"
#include "select/select_sm90.h"

namespace py = pybind11;

namespace humming {
namespace {

using Rows = std::vector<std::tuple<std::string, int64_t, int64_t, int64_t, float>>;  // instance, n, k, tokens, us

GemmParams problem_of(const std::vector<int64_t>& ints, int64_t tokens) {
  const WeightDesc desc = WeightDesc::parse(ints.data(), ints.size());
  return typical_gemm(desc, own_dtype(desc.operand), tokens);
}

std::vector<TunedRow> table_of(const Rows& rows) {
  std::vector<TunedRow> table;
  for (const auto& [name, n, k, tokens, us] : rows) {
    const auto index = &find_gemm_sm90(name) - instances<GemmSm90Columns>().first;
    table.push_back({static_cast<int>(index), n, k, 0, tokens, us});
  }
  const auto before = [](const TunedRow& a, const TunedRow& b) { return a.instance < b.instance; };
  std::stable_sort(table.begin(), table.end(), before);
  return table;
}

std::optional<std::string> name_of(const GemmSm90Instance* instance) {
  if (instance == nullptr) return std::nullopt;
  return instance->entry.name;
}

// (name of the chosen instance, its tuned row as (n, k, tokens)); None for what there is not.
auto choose(const std::vector<int64_t>& desc, int64_t tokens, const Rows& rows, int64_t out_stride) {
  GemmParams problem = problem_of(desc, tokens);
  if (out_stride != 0) problem.out_row_stride = out_stride;
  const std::vector<TunedRow> table = table_of(rows);
  const auto choice = choose_gemm_sm90(problem, kH200, {table.data(), static_cast<int>(table.size())});
  std::optional<std::tuple<int64_t, int64_t, int64_t>> row;
  if (choice.row != nullptr) row.emplace(choice.row->n, choice.row->k, choice.row->tokens);
  return std::pair(name_of(choice.instance), row);
}

std::string explain(const std::vector<int64_t>& desc, int64_t tokens, const Rows& rows) {
  const std::vector<TunedRow> table = table_of(rows);
  return explain_gemm_sm90(problem_of(desc, tokens), kH200, {table.data(), static_cast<int>(table.size())});
}

// name -> the estimate in cycles, or why the instance cannot run.
py::dict estimates(const std::vector<int64_t>& desc, int64_t tokens) {
  const GemmParams problem = problem_of(desc, tokens);
  py::dict all;
  for (const GemmSm90Instance& instance : instances<GemmSm90Columns>()) {
    const char* reason = cannot_run(instance, problem, kH200);
    if (reason != nullptr)
      all[instance.entry.name] = reason;
    else
      all[instance.entry.name] = estimate_gemm_sm90(instance, problem, kH200);
  }
  return all;
}

// name -> (stages, early_stages) of the instances that can run.
py::dict rings(const std::vector<int64_t>& desc, int64_t tokens) {
  const GemmParams problem = problem_of(desc, tokens);
  py::dict all;
  for (const GemmSm90Instance& instance : instances<GemmSm90Columns>()) {
    if (cannot_run(instance, problem, kH200) != nullptr) continue;
    const Sm90MainloopParams params = params_gemm_sm90(instance, problem, kH200).mainloop;
    all[instance.entry.name] = std::pair(params.stages, params.early_stages);
  }
  return all;
}

MoeProblem moe_problem_of(const std::vector<int64_t>& ints, int64_t rows) {
  const WeightDesc desc = WeightDesc::parse(ints.data(), ints.size());
  return typical_moe_gemm(desc, own_dtype(desc.operand), rows);
}

// (name of the chosen instance, its stages); None if none can run.
std::optional<std::pair<std::string, int>> choose_moe(const std::vector<int64_t>& desc, int64_t rows) {
  const MoeProblem problem = moe_problem_of(desc, rows);
  const MoeGemmSm90Instance* instance = choose_moe_gemm_sm90(problem, kH200).instance;
  if (instance == nullptr) return std::nullopt;
  return std::pair(instance->entry.name, params_moe_gemm_sm90(*instance, problem, kH200).mainloop.stages);
}

std::string explain_moe(const std::vector<int64_t>& desc, int64_t rows) {
  return explain_moe_gemm_sm90(moe_problem_of(desc, rows), kH200);
}

}  // namespace

void bind_selection(py::module_& m) {
  m.def("choose", &choose, py::arg("desc"), py::arg("tokens"), py::arg("rows") = Rows(), py::arg("out_stride") = 0);
  m.def("explain", &explain, py::arg("desc"), py::arg("tokens"), py::arg("rows") = Rows());
  m.def("estimates", &estimates);
  m.def("rings", &rings);
  m.def("choose_moe", &choose_moe);
  m.def("explain_moe", &explain_moe);
  m.def("find_instance", [](const std::string& name) {
    return std::string(name.rfind("moe_", 0) == 0 ? find_moe_gemm_sm90(name).entry.name
                                                  : find_gemm_sm90(name).entry.name);
  });
}

}  // namespace humming
