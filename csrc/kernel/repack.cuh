// Packs a checkpoint's codes, scales and zero points into records: one block per two neighbouring records
// (record_tile.cuh).
//
//   1. a thread per row finds the row's source; scales, zero points and padding bytes go straight into the records
//   2. codes are read along the source rows, eight columns at a time, checked, rebased, and left in shared memory
//   3. every lane gathers the codes of its patches and writes its words
//
// Two, so that 4-bit codes are read in runs of 128 bytes, because they may be the host's: over PCIe runs of 64 bytes
// reach 78 % of a copy's speed, runs of 128 92 % (on an H200).
//
// Rebased weights need each row's largest scale before any record of the row: a first kernel, one warp per row, leaves
// it in row_scale, whose exponent field the second one reads back.
#pragma once

#include <utility>

#include "kernel/cuda_check.h"
#include "kernel/record_tile.cuh"
#include "kernel/source.h"

namespace humming {

namespace repack {

inline constexpr int kRecords = 2;              // of a block
inline constexpr int kMaxGroups = kTileK / 16;  // scale groups of a record
inline constexpr int kRowWarps = kRecordThreads / kWarpSize;
inline constexpr int kRun = 8;  // columns that a thread reads at a time; divides every group

struct Shared {
  alignas(8) uint8_t codes[kStripRows][record_pitch(kRecords)];
  int64_t source[kStripRows];  // source row over all experts, -1 for a padding row
  int largest[kStripRows];     // rebase: the row's largest scale
  // Rebase, of the groups of all records: binades by which codes are rounded down; 1 if that changed one.
  uint8_t shift_down[kStripRows][kRecords * kMaxGroups];
  int rounded[kStripRows][kRecords * kMaxGroups];
  int num_rounded, num_rejected;  // over the block
};

// What a thread found, for the op's stats.
struct Counts {
  int rounded = 0, rejected = 0;
};

// Element `to_index` of an area of the record: element `from_index` of a tensor.
__device__ inline void copy_element(uint8_t* area, int64_t to_index, const void* from, int64_t from_index, int bytes) {
  for (int i = 0; i < bytes; ++i) {
    area[to_index * bytes + i] = static_cast<const uint8_t*>(from)[from_index * bytes + i];
  }
}

__device__ inline void fill_element(uint8_t* area, int64_t to_index, uint8_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) area[to_index * bytes + i] = value;
}

// The scales of the record.
__device__ inline void pack_scales(const RepackParams& p, const RecordPlace& place, const RecordGeometry& geometry,
                                   RebaseRange range, bool rebased, Shared& shared, int record, uint8_t* area,
                                   Counts& counts) {
  const ScaleType type = p.desc.scale_type;
  for (int i = threadIdx.x; i < kStripRows * geometry.groups; i += kRecordThreads) {
    const int row = i / geometry.groups;
    const int group = i % geometry.groups;
    const int64_t source_group = place.k_tile * (kTileK / p.desc.group) + group;
    const bool exists = shared.source[row] >= 0 && source_group < p.num_groups;
    const int64_t from = shared.source[row] * p.num_groups + source_group;
    const int to = RecordGeometry::group_index(row, group, geometry.groups);
    if (exists) counts.rejected += !is_valid_scale(type, p.scale, from);
    if (rebased) {
      const int scale = exists ? static_cast<const uint8_t*>(p.scale)[from] : shared.largest[row];
      area[to] = rebased_scale(range, scale, shared.largest[row]);
      const int of_block = record * (kTileK / p.desc.group) + group;
      shared.shift_down[row][of_block] = static_cast<uint8_t>(rebase_shift_down(range, scale, shared.largest[row]));
      shared.rounded[row][of_block] = 0;
    } else if (exists) {
      copy_element(area, to, p.scale, from, scale_bytes(type));
    } else {
      fill_element(area, to, type == ScaleType::e8m0 ? 127 : 0, scale_bytes(type));
    }
  }
}

// The zero points or offsets of the record; one per row and record where there are no groups.
__device__ inline void pack_zeros(const RepackParams& p, const RecordGrid& grid, const RecordPlace& place,
                                  const RecordGeometry& geometry, const Shared& shared, uint8_t* area, Counts& counts) {
  for (int i = threadIdx.x; i < kStripRows * geometry.zero_groups; i += kRecordThreads) {
    const int row = i / geometry.zero_groups;
    const int group = i % geometry.zero_groups;
    const int64_t source_group = p.desc.group > 0 ? place.k_tile * (kTileK / p.desc.group) + group : 0;
    const int64_t from = shared.source[row] * p.num_groups + source_group;
    const int to = RecordGeometry::group_index(row, group, geometry.zero_groups);
    if (shared.source[row] < 0 || source_group >= p.num_groups) {
      fill_element(area, to, 0, grid.zero_bytes);
      continue;
    }
    // Counted once, although the records of a weight without groups repeat the row's only zero point.
    if (p.desc.group > 0 || place.k_tile == 0) {
      counts.rejected += p.desc.zero == ZeroKind::integer
                             ? !is_valid_zero(grid.format, static_cast<const uint8_t*>(p.zero)[from])
                             : !is_valid_scale(p.desc.scale_type, p.zero, from);
    }
    copy_element(area, to, p.zero, from, grid.zero_bytes);
  }
}

// Columns k to k + 7 of a source row, in its lowest bits; zeros past the row's end. k is a multiple of 8, so that they
// are whole bytes. aligned: rows begin at multiples of 8 bytes.
__device__ inline uint64_t read_run(const RepackParams& p, int64_t source, int64_t k, bool aligned) {
  const int64_t first = k / kRun * p.code_bits;
  const uint8_t* from = p.codes + source * p.codes_row_bytes + first;
  if (aligned && first + p.code_bits <= p.codes_row_bytes) {
    if (p.code_bits == 4) return *reinterpret_cast<const uint32_t*>(from);
    if (p.code_bits == 8) return *reinterpret_cast<const uint64_t*>(from);
  }
  uint64_t run = 0;
#pragma unroll 1
  for (int i = 0; i < p.code_bits && first + i < p.codes_row_bytes; ++i) run |= uint64_t{from[i]} << 8 * i;
  return run;
}

// The codes of a run, a byte each.
__device__ inline uint64_t spread_run(uint64_t run, int code_bits) {
  if (code_bits == 8) return run;
  if (code_bits == 4) {
    const uint32_t even = static_cast<uint32_t>(run) & 0x0F0F0F0F, odd = static_cast<uint32_t>(run) >> 4 & 0x0F0F0F0F;
    return __byte_perm(even, odd, 0x5140) | uint64_t{__byte_perm(even, odd, 0x7362)} << 32;
  }
  uint64_t codes = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) codes |= (run >> (i * code_bits) & ((1u << code_bits) - 1)) << (8 * i);
  return codes;
}

// What few runs need, whose codes are `from`: a look at what may be illegal, and codes that move down.
__device__ inline uint64_t check_codes(const RecordGrid& grid, uint64_t from, int down, int* group_rounded,
                                       Counts& counts) {
  uint64_t codes = 0;
#pragma unroll 1
  for (int i = 0; i < kRun; ++i, from >>= 8) {
    uint32_t code = static_cast<uint32_t>(from) & 0xFF;
    counts.rejected += !is_valid_code(grid.format, code);
    code &= grid.format.code_mask();
    if (down > 0) {
      const uint32_t moved = rebase_code(grid.format, code, down);
      // Whichever thread is the first to change a code of the group counts it.
      if (rebase_changed(grid.format, code, moved, down) && atomicExch(group_rounded, 1) == 0) ++counts.rounded;
      code = moved;
    }
    codes |= uint64_t{code} << (8 * i);
  }
  return codes;
}

// The codes of the records into shared memory. first_k: their first column; halves: of them all.
__device__ inline void read_codes(const RepackParams& p, const RecordGrid& grid, int64_t first_k, int halves,
                                  bool rebased, bool aligned, Shared& shared, Counts& counts) {
  constexpr int kRunsPerRow = kRecords * kTileK / kRun;
  constexpr int kTurns = kStripRows * kRunsPerRow / kRecordThreads;
  static_assert(kRunsPerRow == kWarpSize);
  const int code_bits = p.code_bits;
  const int group_shift = rebased ? __ffs(p.desc.group) - 1 : 0;  // a power of two
  const bool may_be_illegal = code_bits > grid.format.bits || grid.format.specials != Specials::none;
  const int column = threadIdx.x % kRunsPerRow * kRun, first_row = threadIdx.x / kRunsPerRow;
  if (column >= halves * kHalfK) return;
  const int64_t k = first_k + column;
  const int64_t bits = (p.desc.k - k) * code_bits;
  // What pads the last byte is no code.
  const uint64_t mask = bits >= 64 ? ~uint64_t{0} : bits > 0 ? (uint64_t{1} << bits) - 1 : 0;
  uint64_t runs[kTurns];  // all of them asked for before the first is looked at
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int64_t source = shared.source[first_row + turn * kRowWarps];
    runs[turn] = source >= 0 ? read_run(p, source, k, aligned) & mask : 0;
  }
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int row = first_row + turn * kRowWarps;
    const int group = rebased ? column >> group_shift : 0;
    const int down = rebased ? shared.shift_down[row][group] : 0;
    uint64_t codes = spread_run(runs[turn], code_bits);
    if (may_be_illegal || down > 0) codes = check_codes(grid, codes, down, &shared.rounded[row][group], counts);
    *reinterpret_cast<uint64_t*>(&shared.codes[row][column]) = codes;
  }
}

template <class Config, int kIndex, class Visit>
__device__ __forceinline__ void visit_code(const RecordLane& owner, Visit& visit) {
  constexpr int kWidth = values_per_register(Config::kOrder);
  constexpr CodeFields kFields =
      code_fields(Config::kCodec, Config::kOrder, Config::kBits, kIndex / kWidth, kIndex % kWidth);
  const PatchCoord at = patch_coord(Config::kOrder, owner.lane, kIndex / kWidth, kIndex % kWidth);
  visit(16 * owner.warp + at.row, at.k, kFields);
}

template <class Config, class Visit, int... kIndices>
__device__ __forceinline__ void visit_codes(const RecordLane& owner, Visit& visit,
                                            std::integer_sequence<int, kIndices...>) {
  (visit_code<Config, kIndices>(owner, visit), ...);
}

// Calls visit(row of the strip, column of the patch, fields) for the codes of a lane. The fields are constants, so
// that words indexed by them stay in registers.
template <class Config, class Visit>
__device__ __forceinline__ void for_each_code(const RecordLane& owner, Visit visit) {
  visit_codes<Config>(owner, visit, std::make_integer_sequence<int, kCodesPerLane>{});
}

// Counters are sums of integers: the order of the atomics does not matter.
__device__ inline void add_count(int64_t* counter, int count) {
  if (count > 0) atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(count));
}

}  // namespace repack

// row_scale[expert, channel] = 2^(largest scale - 127), channels in logical order.
template <class Config>
__global__ void __launch_bounds__(kRecordThreads)
    largest_scale_kernel(const __grid_constant__ RepackParams p, int64_t experts) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t channel = int64_t{blockIdx.x} * repack::kRowWarps + threadIdx.x / kWarpSize;
  if (channel >= p.desc.n) return;
  for (int64_t expert = blockIdx.y; expert < experts; expert += gridDim.y) {
    const int64_t source = expert * p.desc.n + source_row(p, channel);
    const uint8_t* scales = static_cast<const uint8_t*>(p.scale) + source * p.num_groups;
    int largest = 0;
    for (int64_t group = lane; group < p.num_groups; group += kWarpSize) largest = max(largest, int{scales[group]});
    largest = __reduce_max_sync(kFullWarp, largest);
    if (lane == 0) p.row_scale[expert * p.desc.n + channel] = rebase_row_scale(largest);
  }
}

template <class Config>
__global__ void __launch_bounds__(kRecordThreads, kRecordBlocks)
    repack_kernel(const __grid_constant__ RepackParams p, const __grid_constant__ RecordGrid grid, bool aligned) {
  __shared__ repack::Shared shared;
  const bool rebased = p.row_scale != nullptr;
  const RebaseRange range = rebased ? rebase_range(grid.format, p.desc.operand) : RebaseRange{};

  for_each_strip(grid, repack::kRecords, [&](const RecordPlace& first) {
    if (threadIdx.x < kStripRows) {
      const int64_t channel = p.desc.logical_row(first.strip * kStripRows + threadIdx.x);
      const int64_t first_row = first.expert * p.desc.n;
      shared.source[threadIdx.x] = channel < 0 ? -1 : first_row + source_row(p, channel);
      // The exponent field of 2^(largest - 127) is that scale; of the subnormal 2^-127 it is 0, too.
      const bool has_scale = rebased && channel >= 0;
      shared.largest[threadIdx.x] =
          has_scale ? static_cast<int>(bits_from_float(p.row_scale[first_row + channel]) >> 23) : 0;
    }
    if (threadIdx.x == 0) shared.num_rounded = shared.num_rejected = 0;
    __syncthreads();

    repack::Counts counts;
    const int records = static_cast<int>(at_most(grid.num_k_tiles - first.k_tile, repack::kRecords));
    int halves = 0;
#pragma unroll 1
    for (int record = 0; record < records; ++record) {
      const RecordPlace place{first.expert, first.strip, first.k_tile + record};
      const RecordGeometry& geometry = grid.geometry(place.k_tile);
      uint8_t* to = p.packed + grid.offset(place);
      repack::pack_scales(p, place, geometry, range, rebased, shared, record, to + geometry.scale_offset, counts);
      repack::pack_zeros(p, grid, place, geometry, shared, to + geometry.zero_offset, counts);
      const int end = geometry.zero_offset + kStripRows * geometry.zero_groups * grid.zero_bytes;
      for (int i = end + threadIdx.x; i < geometry.bytes; i += kRecordThreads) to[i] = 0;
      halves += geometry.halves;
    }
    __syncthreads();

    repack::read_codes(p, grid, first.k_tile * kTileK, halves, rebased, aligned, shared, counts);
    if (counts.rounded > 0) atomicAdd(&shared.num_rounded, counts.rounded);
    if (counts.rejected > 0) atomicAdd(&shared.num_rejected, counts.rejected);
    __syncthreads();

    const RecordLane owner(threadIdx.x);
#pragma unroll 1
    for (int half = owner.half; half < halves; half += 2) {
      const int64_t offset = grid.offset({first.expert, first.strip, first.k_tile + half / 2});
      uint32_t* record = reinterpret_cast<uint32_t*>(p.packed + offset);
      uint32_t words[Config::kBits] = {};
      repack::for_each_code<Config>(owner, [&](int row, int column, const CodeFields& fields) {
        const uint32_t code = shared.codes[row][half * kHalfK + column];
        set_code(fields, Config::kBits, words, stored_code(grid.format, Config::kOrder, code));
      });
#pragma unroll
      for (int word = 0; word < Config::kBits; ++word) record[owner.word_index(Config::kBits, word)] = words[word];
    }
    if (threadIdx.x == 0) {
      repack::add_count(&p.stats[0], shared.num_rounded);
      repack::add_count(&p.stats[1], shared.num_rejected);
    }
    __syncthreads();
  });
}

template <class Config>
void launch_repack(const RepackParams& p, cudaStream_t stream) {
  const RecordGrid grid(p.desc);
  HUMMING_CHECK(is_aligned(p.packed, kVectorBytes), "humming::prepack: packed must be 16-byte aligned");
  HUMMING_CUDA_CHECK(cudaMemsetAsync(p.stats, 0, 2 * sizeof(int64_t), stream));
  if (p.row_scale != nullptr) {
    const dim3 blocks(static_cast<unsigned>(ceil_div(p.desc.n, repack::kRowWarps)),
                      static_cast<unsigned>(at_most(grid.experts, kMaxGridY)));
    largest_scale_kernel<Config><<<blocks, kRecordThreads, 0, stream>>>(p, grid.experts);
  }
  const bool aligned = is_aligned(p.codes, 8) && p.codes_row_bytes % 8 == 0;
  repack_kernel<Config><<<grid.blocks(repack::kRecords), kRecordThreads, 0, stream>>>(p, grid, aligned);
}

}  // namespace humming
