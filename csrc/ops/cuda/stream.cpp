#include "ops/cuda/stream.h"

#include <dlfcn.h>

#include "kernel/cuda_check.h"

namespace humming {
namespace {

using GetStream = AOTITorchError (*)(int32_t device, void** stream);

// torch's function lies in libtorch_cuda.so, which a CPU build of torch does not have: it must be no link-time
// dependency. Python loads torch RTLD_LOCAL, so that RTLD_DEFAULT does not see the symbol; RTLD_NOLOAD finds the copy
// that is in the process, by its SONAME, and never loads a second one.
GetStream resolve() {
  constexpr const char* kName = "aoti_torch_get_current_cuda_stream";
  void* symbol = dlsym(RTLD_DEFAULT, kName);
  if (symbol == nullptr) {
    if (void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) {
      symbol = dlsym(library, kName);
      dlclose(library);  // gives back our reference only
    }
  }
  return reinterpret_cast<GetStream>(symbol);
}

}  // namespace

OnDeviceOf::OnDeviceOf(const torch::stable::Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {
  // The static runtime of this library keeps its own notion of the current device beside that of torch's runtime.
  HUMMING_CUDA_CHECK(cudaSetDevice(index_));
}

int OnDeviceOf::compute_capability() const {
  int major = 0, minor = 0;
  HUMMING_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index_));
  HUMMING_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index_));
  return 10 * major + minor;
}

DeviceInfo OnDeviceOf::info() const {
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    HUMMING_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, index_));
    return value;
  };
  return {compute_capability(), attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
}

cudaStream_t OnDeviceOf::stream() const {
  static const GetStream get_stream = resolve();
  HUMMING_CHECK(get_stream != nullptr,
                "humming: a CUDA op was called, but this torch has no CUDA runtime (no "
                "libtorch_cuda.so in the process); install a CUDA build of torch");
  void* stream = nullptr;
  HUMMING_CHECK(get_stream(index_, &stream) == AOTI_TORCH_SUCCESS,
                "humming: torch has no current stream for cuda:", index_);
  return static_cast<cudaStream_t>(stream);
}

}  // namespace humming
