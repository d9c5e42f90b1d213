// CPU registration of gemm and moe_gemm: rows sorted into one list of tasks (expert, rows) x strip, spread over
// threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "core/check.h"
#include "ops/checked.h"
#include "ops/cpu_dispatch.h"
#include "ops/cpu_ops.h"

namespace humming {
namespace {

// Every strip of every row list. Threads take tasks one by one: experts have unequal numbers of rows.
void run(const GemmParams& params, const std::vector<GemmRows>& lists) {
  const int64_t strips = params.desc.num_strips();
  const int64_t tasks = static_cast<int64_t>(lists.size()) * strips;
  if (tasks == 0) return;
  const CpuKernels& kernels = cpu_kernels();
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (int64_t task = next++; task < tasks; task = next++) {
      kernels.gemm(params, lists[task / strips], task % strips);
    }
  });
}

// Cuts rows into equal lists that one kernel call takes.
void append(std::vector<GemmRows>* lists, GemmRows rows) {
  while (rows.count > 0) {
    const int64_t cuts = (rows.count + kMaxGemmRows - 1) / kMaxGemmRows;
    GemmRows part = rows;
    part.count = (rows.count + cuts - 1) / cuts;
    lists->push_back(part);
    if (rows.ids) rows.ids += part.count;
    rows.first += part.count;
    rows.count -= part.count;
  }
}

void gemm_cpu(const Tensor&, const GemmParams& params) {
  std::vector<GemmRows> lists;
  append(&lists, {0, nullptr, 0, params.rows, 1, false});
  run(params, lists);
}

[[noreturn]] void refuse_instance(const char* op, const std::string& instance) {
  throw std::runtime_error(concat(op, ": instance = \"", instance,
                                  "\" is a CUDA kernel, but x is on the CPU; move the tensors to a GPU, or leave "
                                  "instance out"));
}

void gemm_instance_cpu(const Tensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&,
                       const OptionalTensor&, std::vector<int64_t>, std::string instance, Tensor, Tensor) {
  refuse_instance("humming::gemm", instance);
}

void moe_gemm_instance_cpu(const Tensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&,
                           const OptionalTensor&, std::vector<int64_t>, std::string, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, int64_t, std::string, std::vector<double>, std::string instance,
                           Tensor, Tensor) {
  refuse_instance("humming::moe_gemm", instance);
}

// `pairs` receives the valid pairs, expert by expert as the blocks come; lists point into it.
void list_blocks(const MoeParams& params, std::vector<int32_t>* pairs, std::vector<GemmRows>* lists) {
  const char* op = "humming::moe_gemm";
  const int64_t experts = params.gemm.desc.experts;
  const int64_t padded = *params.num_post_padded;
  HUMMING_CHECK(padded >= 0 && padded <= params.num_sorted, op, ": num_tokens_post_padded is ", padded,
                "; sorted_token_ids has ", params.num_sorted, " elements");
  pairs->reserve(static_cast<size_t>(padded));  // the lists' pointers stay valid
  for (int64_t first = 0; first < padded; first += params.block) {
    const int64_t expert = params.expert_ids[first / params.block];
    HUMMING_CHECK(expert >= -1 && expert < experts, op, ": expert_ids[", first / params.block, "] is ", expert,
                  "; the weight has ", experts, " experts, -1 skips a block");
    if (expert < 0) continue;
    const size_t begin = pairs->size();
    for (int64_t i = first; i < std::min(first + params.block, padded); ++i) {
      const int32_t pair = params.sorted_token_ids[i];
      if (pair >= 0 && pair < params.gemm.out_rows) pairs->push_back(pair);
    }
    const int64_t count = static_cast<int64_t>(pairs->size() - begin);
    // Blocks of one expert follow one another: one list, so that its weights are decoded once for all.
    if (!lists->empty() && lists->back().expert == expert) {
      lists->back().count += count;
    } else {
      lists->push_back({expert, pairs->data() + begin, 0, count, params.top_k, false});
    }
  }
}

// Layout contiguous, and the pairs of the layout indexed that lie sorted.
void list_offsets(const MoeParams& params, std::vector<GemmRows>* lists) {
  const char* op = "humming::moe_gemm";
  const bool contiguous = params.layout == MoeLayout::contiguous;
  const int64_t rows = contiguous ? params.gemm.rows : params.num_sorted;
  const auto offset = [&](int64_t expert) -> int64_t {
    return params.offset_dtype == DType::int64 ? static_cast<const int64_t*>(params.expert_offsets)[expert]
                                               : static_cast<const int32_t*>(params.expert_offsets)[expert];
  };
  HUMMING_CHECK(offset(0) >= 0, op, ": expert_offsets[0] is ", offset(0), "; it must not be negative");
  for (int64_t expert = 0; expert < params.gemm.desc.experts; ++expert) {
    const int64_t begin = offset(expert), end = offset(expert + 1);
    HUMMING_CHECK(begin <= end && end <= rows, op, ": expert_offsets[", expert, " .. ", expert + 1, "] are ", begin,
                  ", ", end, "; they must ascend and stay within the ", rows,
                  contiguous ? " rows of x" : " elements of sorted_token_ids");
    if (contiguous) {
      lists->push_back({expert, nullptr, begin, end - begin, 1, false});
      continue;
    }
    for (int64_t i = begin; i < end; ++i) {
      const int32_t pair = params.sorted_token_ids[i];
      HUMMING_CHECK(pair >= 0 && pair < params.gemm.out_rows, op, ": sorted_token_ids[", i, "] is ", pair, "; out has ",
                    params.gemm.out_rows, " rows");
    }
    lists->push_back({expert, params.sorted_token_ids + begin, begin, end - begin, params.top_k, params.in_order});
  }
}

void list_masked(const MoeParams& params, std::vector<GemmRows>* lists) {
  for (int64_t expert = 0; expert < params.gemm.desc.experts; ++expert) {
    const int64_t count = params.expert_counts[expert];
    HUMMING_CHECK(count >= 0 && count <= params.capacity, "humming::moe_gemm: expert_counts[", expert, "] is ", count,
                  "; the capacity of x is ", params.capacity);
    lists->push_back({expert, nullptr, expert * params.capacity, count, 1, false});
  }
}

}  // namespace

void moe_gemm_cpu(const Tensor&, const MoeParams& params) {
  std::vector<int32_t> pairs;
  std::vector<GemmRows> whole, lists;
  switch (params.layout) {
    case MoeLayout::indexed:
      params.in_blocks ? list_blocks(params, &pairs, &whole) : list_offsets(params, &whole);
      break;
    case MoeLayout::contiguous: list_offsets(params, &whole); break;
    case MoeLayout::masked: list_masked(params, &whole); break;
  }
  for (const GemmRows& rows : whole) append(&lists, rows);
  run(params.gemm, lists);
}

}  // namespace humming

STABLE_TORCH_LIBRARY_IMPL(humming, CPU, m) {
  m.impl("gemm.out", HUMMING_CHECKED(check_gemm, gemm_cpu));
  m.impl("gemm.instance", TORCH_BOX(&humming::gemm_instance_cpu));
  m.impl("moe_gemm.instance", TORCH_BOX(&humming::moe_gemm_instance_cpu));
  m.impl("moe_gemm.out", HUMMING_CHECKED(check_moe_gemm, moe_gemm_cpu));
}
