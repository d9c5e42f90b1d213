// The pairs (token, choice) of the layout indexed, as kernels read them.
#pragma once

#include "kernel/moe_gemm_params.h"

namespace humming {

struct Pair {
  int pair, expert;  // expert -1: none
};

// Past the first-level cache: a kernel may have begun before the grid that wrote them was known to be complete to it.
__device__ inline Pair pair_of(const MoePairs& p, int experts, int64_t index) {
  if (index >= p.count) return {0, -1};
  const int pair = __ldcg(p.ids + index);  // both are there, if perhaps without meaning
  const int expert = __ldcg(p.experts + index / p.block);
  const bool valid = index < __ldcg(p.num_padded) && pair >= 0 && pair < p.limit && expert >= 0 && expert < experts;
  return {pair, valid ? expert : -1};
}

}  // namespace humming
