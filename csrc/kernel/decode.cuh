// Reads packed weights back: one block per record (record_tile.cuh).
//
//   1. every lane reads its words and leaves the codes of its patch in shared memory
//   2. codes, or the numbers they stand for, are written along the logical rows
//
// A number is (code value - zero point) * scale * scale2, or fma(scale, code, offset) * scale2: one rounding per
// operation, as on the CPU.
#pragma once

#include "kernel/record_tile.cuh"
#include "layout/number.h"
#include "mainloop/any_view.h"

namespace humming {

namespace decode {

// The number of a code at a row of the strip and a column of the record, without scale2.
__device__ inline float dequantise(const WeightDesc& desc, const FormatTraits& format, const RecordGeometry& geometry,
                                   const uint8_t* record, int row, int column, uint32_t code) {
  const int group = desc.group > 0 ? column / desc.group : 0;
  const ScaleType type = desc.group > 0 ? desc.scale_type : ScaleType::none;
  const GroupNumbers numbers = group_numbers(
      type, desc.zero, record + geometry.scale_offset, RecordGeometry::group_index(row, group, geometry.groups),
      record + geometry.zero_offset, RecordGeometry::group_index(row, group, geometry.zero_groups));
  return numbers(code_value(format, code));
}

}  // namespace decode

template <class Config>
__global__ void __launch_bounds__(kRecordThreads, kRecordBlocks)
    decode_kernel(const __grid_constant__ DecodeParams p, const __grid_constant__ RecordGrid grid,
                  const __grid_constant__ AnyView view) {
  __shared__ uint8_t codes[kStripRows][record_pitch(1)];

  for_each_strip(grid, 1, [&](const RecordPlace& place) {
    const RecordGeometry& geometry = grid.geometry(place.k_tile);
    const uint8_t* record = p.packed + grid.offset(place);
    const RecordLane owner(threadIdx.x);
    for (int index = 0; index < kCodesPerLane && owner.half < geometry.halves; ++index) {
      const uint32_t* words = reinterpret_cast<const uint32_t*>(record);
      const PatchCoord at = view.coord_of(owner.lane, index);
      codes[16 * owner.warp + at.row][owner.half * kHalfK + at.k] =
          static_cast<uint8_t>(view.code_at(words, owner.half, kLanes * owner.warp + owner.lane, index));
    }
    __syncthreads();

    const int columns = geometry.halves * kHalfK;
    for (int i = threadIdx.x; i < kStripRows * columns; i += kRecordThreads) {
      const int row = i / columns;
      const int column = i % columns;
      const int64_t channel = p.desc.logical_row(place.strip * kStripRows + row);
      const int64_t k = place.k_tile * kTileK + column;
      if (channel < 0 || k >= p.desc.k) continue;
      const uint32_t code = codes[row][column];
      const int64_t to = (place.expert * p.desc.n + channel) * p.desc.k + k;
      if (p.codes != nullptr) {
        p.codes[to] = static_cast<uint8_t>(code);
        continue;
      }
      const float value = decode::dequantise(p.desc, grid.format, geometry, record, row, column, code);
      const Scale2View& scale2 = p.scale2;
      const float factor =
          scale2.data ? scale2.data[place.expert * scale2.expert_stride + channel * scale2.row_stride] : 1.0f;
      p.values[to] = value * factor;
    }
    __syncthreads();
  });
}

template <class Config>
void launch_decode(const DecodeParams& p, cudaStream_t stream) {
  const RecordGrid grid(p.desc);
  HUMMING_CHECK(is_aligned(p.packed, kVectorBytes), "humming::decode_packed: packed must be 16-byte aligned");
  decode_kernel<Config><<<grid.blocks(1), kRecordThreads, 0, stream>>>(p, grid, any_view(p.desc, RecordView{}));
}

}  // namespace humming
