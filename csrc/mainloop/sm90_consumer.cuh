// What the two kinds of consumers of the Hopper main loop share: what a warp has of a stage, and its sums.
//
//   register D: acc[4 * j + r] is channel g + 8 * (r / 2), token 8 * j + 2 * t + r % 2
#pragma once

#include "mainloop/sm90_stage.cuh"

namespace humming {

template <class Config>
struct Sm90Consumer : Sm90Stage<Config> {
  using Stage = Sm90Stage<Config>;
  using Stage::kMmaSync;
  using Stage::kPatches;
  using Stage::kPromoted;
  using Stage::kSums;
  using Stage::tile;
  using Stage::token_rows;
  using typename Stage::MmaType;
  using typename Stage::Ring;
  using typename Stage::Weights;
  using typename Stage::Work;

  struct Consumer {
    int warp;  // of the warpgroup
    int lane;
    uint32_t other_cta;  // with multicast
    MmaType acc[kPatches][kSums];
    float total[kPatches][kPromoted ? kSums : 1];
  };

  // Which share of a stage a warp has, and the first of its patches.
  __device__ static int stage_share(const Consumer& c) { return kMmaSync ? c.warp % tile().stage_shares() : 0; }
  __device__ static int first_patch(const Consumer& c) {
    return kMmaSync ? c.warp / tile().stage_shares() * kPatches : c.warp;
  }
  // Row of the tile with which a patch of a warp begins; group: the warpgroup.
  __device__ static int row_of(const Consumer& c, int group, int patch) {
    const int strip = group % tile().row_teams() * tile().strips() + (kMmaSync ? 0 : patch);
    return 64 * strip + 16 * (first_patch(c) + (kMmaSync ? patch : 0));
  }

  // Hands a stage back to those who fill it.
  __device__ static void release(uint32_t empty, const Consumer& c) {
    ptx::mbarrier_arrive(empty);
    if constexpr (tile().multicast) {
      if (c.lane == 0) ptx::mbarrier_arrive_cluster(empty, c.other_cta);
    }
  }

  // The finished sums of a thread, of one of its 16-row patches.
  __device__ static auto& sums(Consumer& c, int patch) {
    if constexpr (kPromoted)
      return c.total[patch];
    else
      return c.acc[patch];
  }
};

}  // namespace humming
