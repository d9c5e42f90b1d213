#include "select/gemm_any.h"

#include <algorithm>
#include <cmath>

#include "select/select_sm80.h"

namespace humming {

using namespace select_sm80;

namespace {

MoeProblem of_one_expert(const GemmParams& problem) {
  MoeProblem one{problem, {}, {}, problem.rows, false};
  one.gemm.activation = Activation::none;
  one.gemm.topk_weights = nullptr;
  one.rows.experts = 1;
  one.rows.rows = static_cast<int>(problem.rows);
  one.rows.capacity = problem.rows;
  return one;
}

}  // namespace

const char* cannot_run(const GemmAnyInstance& instance, const MoeProblem& p, const DeviceInfo& device) {
  const Operand operand = instance.columns.operand;
  const WeightDesc& desc = p.gemm.desc;
  if (!runs_on(instance.entry.arch, device.capability)) return "is compiled for another GPU";
  if (desc.operand != operand) return "is for another format or operand";
  if (operand == Operand::fp16 && desc.rebased()) return "has no room for e8m0 scales beside fp16 values";
  if (const char* reason = token_mismatch(operand, instance.columns.token_groups, p.gemm)) return reason;
  if (const char* reason = too_large(p)) return reason;
  if (moe_fit(instance.columns, p, device).stages == 0) return "does not fit into shared memory";
  if (has_nearer_code(instance, device)) return "has code for a nearer GPU";
  return nullptr;
}

// A lane works out a code in some forty instructions, for every block of tokens again.
double estimate(const GemmAnyInstance& instance, const MoeProblem& p, const DeviceInfo& device) {
  const Sm80Tile tile = tile_of(instance.columns);
  constexpr double kCode = 40, kIssued = 128;  // instructions of a code, and of a cycle and SM
  const double rows = std::max<double>(1, static_cast<double>(p.expected_rows));
  const double active = p.rows.experts * -std::expm1(-rows / p.rows.experts);
  const double blocks = active * std::max(1.0, rows / active / tile.tokens);
  const double record = tile.rows() * kTileK * kCode / kIssued + 2.0 * tile.rows() * tile.tokens / 8;
  const double strips = std::ceil(static_cast<double>(p.gemm.desc.num_strips()) / tile.row_groups);
  const double turns = std::max(1.0, blocks * strips / device.num_sms);
  return turns * static_cast<double>(p.gemm.desc.num_k_tiles()) * record;
}

const GemmAnyInstance* choose_gemm_any(const MoeProblem& p, const DeviceInfo& device) {
  const GemmAnyInstance* cheapest = nullptr;
  double least = 0;
  for (const GemmAnyInstance& instance : instances<GemmAnyColumns>()) {
    if (cannot_run(instance, p, device) != nullptr) continue;
    const double cycles = estimate(instance, p, device);
    if (cheapest != nullptr && cycles >= least) continue;
    cheapest = &instance;
    least = cycles;
  }
  return cheapest;
}

GemmAnyParams params_of(const GemmAnyInstance& instance, const MoeProblem& p, const DeviceInfo& device) {
  const GemmAnyColumns& c = instance.columns;
  auto params = moe_params<GemmAnyParams>(p, c.token_groups, moe_fit(c, p, device), device);
  params.mainloop.any = any_view(p.gemm.desc, params.mainloop.view);
  return params;
}

const char* cannot_run(const GemmAnyInstance& instance, const GemmParams& p, const DeviceInfo& device) {
  return p.desc.experts != 0 ? "is for dense weights" : cannot_run(instance, of_one_expert(p), device);
}

double estimate(const GemmAnyInstance& instance, const GemmParams& p, const DeviceInfo& device) {
  return estimate(instance, of_one_expert(p), device);
}

const GemmAnyInstance* choose_gemm_any(const GemmParams& p, const DeviceInfo& device) {
  return p.desc.experts != 0 ? nullptr : choose_gemm_any(of_one_expert(p), device);
}

GemmAnyParams params_of(const GemmAnyInstance& instance, const GemmParams& p, const DeviceInfo& device) {
  return params_of(instance, of_one_expert(p), device);
}

}  // namespace humming
