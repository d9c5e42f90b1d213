// A record: 64 packed rows x 128 columns (or 64, the half tail record) of codes, with their scales and zero points.
// Contiguous and a multiple of 128 bytes, so that one bulk copy fetches it.
//
//   offset 0             codes: 64 * columns * bits / 8 bytes, as 32-bit words in the order of word_index()
//   scale_offset         scales: [8 * warp + g][row half][group], so that lane 4g + t of a warp reads the scales of its
//                        two rows, 16 * warp + g and 16 * warp + g + 8, in one load
//   zero_offset          zero points or offsets, in the same order with their own group count
//   bytes                end, padded to 128
//
// A strip is the records of 64 rows along K, one after the other; an expert is its strips; experts follow one another.
#pragma once

#include <cstdint>

#include "layout/weight_desc.h"

namespace humming {

inline constexpr int kRecordAlign = 128;

struct RecordGeometry {
  int halves;       // 64-column halves: 2, or 1 in a half tail record
  int groups;       // scale groups of a row, 0 without group scales; a half tail record has as many as a full one,
  int zero_groups;  // so that only the codes differ; the same for zero points and offsets
  int codes_bytes;
  int scale_offset;
  int zero_offset;
  int bytes;

  RecordGeometry(const WeightDesc& desc, int halves) : halves(halves) {
    const int columns = halves * kHalfK;
    groups = desc.group ? kTileK / desc.group : 0;
    zero_groups = desc.zero == ZeroKind::none ? 0 : desc.group ? groups : 1;
    codes_bytes = kStripRows * columns * desc.format_traits().bits / 8;
    scale_offset = codes_bytes;
    zero_offset = scale_offset + kStripRows * groups * scale_bytes(desc.scale_type);
    bytes =
        (zero_offset + kStripRows * zero_groups * desc.zero_bytes() + kRecordAlign - 1) / kRecordAlign * kRecordAlign;
  }

  // Element of the scale area (or, with zero_groups, of the zero area) of a row 0..63 of the strip and a group.
  HUMMING_HD static constexpr int group_index(int row, int group, int num_groups) {
    return ((row / 16 * 8 + row % 8) * 2 + row % 16 / 8) * num_groups + group;
  }
};

inline int64_t WeightDesc::record_offset(int64_t k_tile) const {
  const int64_t full = k / kTileK + (k % kTileK > kHalfK);
  const int64_t tail = k_tile > full ? RecordGeometry(*this, 1).bytes : 0;
  return (k_tile > full ? full : k_tile) * RecordGeometry(*this, 2).bytes + tail;
}

}  // namespace humming
