// What the two repacking kernels share: one block of kRecordThreads threads per record, with the record's codes as
// bytes in shared memory, so that global memory is read and written along rows whatever the order of the words.
//
//   shared  codes[64 rows][kRecordPitch]: the pitch moves neighbouring rows four banks on, so that the 8 rows x 16
//   bytes
//           in which the lanes of a warp look for a code lie in different ones
//   thread  128 * half + 32 * warp + lane owns that lane's words of the patch (word_codec.h); the upper half of the
//           block has none in a half record
#pragma once

#include "core/check.h"
#include "kernel/device.cuh"
#include "kernel/params.h"
#include "layout/record.h"

namespace humming {

inline constexpr int kRecordThreads = 256;
inline constexpr int kRecordBlocks = 4;  // per SM; without this bound ptxas may spill a few bytes to fit more
inline constexpr int kRecordPitch = kTileK + 16;

using TileCodes = uint8_t[kStripRows][kRecordPitch];  // at a multiple of 8

// The extents of a packed weight and its format, worked out by the host.
struct RecordGrid {
  FormatTraits format;
  RecordGeometry full, last;  // of all records of a strip but the last, and of the last
  int64_t experts, num_strips, num_k_tiles;
  int64_t strip_bytes;
  int zero_bytes;

  explicit RecordGrid(const WeightDesc& desc)
      : format(desc.format_traits()),
        full(desc, 2),
        last(desc, desc.k_tile_halves(desc.num_k_tiles() - 1)),
        experts(desc.experts > 0 ? desc.experts : 1),
        num_strips(desc.num_strips()),
        num_k_tiles(desc.num_k_tiles()),
        strip_bytes(desc.strip_bytes()),
        zero_bytes(desc.zero_bytes()) {}

  dim3 blocks() const {
    return dim3(static_cast<unsigned>(num_k_tiles), static_cast<unsigned>(at_most(num_strips, kMaxGridY)),
                static_cast<unsigned>(at_most(experts, kMaxGridY)));
  }
};

// One record.
struct RecordPlace {
  int64_t expert, strip, k_tile;
};

// Calls visit(place, geometry, byte offset in the packed weight) for the records of this block: one, unless the weight
// has more strips or experts than a grid has rows.
template <class Visit>
__device__ __forceinline__ void for_each_record(const RecordGrid& grid, Visit visit) {
  const int64_t k_tile = blockIdx.x;
  const RecordGeometry& geometry = k_tile == grid.num_k_tiles - 1 ? grid.last : grid.full;
  for (int64_t expert = blockIdx.z; expert < grid.experts; expert += gridDim.z) {
    for (int64_t strip = blockIdx.y; strip < grid.num_strips; strip += gridDim.y) {
      const int64_t offset = (expert * grid.num_strips + strip) * grid.strip_bytes + k_tile * grid.full.bytes;
      visit(RecordPlace{expert, strip, k_tile}, geometry, offset);
    }
  }
}

struct RecordLane {
  int half, warp, lane;

  __device__ explicit RecordLane(int thread)
      : half(thread / (kRecordThreads / 2)), warp(thread / kWarpSize % 4), lane(thread % kWarpSize) {}

  __device__ int word_index(int bits, int word) const { return humming::word_index(bits, half, warp, lane, word); }
};

}  // namespace humming
