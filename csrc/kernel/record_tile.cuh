// What the two repacking kernels share: blocks of kRecordThreads threads, with the codes of their records as bytes in
// shared memory, so that global memory is read and written along rows whatever the order of the words.
//
//   shared  codes[64 rows][record_pitch]: the pitch moves neighbouring rows four banks on, so that the 8 rows x 16
//           bytes in which the lanes of a warp look for a code lie in different ones
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

// Bytes between the rows of neighbouring records' codes.
constexpr int record_pitch(int records) { return records * kTileK + 16; }

// One record.
struct RecordPlace {
  int64_t expert, strip, k_tile;
};

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

  // Of blocks that take so many records side by side.
  dim3 blocks(int records) const {
    return dim3(static_cast<unsigned>(ceil_div(num_k_tiles, records)),
                static_cast<unsigned>(at_most(num_strips, kMaxGridY)),
                static_cast<unsigned>(at_most(experts, kMaxGridY)));
  }
  __device__ const RecordGeometry& geometry(int64_t k_tile) const { return k_tile == num_k_tiles - 1 ? last : full; }
  // Bytes before the record in the packed weight.
  __device__ int64_t offset(const RecordPlace& place) const {
    return (place.expert * num_strips + place.strip) * strip_bytes + place.k_tile * full.bytes;
  }
};

// Calls visit(the first record) for the strips of this block: one, unless the weight has more strips or experts than a
// grid has rows.
template <class Visit>
__device__ __forceinline__ void for_each_strip(const RecordGrid& grid, int records, Visit visit) {
  const int64_t k_tile = int64_t{blockIdx.x} * records;
  for (int64_t expert = blockIdx.z; expert < grid.experts; expert += gridDim.z) {
    for (int64_t strip = blockIdx.y; strip < grid.num_strips; strip += gridDim.y) {
      visit(RecordPlace{expert, strip, k_tile});
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
