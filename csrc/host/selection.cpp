// Selection for the tests: the instances of preset `serving`, without their kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "mainloop/sm80_tile.h"
#include "select/gemm.h"
#include "select/moe_gemm.h"
#include "select/selection.h"

namespace py = pybind11;

namespace humming {
namespace {

using Rows = std::vector<std::tuple<std::string, int64_t, int64_t, int64_t, float>>;  // instance, n, k, tokens, us

DeviceInfo device_of(const std::string& name) {
  if (name == "h200") return kH200;
  if (name == "a100") return {80, 108, 166912, 167936};
  if (name == "a10") return {86, 72, 101376, 102400};
  HUMMING_CHECK(name == "l40s", "unknown device ", name);
  return {89, 142, 101376, 102400};
}

GemmParams problem_of(const std::vector<int64_t>& ints, int64_t tokens) {
  const WeightDesc desc = WeightDesc::parse(ints.data(), ints.size());
  return typical_gemm(desc, own_dtype(desc.operand), tokens);
}

std::vector<TunedRow> table_of(const Rows& rows) {
  std::vector<TunedRow> table;
  for (const auto& [name, n, k, tokens, us] : rows) {
    const GemmSm90Instance* instance = std::get<const GemmSm90Instance*>(find_gemm(name, kH200));
    const auto index = instance - instances<GemmSm90Columns>().first;
    table.push_back({static_cast<int>(index), n, k, 0, tokens, us});
  }
  const auto before = [](const TunedRow& a, const TunedRow& b) { return a.instance < b.instance; };
  std::stable_sort(table.begin(), table.end(), before);
  return table;
}

// (name of the chosen instance, its tuned row as (n, k, tokens)); None for what there is not.
auto choose(const std::vector<int64_t>& desc, int64_t tokens, const Rows& rows, int64_t out_stride,
            const std::string& device) {
  GemmParams problem = problem_of(desc, tokens);
  if (out_stride != 0) problem.out_row_stride = out_stride;
  const std::vector<TunedRow> table = table_of(rows);
  const auto choice = choose_gemm(problem, device_of(device), {{table.data(), static_cast<int>(table.size())}});
  std::optional<std::string> name;
  if (const KernelEntry* entry = entry_of(choice.instance)) name = entry->name;
  std::optional<std::tuple<int64_t, int64_t, int64_t>> row;
  if (choice.row != nullptr) row.emplace(choice.row->n, choice.row->k, choice.row->tokens);
  return std::pair(name, row);
}

std::string explain_dense(const std::vector<int64_t>& desc, int64_t tokens, const Rows& rows) {
  const std::vector<TunedRow> table = table_of(rows);
  return explain_gemm(problem_of(desc, tokens), kH200, {{table.data(), static_cast<int>(table.size())}});
}

// name -> the estimate in cycles, or why the instance cannot run, whatever arch it is compiled for.
py::dict estimates(const std::vector<int64_t>& desc, int64_t tokens, const std::string& device) {
  py::dict all;
  for (const Candidate& c : candidates_gemm(problem_of(desc, tokens), device_of(device))) {
    if (c.rejection == nullptr)
      all[c.entry->name] = c.cycles;
    else if (!all.contains(c.entry->name))
      all[c.entry->name] = c.rejection;
  }
  return all;
}

// name -> (stages, early_stages) of the instances that can run.
py::dict rings(const std::vector<int64_t>& desc, int64_t tokens) {
  const GemmParams problem = problem_of(desc, tokens);
  py::dict all;
  for (const GemmSm90Instance& instance : instances<GemmSm90Columns>()) {
    if (cannot_run(instance, problem, kH200) != nullptr) continue;
    const Sm90MainloopParams params = params_of(instance, problem, kH200).mainloop;
    all[instance.entry.name] = std::pair(params.stages, params.early_stages);
  }
  return all;
}

// (name, arch) of the instances that can run.
std::vector<std::pair<std::string, int>> runnable(const std::vector<int64_t>& desc, int64_t tokens,
                                                  const std::string& device) {
  std::vector<std::pair<std::string, int>> all;
  for (const Candidate& c : candidates_gemm(problem_of(desc, tokens), device_of(device))) {
    if (c.rejection == nullptr) all.emplace_back(c.entry->name, c.entry->arch);
  }
  return all;
}

// name -> (stages, shared bytes, the tile (row tile, token tile) of every CTA) of the instances of Ampere and Ada that
// can run.
py::dict launches_sm80(const std::vector<int64_t>& desc, int64_t tokens, const std::string& device) {
  const GemmParams problem = problem_of(desc, tokens);
  py::dict all;
  for (const GemmSm80Instance& instance : instances<GemmSm80Columns>()) {
    if (cannot_run(instance, problem, device_of(device)) != nullptr) continue;
    const GemmSm80Columns& c = instance.columns;
    const GemmSm80Params params = params_of(instance, problem, device_of(device));
    const Sm80Tile tile{c.row_groups, c.patches, c.split_k, c.tokens, dtype_bits(problem.x_dtype)};
    std::vector<std::pair<int, int>> tiles;
    for (int y = 0; y < params.grid_y; ++y) {
      for (int x = 0; x < params.grid_x; ++x) tiles.emplace_back(params.row_tile(x), params.token_tile(x, y));
    }
    all[instance.entry.name] = py::make_tuple(
        params.mainloop.stages, tile.shared_bytes(params.mainloop.stages, params.mainloop.record_bytes), tiles);
  }
  return all;
}

// Where a tile's threads find their part: what sm80_tile.h says, as tables.
py::dict tile_sm80(int row_groups, int patches, int split_k, int tokens, int value_bits) {
  const Sm80Tile tile{row_groups, patches, split_k, tokens, value_bits};
  std::vector<std::vector<int>> offsets(tokens);  // [token][chunk]
  for (int token = 0; token < tokens; ++token) {
    for (int chunk = 0; chunk < tile.row_chunks(); ++chunk) offsets[token].push_back(tile.token_offset(token, chunk));
  }
  std::vector<std::tuple<int, int, int>> roles;  // of warps
  for (int warp = 0; warp < tile.warps(); ++warp) {
    const Sm80Tile::Role role = tile.role_of(warp);
    roles.emplace_back(role.team, role.row_group, role.patch);
  }
  std::vector<std::pair<int, int>> copied;  // by threads
  for (int thread = 0; thread < tile.threads(); ++thread) {
    copied.emplace_back(tile.copied_by(thread).token, tile.copied_by(thread).chunk);
  }
  std::vector<std::vector<std::pair<int, int>>> read(tile.pairs());  // by lanes
  for (int pair = 0; pair < tile.pairs(); ++pair) {
    for (int lane = 0; lane < kLanes; ++lane) {
      read[pair].emplace_back(tile.read_by(lane, pair).token, tile.read_by(lane, pair).chunk);
    }
  }
  py::dict facts;
  facts["offsets"] = offsets;
  facts["roles"] = roles;
  facts["copied"] = copied;
  facts["read"] = read;
  facts["line_bytes"] = tile.line_bytes();
  facts["token_bytes"] = tile.token_bytes();
  facts["rows_at_a_time"] = tile.rows_at_a_time();
  return facts;
}

MoeProblem moe_problem_of(const std::vector<int64_t>& ints, int64_t rows) {
  const WeightDesc desc = WeightDesc::parse(ints.data(), ints.size());
  return typical_moe_gemm(desc, own_dtype(desc.operand), rows);
}

// (name of the chosen instance, its stages); None if none can run.
std::optional<std::pair<std::string, int>> choose_moe(const std::vector<int64_t>& desc, int64_t rows,
                                                      const std::string& device_name) {
  const MoeProblem problem = moe_problem_of(desc, rows);
  const DeviceInfo device = device_of(device_name);
  const MoeGemmInstance chosen = choose_moe_gemm(problem, device).instance;
  if (entry_of(chosen) == nullptr) return std::nullopt;
  int stages = 0;
  if (const auto* hopper = std::get_if<const MoeGemmSm90Instance*>(&chosen))
    stages = params_of(**hopper, problem, device).mainloop.stages;
  else if (const auto* earlier = std::get_if<const MoeGemmSm80Instance*>(&chosen))
    stages = params_of(**earlier, problem, device).mainloop.stages;
  else
    stages = params_of(*std::get<const GemmAnyInstance*>(chosen), problem, device).mainloop.stages;
  return std::pair(entry_of(chosen)->name, stages);
}

std::string explain_moe(const std::vector<int64_t>& desc, int64_t rows) {
  return explain_moe_gemm(moe_problem_of(desc, rows), kH200);
}

}  // namespace

void bind_selection(py::module_& m) {
  m.def("choose", &choose, py::arg("desc"), py::arg("tokens"), py::arg("rows") = Rows(), py::arg("out_stride") = 0,
        py::arg("device") = "h200");
  m.def("explain", &explain_dense, py::arg("desc"), py::arg("tokens"), py::arg("rows") = Rows());
  m.def("estimates", &estimates, py::arg("desc"), py::arg("tokens"), py::arg("device") = "h200");
  m.def("runnable", &runnable);
  m.def("launches_sm80", &launches_sm80);
  m.def("tile_sm80", &tile_sm80);
  m.def("rings", &rings);
  m.def("choose_moe", &choose_moe, py::arg("desc"), py::arg("rows"), py::arg("device") = "h200");
  m.def("explain_moe", &explain_moe);
  m.def("find_instance", [](const std::string& name) {
    return std::string(name.rfind("moe_", 0) == 0 ? entry_of(find_moe_gemm(name, kH200))->name
                                                  : entry_of(find_gemm(name, kH200))->name);
  });
}

}  // namespace humming
