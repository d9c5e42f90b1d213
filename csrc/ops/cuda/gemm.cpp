// CUDA registration of gemm and moe_gemm. What has no kernel instance is refused after its arguments were checked;
// calls without rows are no-ops.
#include <torch/csrc/stable/library.h>

#include "core/check.h"
#include "instances/instances.h"
#include "ops/checked.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/ops.h"
#include "ops/tensor_check.h"
#include "select/gemm.h"
#include "select/moe_gemm.h"
#include "select/rows.h"

namespace humming {
namespace {

bool has_rows(const GemmParams& params) { return params.rows > 0 && params.out_rows > 0; }

[[noreturn]] void refuse(const char* op, const GemmParams& params, const Tensor& x, const std::string& rejections) {
  throw std::runtime_error(concat(op, ": no CUDA instance in this build (preset ", kPreset, ", architectures ",
                                  kCudaArchs, ") for ", params.desc.format_traits().name, " weights x ",
                                  to_text(x.scalar_type()), params.x_dtype == DType::int4 ? " (two int4 per byte)" : "",
                                  "; move the tensors to the CPU, where every combination runs, or build with a larger "
                                  "HUMMING_PRESET",
                                  rejections));
}

// Rows that kernels do not read as they are go to the workspace first, which the functional op sizes for that.
void copy_rows(const char* op, const Tensor& x, GemmParams* params, cudaStream_t stream) {
  if (!reads_copies(*params)) return;
  const GemmParams& p = *params;
  const int64_t pitch = copy_pitch(p.desc, p.x_dtype);
  HUMMING_CHECK(p.workspace_bytes >= p.rows * pitch && reinterpret_cast<uintptr_t>(p.workspace) % 16 == 0, op,
                ": workspace has ", p.workspace_bytes,
                " bytes, but rows of x that do not begin at multiples of 16 bytes, or are of another type than the "
                "operand's, are copied to it: ",
                p.rows * pitch, " bytes that begin at a multiple of 16");
  if (is_widened(p.desc, p.x_dtype)) {
    const XScaleView scale = takes_scale_along(p) ? p.x_scale : XScaleView{nullptr, DType::fp32, 0, 0, 0};
    launch<WidenColumns>(op, x,
                         {p.x, p.x_dtype, p.x_row_bytes, p.rows, p.desc.k, scale, static_cast<uint8_t*>(p.workspace),
                          own_dtype(p.desc.operand), pitch});
  } else {
    const int64_t bytes = (p.desc.k * dtype_bits(p.x_dtype) + 7) / 8;
    HUMMING_CUDA_CHECK(
        cudaMemcpy2DAsync(p.workspace, pitch, p.x, p.x_row_bytes, bytes, p.rows, cudaMemcpyDeviceToDevice, stream));
  }
  *params = of_copies(p, p.workspace);
}

// Of an instance that was asked for by name: that it can run the product.
void check_runs(const char* op, const std::string& name, const char* rejection) {
  HUMMING_CHECK(rejection == nullptr, op, ": instance ", name, " ", rejection,
                "; humming_ext.explain lists those that run this product");
}

// Runs the named instance, or the one that selection chooses.
void run_gemm(const Tensor& x, GemmParams params, const std::string* name) {
  if (!has_rows(params)) return;
  const OnDeviceOf device(x);
  copy_rows("humming::gemm", x, &params, device.stream());
  const DeviceInfo info = device.info();
  const GemmInstance instance = name ? find_gemm(*name, info) : choose_gemm(params, info).instance;
  if (entry_of(instance) == nullptr) refuse("humming::gemm", params, x, rejections(candidates_gemm(params, info)));
  if (name != nullptr) check_runs("humming::gemm", *name, cannot_run(instance, params, info));
  launch_gemm(instance, params, info, device.stream());
  HUMMING_CUDA_CHECK(cudaGetLastError());
}

void gemm_cuda(const Tensor& x, const GemmParams& params) { run_gemm(x, params, nullptr); }

void gemm_instance_cuda(const Tensor& x, const OptionalTensor& x_scale, const Tensor& packed,
                        const OptionalTensor& scale2, const OptionalTensor& bias, std::vector<int64_t> desc,
                        std::string instance, Tensor out, Tensor workspace) {
  run_gemm(x, check_gemm(x, x_scale, packed, scale2, bias, desc, out, workspace), &instance);
}

// The layout indexed: a problem of sorted pairs, and, if they come in blocks, how to sort them (sort->sorted).
MoeProblem pairs_problem(const char* op, const Tensor& x, const MoeParams& params, cudaStream_t stream,
                         MoeSortParams* sort) {
  MoeProblem problem{params.gemm, {}, {}, params.gemm.out_rows, false};
  GemmParams& gemm = problem.gemm;
  const int experts = static_cast<int>(gemm.desc.experts), top_k = static_cast<int>(params.top_k);
  const int limit = static_cast<int>(gemm.out_rows);
  if (params.in_blocks) {
    const MoeWorkspace places = moe_workspace(experts, gemm.out_rows, gemm.workspace);
    HUMMING_CHECK(gemm.workspace_bytes >= places.bytes && reinterpret_cast<uintptr_t>(gemm.workspace) % 128 == 0, op,
                  ": workspace has ", gemm.workspace_bytes,
                  " bytes, but blocks of the layout \"indexed\" are sorted in it: ", places.bytes,
                  " bytes that begin at a multiple of 128");
    gemm.workspace = static_cast<uint8_t*>(gemm.workspace) + places.bytes;
    gemm.workspace_bytes -= places.bytes;
    *sort = {params.sorted_token_ids, params.expert_ids, params.num_post_padded, params.num_sorted, params.block,
             gemm.out_rows,           experts,           places.sorted,          places.offsets,    places.counts};
    problem.rows.rows = limit;
    problem.rows.offsets = places.offsets;
    problem.rows.offset_dtype = DType::int32;
    problem.pairs = {places.sorted, top_k, limit, params.in_order};
  } else {
    problem.rows.rows = static_cast<int>(params.num_sorted);
    problem.rows.offsets = params.expert_offsets;
    problem.rows.offset_dtype = params.offset_dtype;
    problem.pairs = {params.sorted_token_ids, top_k, limit, params.in_order};
  }
  copy_rows(op, x, &gemm, stream);
  return problem;
}

// The other layouts: rows of x lie together by expert.
MoeProblem rows_problem(const char* op, const Tensor& x, const MoeParams& params, cudaStream_t stream) {
  MoeProblem problem{params.gemm, {}, {}, params.gemm.rows, false};
  copy_rows(op, x, &problem.gemm, stream);
  MoeRows& rows = problem.rows;
  rows.rows = static_cast<int>(params.gemm.rows);
  rows.offsets = params.expert_offsets;
  rows.offset_dtype = params.offset_dtype;
  rows.counts = params.expert_counts;
  rows.capacity = params.capacity;
  return problem;
}

// Runs the named instance, or the one that selection chooses.
void run_moe_gemm(const Tensor& x, const MoeParams& params, const std::string* name) {
  const char* op = "humming::moe_gemm";
  if (!has_rows(params.gemm)) return;
  const OnDeviceOf device(x);
  const DeviceInfo info = device.info();
  MoeSortParams sort{};
  MoeProblem problem = params.layout == MoeLayout::indexed ? pairs_problem(op, x, params, device.stream(), &sort)
                                                           : rows_problem(op, x, params, device.stream());
  problem.rows.experts = static_cast<int>(params.gemm.desc.experts);
  if (params.expected_tokens > 0) problem.expected_rows = params.expected_tokens;
  problem.known_routing = params.known_routing && sort.sorted == nullptr;

  const MoeGemmInstance instance = name ? find_moe_gemm(*name, info) : choose_moe_gemm(problem, info).instance;
  if (entry_of(instance) == nullptr) refuse(op, params.gemm, x, rejections(candidates_moe_gemm(problem, info)));
  if (name != nullptr) check_runs(op, *name, cannot_run(instance, problem, info));
  if (sort.sorted != nullptr) launch<MoeSortColumns>(op, x, sort);
  launch_moe_gemm(instance, problem, info, device.stream());
  HUMMING_CUDA_CHECK(cudaGetLastError());
}

void moe_gemm_instance_cuda(const Tensor& x, const OptionalTensor& x_scale, const Tensor& packed,
                            const OptionalTensor& scale2, const OptionalTensor& bias, std::vector<int64_t> desc,
                            std::string layout, const OptionalTensor& sorted_token_ids,
                            const OptionalTensor& expert_ids, const OptionalTensor& num_tokens_post_padded,
                            const OptionalTensor& expert_offsets, const OptionalTensor& expert_counts,
                            const OptionalTensor& topk_weights, int64_t top_k, std::string activation,
                            std::vector<double> activation_args, std::string instance, Tensor out, Tensor workspace) {
  run_moe_gemm(x,
               check_moe_gemm(x, x_scale, packed, scale2, bias, desc, layout, sorted_token_ids, expert_ids,
                              num_tokens_post_padded, expert_offsets, expert_counts, topk_weights, top_k, activation,
                              activation_args, std::nullopt, out, workspace),
               &instance);
}

}  // namespace

void moe_gemm_cuda(const Tensor& x, const MoeParams& params) { run_moe_gemm(x, params, nullptr); }

}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CUDA, m) {
  m.impl("gemm.out", HUMMING_CHECKED(check_gemm, gemm_cuda));
  m.impl("gemm.instance", TORCH_BOX(&humming::gemm_instance_cuda));
  m.impl("moe_gemm.instance", TORCH_BOX(&humming::moe_gemm_instance_cuda));
  m.impl("moe_gemm.out", HUMMING_CHECKED(check_moe_gemm, moe_gemm_cuda));
}
