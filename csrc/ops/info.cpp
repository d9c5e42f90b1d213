// Ops about sizes, about the build and about what would run: packed_shape, row_scale_shape, widened_bytes,
// moe_gemm_workspace, fused_moe_workspace, plan, gemm_plan, build_info.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#ifdef HUMMING_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include "core/check.h"
#include "instances/instances.h"
#include "ops/checks.h"
#include "ops/cpu_dispatch.h"
#include "ops/tensor_check.h"
#include "select/gemm.h"
#include "select/moe_gemm.h"
#include "select/rows.h"
#include "select/select_sm90.h"

namespace humming {
namespace {

std::vector<int64_t> packed_shape(std::vector<int64_t> desc) {
  return parse_desc("humming::packed_shape", desc).packed_shape();
}

std::vector<int64_t> row_scale_shape(std::vector<int64_t> desc) {
  return parse_desc("humming::row_scale_shape", desc).row_scale_shape();
}

// Of products on CUDA with x of this type, beside what moe_gemm sorts; 0 if kernels read rows that begin at multiples
// of 16 bytes as they are.
int64_t widened_bytes(std::vector<int64_t> desc_ints, ScalarType x_dtype, int64_t rows) {
  const WeightDesc desc = parse_desc("humming::widened_bytes", desc_ints);
  const std::optional<DType> x = storage_type(x_dtype);
  return x && is_widened(desc, *x) ? rows * copy_pitch(desc, *x) : 0;
}

int64_t moe_gemm_workspace(int64_t experts, int64_t pairs) { return moe_workspace(experts, pairs, nullptr).bytes; }

// What happens to x before it is multiplied.
std::string widening(const WeightDesc& desc, DType x) {
  if (!is_widened(desc, x)) return "";
  return desc.operand == Operand::s8 ? " (int4 x is widened to it, exactly)" : " (x is widened to it, exactly)";
}

std::string accumulation(const WeightDesc& desc) {
  if (desc.operand != Operand::s8 && desc.operand != Operand::s4) return "fp32 sums";
  return desc.group ? "exact int32 sums over 128 columns, promoted to fp32 with the group's scale"
                    : "exact int32 sums, scaled after the last column";
}

// The GPU that plans are made for: the first one here, or an H200 where there is none.
DeviceInfo planning_device() {
  DeviceInfo device = kH200;
#ifdef HUMMING_WITH_CUDA
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) == cudaSuccess) {
    device.capability = 10 * major + minor;
    cudaDeviceGetAttribute(&device.num_sms, cudaDevAttrMultiProcessorCount, 0);
    cudaDeviceGetAttribute(&device.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    cudaDeviceGetAttribute(&device.shared_per_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor, 0);
  }
  cudaGetLastError();  // a machine without a GPU is no error here
#endif
  return device;
}

std::string plan(std::vector<int64_t> desc_ints, ScalarType x_dtype, int64_t tokens, bool cuda) {
  const char* op = "humming::plan";
  const WeightDesc desc = parse_desc(op, desc_ints);
  const DType x = check_x_dtype(op, desc, x_dtype);
  HUMMING_CHECK(tokens > 0, op, ": tokens = ", tokens, " is not positive");
  const std::string text =
      concat(desc.experts ? "moe_gemm" : "gemm", " of ", tokens, " tokens: ", desc.format_traits().name, " weights ",
             desc.experts ? concat(desc.experts, " x ") : "", desc.n, " x ", desc.k, ", x ", to_text(x_dtype),
             x == DType::int4 ? " (two int4 per byte)" : "", "; operand ", operand_name(desc.operand),
             widening(desc, x), ", ", accumulation(desc), "; ");
  if (!cuda) return concat(text, "CPU kernels, ", cpu_kernels().name);
  const DeviceInfo device = planning_device();
  const KernelEntry* entry = nullptr;
  std::string details;
  if (desc.experts > 0) {
    const MoeProblem problem = typical_moe_gemm(desc, x, tokens);
    entry = entry_of(choose_moe_gemm(problem, device).instance);
    details = explain_moe_gemm(problem, device);
  } else {
    const GemmParams problem = typical_gemm(desc, x, tokens);
    entry = entry_of(choose_gemm(problem, device).instance);
    details = explain_gemm(problem, device);
  }
  if (entry != nullptr) return concat(text, "CUDA instance ", entry->name, details);
  return concat(text, "no instance: this build (preset ", kPreset, ", architectures ",
                *kCudaArchs ? kCudaArchs : "none",
                ") has no such product for the GPU; move x and the weight to the CPU", details);
}

std::string json_string(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

std::string plan_rows(const std::vector<Candidate>& candidates, const KernelEntry* chosen, const TunedRow* row) {
  std::string rows;
  for (const Candidate& c : candidates) {
    rows += concat(rows.empty() ? "" : ", ", "{\"name\": ", json_string(c.entry->name),
                   ", \"rejection\": ", c.rejection ? json_string(c.rejection) : "null",
                   ", \"estimate\": ", c.rejection ? "null" : std::to_string(c.cycles),
                   ", \"chosen\": ", c.entry == chosen ? "true" : "false",
                   ", \"tuned\": ", c.entry == chosen && row != nullptr ? "true" : "false", "}");
  }
  return concat("[", rows, "]");
}

// JSON: a list of {"name", "rejection", "estimate", "chosen", "tuned"}, one per instance of gemm, or of moe_gemm for a
// weight with experts.
std::string gemm_plan(std::vector<int64_t> desc_ints, ScalarType x_dtype, int64_t tokens) {
  const char* op = "humming::gemm_plan";
  const WeightDesc desc = parse_desc(op, desc_ints);
  const DType x = check_x_dtype(op, desc, x_dtype);
  HUMMING_CHECK(tokens > 0, op, ": tokens = ", tokens, " is not positive");
  const DeviceInfo device = planning_device();
  if (desc.experts > 0) {
    const MoeProblem problem = typical_moe_gemm(desc, x, tokens);
    const MoeGemmChoice choice = choose_moe_gemm(problem, device);
    return plan_rows(candidates_moe_gemm(problem, device), entry_of(choice.instance), choice.row);
  }
  const GemmParams problem = typical_gemm(desc, x, tokens);
  const GemmChoice choice = choose_gemm(problem, device);
  return plan_rows(candidates_gemm(problem, device), entry_of(choice.instance), choice.row);
}

// Whether the torch of this process is a CUDA build: import torch has then loaded this library.
bool torch_has_cuda() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library) dlclose(library);
  return library != nullptr;
}

std::string cudart_version() {
#ifdef HUMMING_WITH_CUDA
  return std::to_string(CUDART_VERSION);
#else
  return "null";
#endif
}

std::string build_info() {
  std::string archs;  // "80;90a" -> "80", "90a"
  std::string arch;
  for (const char* c = kCudaArchs;; ++c) {
    if (*c && *c != ';') {
      arch += *c;
      continue;
    }
    if (!arch.empty()) archs += (archs.empty() ? "" : ", ") + json_string(arch);
    arch.clear();
    if (!*c) break;
  }
  std::string instances;
  for (const KernelEntry& entry : all_instances()) {
    instances +=
        concat(instances.empty() ? "" : ", ", "{\"name\": ", json_string(entry.name), ", \"arch\": ", entry.arch, "}");
  }
  return concat("{\"version\": ", json_string(HUMMING_VERSION), ", \"layout_version\": ", kLayoutVersion,
                ", \"preset\": ", json_string(kPreset), ", \"cuda_archs\": [", archs,
                "], \"cpu_isa\": ", json_string(cpu_kernels().name), ", \"instances\": [", instances,
                "], \"cudart\": ", cudart_version(), ", \"torch_has_cuda\": ", torch_has_cuda() ? "true" : "false",
                "}");
}

}  // namespace
}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CompositeExplicitAutograd, m) {
  m.impl("packed_shape", TORCH_BOX(&humming::packed_shape));
  m.impl("row_scale_shape", TORCH_BOX(&humming::row_scale_shape));
  m.impl("widened_bytes", TORCH_BOX(&humming::widened_bytes));
  m.impl("moe_gemm_workspace", TORCH_BOX(&humming::moe_gemm_workspace));
  m.impl("fused_moe_workspace", TORCH_BOX(&humming::fused_moe_workspace));
  m.impl("plan", TORCH_BOX(&humming::plan));
  m.impl("gemm_plan", TORCH_BOX(&humming::gemm_plan));
  m.impl("build_info", TORCH_BOX(&humming::build_info));
}
