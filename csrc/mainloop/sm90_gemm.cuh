// The Hopper dense main loop: a producer warp fills a ring of stages, consumer warpgroups turn codes into fragments and
// multiply. Extents and names: sm90_tile.h.
#pragma once

#include "mainloop/sm90_mma_sync.cuh"
#include "mainloop/sm90_producer.cuh"
#include "mainloop/sm90_wgmma.cuh"

namespace humming {

template <class Config>
struct Sm90Gemm : Sm90Stage<Config> {
  // produce() and produce_scales() fill the ring for a work item, consume() multiplies a warp's part of it into sums().
  using Producer = Sm90Producer<Config>;
  using Consumers = std::conditional_t<Config::kMmaPatches == 0, Sm90Wgmma<Config>, Sm90MmaSync<Config>>;
};

}  // namespace humming
