// Checks and times every GEMM instance it was built with, without torch:
//
//   variants N K TOKENS[,TOKENS...] [experts=E] [top_k=T] [early=STAGES] [l2]
//
//   experts the MoE instances, with so many experts of N x K, instead of the dense ones. Tokens go to top_k random
//           experts each and lie sorted by expert; eight routings take turns
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
#include <utility>
#include <vector>

#include "core/check.h"
#include "kernel/cuda_check.h"
#include "layout/record.h"
#include "select/gemm_sm90.h"
#include "select/moe_gemm_sm90.h"
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
// experts: of every token; nullptr: the only one.
__global__ void sample_errors(const float* weights, const int* experts, const void* x, DType type, int64_t n, int64_t k,
                              int64_t tokens, const uint16_t* out, double2* errors) {
  __shared__ double sums[256];
  const int64_t row = hash(blockIdx.x) % n, token = hash(blockIdx.x + kSamples) % tokens;
  if (experts != nullptr) weights += experts[token] * n * k;
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

  template <class Columns>
  Weight(const Columns& c, int64_t n, int64_t k, int64_t experts) : desc{} {
    constexpr ScaleType kTypes[] = {ScaleType::none, ScaleType::bf16, ScaleType::fp32, ScaleType::e8m0,
                                    ScaleType::e4m3};
    desc.format = c.format;
    desc.operand = c.operand;
    desc.n = n;
    desc.k = k;
    desc.experts = experts;
    desc.zero = c.zero;
    desc.scale_type = kTypes[static_cast<int>(c.scale_storage)];
    desc.group = desc.scale_type == ScaleType::none ? 0 : c.group;

    const RecordGeometry record(desc, 2);
    HUMMING_CHECK(desc.operand != Operand::fp16, "operand fp16 is not measured here");
    HUMMING_CHECK(k % kTileK == 0, "k = ", k, " is no multiple of ", kTileK, ": records must all be full here");
    bytes = desc.strip_bytes() * desc.num_strips() * std::max<int64_t>(experts, 1);
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

    values = device_memory<float>(n * k * std::max<int64_t>(experts, 1));
    DecodeParams decode{};
    decode.desc = desc;
    decode.packed = packed;
    decode.values = values;
    const auto* decoder = find_instance<DecodeColumns>(90, [](const DecodeColumns&) { return true; });
    HUMMING_CHECK(decoder != nullptr, "no instance reads packed weights back");
    decoder->launch(decode, nullptr);
    HUMMING_CUDA_CHECK(cudaDeviceSynchronize());
  }
  ~Weight() {
    cudaFree(packed);
    cudaFree(values);
  }
};

struct Options {
  int64_t experts = 0, top_k = 6;
  int early_stages = 0;  // 0: selection's
  bool in_l2 = false;
};

// One product, launched with several params in turn.
template <class Instance, class Params>
struct Run {
  const Instance& instance;
  const Weight& weight;
  const GemmParams& problem;
  std::vector<Params> params;
  std::vector<const int*> experts;  // of the tokens, for each params
  cudaStream_t stream;

  void launch(size_t which, bool dependent, const uint8_t* packed) {
    Params& mine = params[which % params.size()];
    mine.mainloop.dependent_launch = dependent;
    mine.mainloop.packed = packed;
    instance.launch(mine, stream);
  }

  // The largest of all params.
  double error(bool dependent) {
    double largest = 0;
    double2* errors = device_memory<double2>(kSamples);
    for (size_t i = 0; i < params.size(); ++i) {
      HUMMING_CUDA_CHECK(cudaMemset(problem.out, 0xFF, problem.out_rows * problem.out_row_stride * 2));  // NaN
      launch(i, dependent, weight.packed);
      HUMMING_CUDA_CHECK(cudaStreamSynchronize(stream));
      sample_errors<<<kSamples, 256>>>(weight.values, experts[i], problem.x, problem.x_dtype, weight.desc.n,
                                       weight.desc.k, problem.rows, static_cast<const uint16_t*>(problem.out), errors);
      std::vector<double2> host(kSamples);
      HUMMING_CUDA_CHECK(cudaMemcpy(host.data(), errors, kSamples * sizeof(double2), cudaMemcpyDefault));
      double error = 0, total = 0;
      for (const double2& sample : host) {
        error += sample.x;
        total += sample.y;
      }
      largest = std::max(largest, std::isnan(error) ? HUGE_VAL : std::sqrt(error / total));
    }
    HUMMING_CUDA_CHECK(cudaFree(errors));
    return largest;
  }

  // Median microseconds per launch.
  double time(bool dependent, bool in_l2) {
    const bool cooled = problem.rows >= kCooledTokens;
    const int launches =
        cooled ? 2 : std::max<int>(2 * weight.sets, params.size() > 1 ? 2 * static_cast<int>(params.size()) : 30);
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    HUMMING_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; ++i) {
      launch(i, dependent, weight.packed + (in_l2 ? 0 : i % weight.sets) * weight.bytes);
    }
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

  void report(int tokens, const Options& options) {
    for (Params& mine : params) {
      Sm90MainloopParams& m = mine.mainloop;
      if (options.early_stages > 0) m.early_stages = std::min(options.early_stages, m.stages);
    }
    const double worst = std::max(error(false), error(true));
    const double plain = time(false, options.in_l2), dependent = time(true, options.in_l2);
    const int64_t n = weight.desc.n, k = weight.desc.k;
    const Sm90MainloopParams& m = params[0].mainloop;
    std::printf(
        "{\"instance\": \"%s\", \"n\": %ld, \"k\": %ld, \"experts\": %ld, \"tokens\": %d, \"error\": %.2e, "
        "\"us_plain\": %.2f, \"us_dependent\": %.2f, \"tflops\": %.0f, \"stages\": %d, \"early_stages\": %d, "
        "\"ctas\": %d}\n",
        instance.entry.name, n, k, weight.desc.experts, tokens, worst, plain, dependent,
        2e-6 * problem.rows * n * k / std::min(plain, dependent), m.stages, m.early_stages, params[0].num_ctas);
  }
};

void print_rejection(const KernelEntry& entry, int tokens, const char* rejection) {
  std::printf("{\"instance\": \"%s\", \"tokens\": %d, \"rejection\": \"%s\"}\n", entry.name, tokens, rejection);
}

// Memory for `rows` random rows of x, and for their results.
struct Rows {
  uint8_t* x;
  uint16_t* out;

  Rows(const Weight& weight, int64_t rows, GemmParams* problem) {
    const size_t x_bytes = rows * weight.desc.k * dtype_bits(problem->x_dtype) / 8;
    x = device_memory<uint8_t>(x_bytes);
    if (problem->x_dtype == DType::bf16)
      fill_bf16<<<1024, 256>>>(reinterpret_cast<uint16_t*>(x), x_bytes / 2, 4);
    else
      fill<<<1024, 256>>>(x, x_bytes, static_cast<uint8_t>(problem->x_dtype == DType::int8 ? 0xFF : 0xBF), 4);
    out = device_memory<uint16_t>(rows * weight.desc.n);
    problem->packed = weight.packed;
    problem->x = x;
    problem->x_row_bytes = x_bytes / rows;
    problem->out = out;
  }
  ~Rows() {
    cudaFree(x);
    cudaFree(out);
  }
};

void measure(const GemmSm90Instance& instance, int64_t n, int64_t k, const std::vector<int>& token_counts,
             const Options& options, cudaStream_t stream) {
  const Weight weight(instance.columns, n, k, 0);
  for (const int tokens : token_counts) {
    GemmParams problem = typical_gemm(weight.desc, own_dtype(weight.desc.operand), tokens);
    const Rows rows(weight, tokens, &problem);
    if (const char* rejection = cannot_run(instance, problem, kH200)) {
      print_rejection(instance.entry, tokens, rejection);
    } else {
      Run<GemmSm90Instance, GemmSm90Params> run{instance,  weight, problem, {params_of(instance, problem, kH200)},
                                                {nullptr}, stream};
      run.report(tokens, options);
    }
    std::fflush(stdout);
  }
}

// A random routing of tokens to top_k different experts each.
struct Routing {
  int* offsets;  // [experts + 1]
  int* experts;  // of every row

  Routing(int64_t tokens, int64_t num_experts, int64_t top_k, uint64_t seed) {
    std::vector<int> counts(num_experts + 1), rows;
    for (int64_t token = 0; token < tokens; ++token) {
      std::vector<std::pair<uint32_t, int>> keys;
      for (int e = 0; e < num_experts; ++e) keys.emplace_back(hash((seed * tokens + token) * num_experts + e), e);
      std::partial_sort(keys.begin(), keys.begin() + top_k, keys.end());
      for (int64_t slot = 0; slot < top_k; ++slot) ++counts[keys[slot].second];
    }
    std::vector<int> first(num_experts + 1);
    for (int64_t e = 0; e < num_experts; ++e) {
      first[e + 1] = first[e] + counts[e];
      rows.insert(rows.end(), counts[e], static_cast<int>(e));
    }
    offsets = device_memory<int>(first.size());
    experts = device_memory<int>(rows.size());
    HUMMING_CUDA_CHECK(cudaMemcpy(offsets, first.data(), first.size() * sizeof(int), cudaMemcpyDefault));
    HUMMING_CUDA_CHECK(cudaMemcpy(experts, rows.data(), rows.size() * sizeof(int), cudaMemcpyDefault));
  }
};

void measure(const MoeGemmSm90Instance& instance, int64_t n, int64_t k, const std::vector<int>& token_counts,
             const Options& options, cudaStream_t stream) {
  constexpr int kRoutings = 8;
  const Weight weight(instance.columns, n, k, options.experts);
  for (const int tokens : token_counts) {
    MoeProblem problem = typical_moe_gemm(weight.desc, own_dtype(weight.desc.operand), tokens * options.top_k);
    const Rows rows(weight, tokens * options.top_k, &problem.gemm);
    if (const char* rejection = cannot_run(instance, problem, kH200)) {
      print_rejection(instance.entry, tokens, rejection);
    } else {
      Run<MoeGemmSm90Instance, MoeGemmSm90Params> run{instance, weight, problem.gemm, {}, {}, stream};
      for (int i = 0; i < kRoutings; ++i) {
        const Routing routing(tokens, options.experts, options.top_k, i);
        problem.rows.offsets = routing.offsets;
        problem.rows.offset_dtype = DType::int32;
        run.params.push_back(params_of(instance, problem, kH200));
        run.experts.push_back(routing.experts);
      }
      run.report(tokens, options);
      for (int i = 0; i < kRoutings; ++i) {
        cudaFree(const_cast<void*>(run.params[i].rows.offsets));
        cudaFree(const_cast<int*>(run.experts[i]));
      }
    }
    std::fflush(stdout);
  }
}

template <class Columns>
void measure_all(int64_t n, int64_t k, const std::vector<int>& tokens, const Options& options) {
  cudaStream_t stream;
  HUMMING_CUDA_CHECK(cudaStreamCreate(&stream));
  for (const Instance<Columns>& instance : instances<Columns>()) measure(instance, n, k, tokens, options, stream);
}

int main_of(int count, char** arguments) {
  HUMMING_CHECK(count >= 4, "usage: variants N K TOKENS[,TOKENS...] [experts=E] [top_k=T] [early=STAGES] [l2]");
  std::vector<int> tokens;
  std::stringstream list(arguments[3]);
  for (std::string item; std::getline(list, item, ',');) tokens.push_back(std::stoi(item));
  Options options;
  for (int i = 4; i < count; ++i) {
    const std::string option = arguments[i];
    options.in_l2 |= option == "l2";
    if (option.rfind("early=", 0) == 0) options.early_stages = std::stoi(option.substr(6));
    if (option.rfind("experts=", 0) == 0) options.experts = std::stoll(option.substr(8));
    if (option.rfind("top_k=", 0) == 0) options.top_k = std::stoll(option.substr(6));
  }
  HUMMING_CUDA_CHECK(cudaFree(nullptr));
  const int64_t n = std::stoll(arguments[1]), k = std::stoll(arguments[2]);
  if (options.experts > 0)
    measure_all<MoeGemmSm90Columns>(n, k, tokens, options);
  else
    measure_all<GemmSm90Columns>(n, k, tokens, options);
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
