// Checks and times every dense instance it was built with, without torch:
//
//   variants N K TOKENS[,TOKENS...] [early=STAGES] [l2]
//
//   early   stages of weights to ask for before the grid ahead has ended, instead of selection's
//   l2      the same weights in every launch: what the kernel takes when memory does not bound it
//
// Prints a JSON line for each instance and token count: microseconds per launch, replayed from a CUDA graph over weight
// sets of more than 300 MB together, with plain edges between the launches and with dependent ones; and the error
// against sums in float64 over the weights that decode_packed returns, of 4096 results. Codes are random bits.
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "core/check.h"
#include "kernel/cuda_check.h"
#include "layout/record.h"
#include "select/gemm_sm90.h"
#include "select/select_sm90.h"

namespace humming {
namespace {

constexpr int kSamples = 4096;
constexpr size_t kRotated = 300u << 20;
constexpr int kCooledTokens = 1024;  // from here on the GPU rests before it is timed

__host__ __device__ uint32_t hash(uint64_t value) {
  value = (value + 1) * 0x9E3779B97F4A7C15ull;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ull;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBull;
  return static_cast<uint32_t>(value ^ (value >> 31));
}
__device__ uint16_t bf16_bits(float value) { return __bfloat16_as_ushort(__float2bfloat16(value)); }
__device__ float unit(uint32_t bits) { return static_cast<float>(bits & 0xFFFF) / 65536; }  // [0, 1)

template <class Value>
__global__ void fill(Value* values, size_t count, Value mask, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    values[i] = static_cast<Value>(hash(i + seed)) & mask;
  }
}
__global__ void fill_bf16(uint16_t* values, size_t count, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    const uint32_t bits = hash(i + seed);
    values[i] = bf16_bits(unit(bits) + unit(bits >> 16) - 1);
  }
}

// Scales, and zero points or offsets, of all records.
__global__ void fill_scales(uint8_t* packed, int64_t records, int record_bytes, int offset, int count, ScaleType type,
                            uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < records * count; i += gridDim.x * blockDim.x) {
    uint8_t* area = packed + i / count * record_bytes + offset;
    const uint32_t bits = hash(i + seed);
    const float value = (1 + unit(bits)) / 128;
    switch (type) {
      case ScaleType::fp32: reinterpret_cast<float*>(area)[i % count] = value; break;
      case ScaleType::bf16: reinterpret_cast<uint16_t*>(area)[i % count] = bf16_bits(value); break;
      case ScaleType::e8m0: area[i % count] = 127 - bits % 12; break;
      case ScaleType::e4m3: area[i % count] = 0x20 + bits % 0x40; break;
      default: area[i % count] = bits % 16;  // an integer zero point
    }
  }
}

__device__ double number(const void* x, DType type, int64_t at) {
  if (type == DType::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(x)[at]);
  if (type == DType::int8) return static_cast<const int8_t*>(x)[at];
  __nv_fp8_e4m3 value;
  value.__x = static_cast<const uint8_t*>(x)[at];
  return static_cast<float>(value);
}

// errors[s] = {squared error, squared value} of one sampled result per block.
__global__ void sample_errors(const float* weights, const void* x, DType type, int64_t n, int64_t k, int64_t tokens,
                              const uint16_t* out, double2* errors) {
  __shared__ double sums[256];
  const int64_t row = hash(blockIdx.x) % n, token = hash(blockIdx.x + kSamples) % tokens;
  double sum = 0;
  for (int64_t c = threadIdx.x; c < k; c += blockDim.x) sum += number(x, type, token * k + c) * weights[row * k + c];
  sums[threadIdx.x] = sum;
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x > 0) return;
  const double value = __bfloat162float(__ushort_as_bfloat16(out[token * n + row]));
  errors[blockIdx.x] = {(value - sums[0]) * (value - sums[0]), sums[0] * sums[0]};
}

template <class T>
T* device_memory(size_t count) {
  void* memory;
  HUMMING_CUDA_CHECK(cudaMalloc(&memory, count * sizeof(T) + 1024));
  return static_cast<T*>(memory);
}

// The packed sets of one weight, and its values.
struct Weight {
  WeightDesc desc;
  size_t bytes;
  int sets;
  uint8_t* packed;
  float* values;

  Weight(const GemmSm90Columns& c, int64_t n, int64_t k) : desc{} {
    constexpr ScaleType kTypes[] = {ScaleType::none, ScaleType::bf16, ScaleType::fp32, ScaleType::e8m0,
                                    ScaleType::e4m3};
    desc.format = c.format;
    desc.operand = c.operand;
    desc.n = n;
    desc.k = k;
    desc.zero = c.zero;
    desc.scale_type = kTypes[static_cast<int>(c.scale_storage)];
    desc.group = desc.scale_type == ScaleType::none ? 0 : c.group;

    const RecordGeometry record(desc, 2);
    HUMMING_CHECK(desc.operand != Operand::fp16, "operand fp16 is not measured here");
    HUMMING_CHECK(k % kTileK == 0, "k = ", k, " is no multiple of ", kTileK, ": records must all be full here");
    bytes = desc.strip_bytes() * desc.num_strips();
    sets = static_cast<int>(std::clamp<size_t>(kRotated / bytes + 1, 2, 64));
    packed = device_memory<uint8_t>(bytes * sets);
    const bool specials = desc.format_traits().specials != Specials::none;
    fill<<<1024, 256>>>(packed, bytes * sets, static_cast<uint8_t>(specials ? 0xBF : 0xFF), 1);  // no Inf, no NaN
    const int64_t records = bytes / record.bytes * sets;
    if (record.groups > 0) {
      fill_scales<<<1024, 256>>>(packed, records, record.bytes, record.scale_offset, kStripRows * record.groups,
                                 desc.scale_type, 2);
    }
    if (record.zero_groups > 0) {
      fill_scales<<<1024, 256>>>(packed, records, record.bytes, record.zero_offset, kStripRows * record.zero_groups,
                                 desc.zero == ZeroKind::integer ? ScaleType::none : desc.scale_type, 3);
    }

    values = device_memory<float>(n * k);
    DecodeParams decode{};
    decode.desc = desc;
    decode.packed = packed;
    decode.values = values;
    const FormatTraits format = desc.format_traits();
    const auto* decoder = find_instance<DecodeColumns>(90, [&](const DecodeColumns& columns) {
      return columns.codec == codec_of(format) && columns.order == desc.order() && columns.bits == format.bits;
    });
    HUMMING_CHECK(decoder != nullptr, "no instance reads ", format.name, " back");
    decoder->launch(decode, nullptr);
    HUMMING_CUDA_CHECK(cudaDeviceSynchronize());
  }
  ~Weight() {
    cudaFree(packed);
    cudaFree(values);
  }
};

struct Options {
  int early_stages = 0;  // 0: selection's
  bool in_l2 = false;
};

struct Run {
  const GemmSm90Instance& instance;
  const Weight& weight;
  GemmSm90Params params;
  cudaStream_t stream;

  double error(const GemmParams& problem, bool dependent) {
    HUMMING_CUDA_CHECK(cudaMemset(problem.out, 0xFF, problem.out_rows * problem.out_row_stride * 2));  // NaN
    params.mainloop.dependent_launch = dependent;
    instance.launch(params, stream);
    HUMMING_CUDA_CHECK(cudaStreamSynchronize(stream));
    double2* errors = device_memory<double2>(kSamples);
    sample_errors<<<kSamples, 256>>>(weight.values, problem.x, problem.x_dtype, weight.desc.n, weight.desc.k,
                                     problem.rows, static_cast<const uint16_t*>(problem.out), errors);
    std::vector<double2> host(kSamples);
    HUMMING_CUDA_CHECK(cudaMemcpy(host.data(), errors, kSamples * sizeof(double2), cudaMemcpyDefault));
    HUMMING_CUDA_CHECK(cudaFree(errors));
    double error = 0, total = 0;
    for (const double2& sample : host) {
      error += sample.x;
      total += sample.y;
    }
    return std::sqrt(error / total);
  }

  // Median microseconds per launch.
  double time(bool dependent, bool in_l2) {
    params.mainloop.dependent_launch = dependent;
    const bool cooled = params.mainloop.tokens >= kCooledTokens;
    const int launches = cooled ? 2 : std::max(2 * weight.sets, 30);
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    HUMMING_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; ++i) {
      params.mainloop.packed = weight.packed + (in_l2 ? 0 : i % weight.sets) * weight.bytes;
      instance.launch(params, stream);
    }
    params.mainloop.packed = weight.packed;
    HUMMING_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    HUMMING_CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
    if (cooled) usleep(400000);
    std::vector<float> times;
    cudaEvent_t begin, end;
    HUMMING_CUDA_CHECK(cudaEventCreate(&begin));
    HUMMING_CUDA_CHECK(cudaEventCreate(&end));
    for (int i = 0; i < 23; ++i) {  // three to warm up
      HUMMING_CUDA_CHECK(cudaEventRecord(begin, stream));
      HUMMING_CUDA_CHECK(cudaGraphLaunch(replay, stream));
      HUMMING_CUDA_CHECK(cudaEventRecord(end, stream));
      HUMMING_CUDA_CHECK(cudaEventSynchronize(end));
      float milliseconds;
      HUMMING_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
      if (i >= 3) times.push_back(milliseconds * 1e3f / launches);
    }
    HUMMING_CUDA_CHECK(cudaGraphExecDestroy(replay));
    HUMMING_CUDA_CHECK(cudaGraphDestroy(graph));
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2];
  }
};

void measure(const GemmSm90Instance& instance, int64_t n, int64_t k, const std::vector<int>& token_counts,
             const Options& options, cudaStream_t stream) {
  const Weight weight(instance.columns, n, k);
  for (const int tokens : token_counts) {
    GemmParams problem = typical_gemm(weight.desc, own_dtype(weight.desc.operand), tokens);
    const size_t x_bytes = tokens * k * dtype_bits(problem.x_dtype) / 8;
    uint8_t* x = device_memory<uint8_t>(x_bytes);
    if (problem.x_dtype == DType::bf16)
      fill_bf16<<<1024, 256>>>(reinterpret_cast<uint16_t*>(x), x_bytes / 2, 4);
    else
      fill<<<1024, 256>>>(x, x_bytes, static_cast<uint8_t>(problem.x_dtype == DType::int8 ? 0xFF : 0xBF), 4);
    problem.packed = weight.packed;
    problem.x = x;
    problem.x_row_bytes = x_bytes / tokens;
    problem.out = device_memory<uint16_t>(tokens * n);

    const char* rejection = cannot_run(instance, problem, kH200);
    if (rejection != nullptr) {
      std::printf("{\"instance\": \"%s\", \"tokens\": %d, \"rejection\": \"%s\"}\n", instance.entry.name, tokens,
                  rejection);
    } else {
      Run run{instance, weight, params_gemm_sm90(instance, problem, kH200), stream};
      Sm90MainloopParams& m = run.params.mainloop;
      if (options.early_stages > 0) m.early_stages = std::min(options.early_stages, m.stages);
      const double error = std::max(run.error(problem, false), run.error(problem, true));
      const double plain = run.time(false, options.in_l2), dependent = run.time(true, options.in_l2);
      std::printf(
          "{\"instance\": \"%s\", \"n\": %ld, \"k\": %ld, \"tokens\": %d, \"error\": %.2e, \"us_plain\": %.2f, "
          "\"us_dependent\": %.2f, \"tflops\": %.0f, \"stages\": %d, \"early_stages\": %d, \"ctas\": %d}\n",
          instance.entry.name, n, k, tokens, error, plain, dependent,
          2e-6 * tokens * n * k / std::min(plain, dependent), m.stages, m.early_stages, run.params.num_ctas);
    }
    std::fflush(stdout);
    HUMMING_CUDA_CHECK(cudaFree(x));
    HUMMING_CUDA_CHECK(cudaFree(problem.out));
  }
}

int main_of(int count, char** arguments) {
  HUMMING_CHECK(count >= 4, "usage: variants N K TOKENS[,TOKENS...] [early=STAGES] [l2]");
  std::vector<int> tokens;
  std::stringstream list(arguments[3]);
  for (std::string item; std::getline(list, item, ',');) tokens.push_back(std::stoi(item));
  Options options;
  for (int i = 4; i < count; ++i) {
    const std::string option = arguments[i];
    options.in_l2 |= option == "l2";
    if (option.rfind("early=", 0) == 0) options.early_stages = std::stoi(option.substr(6));
  }
  HUMMING_CUDA_CHECK(cudaFree(nullptr));
  cudaStream_t stream;
  HUMMING_CUDA_CHECK(cudaStreamCreate(&stream));
  for (const GemmSm90Instance& instance : instances<GemmSm90Columns>()) {
    measure(instance, std::stoll(arguments[1]), std::stoll(arguments[2]), tokens, options, stream);
  }
  return 0;
}

}  // namespace
}  // namespace humming

int main(int count, char** arguments) {
  try {
    return humming::main_of(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
