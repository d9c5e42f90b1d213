// CUDA registration of gemm and moe_gemm. What has no kernel instance is refused after its arguments were checked;
// calls without rows are no-ops.
#include <torch/csrc/stable/library.h>

#include "core/check.h"
#include "instances/instances.h"
#include "ops/checked.h"
#include "ops/cuda/launch.h"
#include "ops/tensor_check.h"
#include "select/gemm_sm90.h"

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

// Kernels fetch rows of x that begin at multiples of 16 bytes. Others are copied to the workspace first, which the
// functional op sizes for that.
void align_rows(const char* op, GemmParams* params, cudaStream_t stream) {
  constexpr int64_t kAlign = 16, kPitch = 128;
  if (params->x_row_bytes % kAlign == 0 && reinterpret_cast<uintptr_t>(params->x) % kAlign == 0) return;
  const int64_t bytes = (params->desc.k * dtype_bits(params->x_dtype) + 7) / 8;
  const int64_t pitch = (bytes + kPitch - 1) / kPitch * kPitch;
  HUMMING_CHECK(params->workspace_bytes >= params->rows * pitch, op, ": workspace has ", params->workspace_bytes,
                " bytes, but rows of x that do not begin at multiples of 16 bytes are copied to it: ",
                params->rows * pitch, " bytes");
  HUMMING_CUDA_CHECK(cudaMemcpy2DAsync(params->workspace, pitch, params->x, params->x_row_bytes, bytes, params->rows,
                                       cudaMemcpyDeviceToDevice, stream));
  params->x = params->workspace;
  params->x_row_bytes = pitch;
}

// Runs the named instance, or the one that selection chooses.
void run_gemm(const Tensor& x, GemmParams params, const std::string* name) {
  if (!has_rows(params)) return;
  const OnDeviceOf device(x);
  align_rows("humming::gemm", &params, device.stream());
  const DeviceInfo info = device.info();
  const GemmSm90Instance* instance = name ? &find_gemm_sm90(*name) : choose_gemm_sm90(params, info).instance;
  if (instance == nullptr) refuse("humming::gemm", params, x, rejections_gemm_sm90(params, info));
  if (name != nullptr) {
    const char* reason = cannot_run(*instance, params, info);
    HUMMING_CHECK(reason == nullptr, "humming::gemm: instance ", *name, " ", reason,
                  "; humming_ext.explain lists those that run this product");
  }
  instance->launch(params_gemm_sm90(*instance, params, info), device.stream());
  HUMMING_CUDA_CHECK(cudaGetLastError());
}

void gemm_cuda(const Tensor& x, const GemmParams& params) { run_gemm(x, params, nullptr); }

void gemm_instance_cuda(const Tensor& x, const OptionalTensor& x_scale, const Tensor& packed,
                        const OptionalTensor& scale2, const OptionalTensor& bias, std::vector<int64_t> desc,
                        std::string instance, Tensor out, Tensor workspace) {
  run_gemm(x, check_gemm(x, x_scale, packed, scale2, bias, desc, out, workspace), &instance);
}

void moe_gemm_cuda(const Tensor& x, const MoeParams& params) {
  if (has_rows(params.gemm)) refuse("humming::moe_gemm", params.gemm, x, "");
}

}  // namespace
}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CUDA, m) {
  m.impl("gemm.out", HUMMING_CHECKED(check_gemm, gemm_cuda));
  m.impl("gemm.instance", TORCH_BOX(&humming::gemm_instance_cuda));
  m.impl("moe_gemm.out", HUMMING_CHECKED(check_moe_gemm, moe_gemm_cuda));
}
