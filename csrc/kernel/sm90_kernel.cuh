// What Hopper's GEMM kernels share around the main loop: registers, the ring's place, barriers, the launch.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "kernel/cuda_check.h"
#include "kernel/tensor_map.h"
#include "mainloop/sm90_gemm.cuh"

namespace humming::sm90_kernel {

// Registers of a thread once producers have given theirs to consumers; a warpgroup of producers and all consumers have
// 64 Ki together.
struct Registers {
  int producer, consumer;
};
constexpr Registers registers_of(int consumer_groups) {
  return consumer_groups == 2 ? Registers{40, 232} : consumer_groups == 3 ? Registers{32, 160} : Registers{56, 104};
}

// The ring at the beginning of shared memory, its barriers elsewhere.
template <class Gemm>
__device__ typename Gemm::Ring ring_of(const Sm90MainloopParams& m, uint8_t* shared, const uint8_t* barriers) {
  constexpr Sm90Tile kTile = Gemm::tile();
  uint8_t* weights = shared + m.stages * kTile.token_stage_bytes(Gemm::token_rows(m));
  uint8_t* scales = weights + m.stages * kTile.weight_stage_bytes(m.record_bytes);
  return {m, shared, weights, scales, ptx::shared_address(barriers)};
}

// By one warp; the others meet it at a barrier before they use the ring.
template <class Gemm>
__device__ void init_ring(const typename Gemm::Ring& ring, const CUtensorMap* map, int producers) {
  if (ptx::elect_one()) {
    for (int i = 0; i < ring.p.stages; ++i) {
      ptx::mbarrier_init(ring.barriers + 8 * i, Gemm::full_arrivals(producers));
      ptx::mbarrier_init(ring.barriers + 8 * (ring.p.stages + i), Gemm::kEmptyArrivals);
    }
    ptx::fence_mbarrier_init();
    ptx::prefetch_tensor_map(map);
  }
  __syncwarp();
}

// Launches `kernel(map, params)` on `num_ctas` CTAs of `threads`, in clusters of the tile's.
template <class Gemm, class Params>
void launch(void (*kernel)(const CUtensorMap, const Params), const Params& p, int threads, int shared_bytes,
            cudaStream_t stream) {
  constexpr Sm90Tile kTile = Gemm::tile();
  allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
  const bool by_row = Gemm::kCopiesRows && p.mainloop.gathers_tokens;
  const bool boxes = Gemm::Producer::kBoxes;
  const CUtensorMap map = token_map(p.x, p.x_row_bytes, p.mainloop.tokens, p.mainloop.k, kTile.value_bytes,
                                    by_row  ? 1
                                    : boxes ? kTile.box_rows()
                                            : p.mainloop.token_rows,
                                    by_row || boxes ? 1 : kTile.stage_tiles() * kTile.token_blocks());

  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(p.num_ctas);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (kTile.cluster() > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(kTile.cluster()), 1, 1};
  }
  if (p.mainloop.dependent_launch) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  HUMMING_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, map, p));
}

}  // namespace humming::sm90_kernel
