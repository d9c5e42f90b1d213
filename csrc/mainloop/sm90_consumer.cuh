// What the two kinds of consumers of the Hopper main loop share: which records a warp has, and its sums.
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
  using typename Stage::MmaType;
  using typename Stage::Ring;
  using typename Stage::Weights;
  using typename Stage::Work;

  struct Consumer {
    int warp;  // of the warpgroup
    int lane;
    MmaType acc[kPatches][kSums];
    float total[kPatches][kPromoted ? kSums : 1];
  };

  // Which share of a stage a warp has, and the first of its patches.
  __device__ static int stage_share(const Consumer& c) { return kMmaSync ? c.warp % tile().stage_shares() : 0; }
  __device__ static int first_patch(const Consumer& c) {
    return kMmaSync ? c.warp / tile().stage_shares() * kPatches : c.warp;
  }

  // The finished sums of a thread, of one of its 16-row patches.
  __device__ static auto& sums(Consumer& c, int patch) {
    if constexpr (kPromoted)
      return c.total[patch];
    else
      return c.acc[patch];
  }

  // Reads what the rows of a new group of columns have, if one may begin at kColumn of the record.
  template <int kColumn>
  __device__ static void begin_group(const RecordView& view, const Weights& weights, typename Weights::Row (&rows)[2]) {
    if constexpr (Weights::begins_group(kColumn)) {
      const int group = Weights::group_of(view, kColumn);
      rows[0] = weights.row(view, 0, group);
      rows[1] = weights.row(view, 1, group);
    }
  }

  // What the lanes of a warp read is behind the arrival of one of them only where they meet before it.
  __device__ static void release(uint32_t empty, int lane) {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(empty);
  }

  // Runs `multiply(records, record)` for the records of a share in every stage of the warpgroup `group`, and hands the
  // stages on: release_stage is called when the stage's last record has been issued. Full stages are unrolled without a
  // branch between records.
  template <class Multiply, class Release>
  __device__ static void for_each_record(Ring& ring, const Work& work, int group, int share, Multiply multiply,
                                         Release release_stage) {
    const int row_group = group % tile().row_groups;
    const int turn = group / tile().row_groups;
    const int first = share * tile().k_tiles;
    ring.next(turn);
#pragma unroll 1
    for (int k = work.k_begin + turn * tile().stage_tiles(); k < work.k_end;
         k += tile().split_k * tile().stage_tiles()) {
      ptx::mbarrier_wait(ring.full(), ring.phase);
      const uint8_t* records = ring.stage_weights() + row_group * tile().stage_tiles() * ring.p.record_bytes;
      if (tile().stage_tiles() == 1 || k + first + tile().k_tiles <= work.k_end) {
#pragma unroll
        for (int i = 0; i < tile().k_tiles; ++i) multiply(records, first + i);
      } else {
#pragma unroll 1
        for (int record = first; k + record < work.k_end; ++record) multiply(records, record);
      }
      release_stage(ring.empty());
      ring.next(tile().split_k);
    }
  }
};

}  // namespace humming
