// How a kernel sees the records of a weight: the facts that are the same for all of them. No CUDA needed.
#pragma once

#include <cstdint>

namespace humming {

// Where a weight's scales meet it. none: only tensor and channel scales, in the epilogue. operand: group scales
// multiply the 16-bit operand. accumulator: they multiply the accumulator, group by group. folded: e8m0 scales join the
// exponent of the operand.
enum class ScaleMode : int { none, operand, accumulator, folded };

// Storage of the group scales as far as a kernel is compiled for it; half is bf16 or fp16, told apart at run time.
enum class ScaleStorage : int { none, half, fp32, e8m0, e4m3 };

// Whether an instance for groups of `group` serves coarser ones too, with repeated loads. Group scales in half
// precision alone come in sizes between 16 and 128.
constexpr bool serves_coarser(ScaleStorage storage, int group) { return storage == ScaleStorage::half && group < 128; }

struct RecordView {
  int groups;        // scale groups of a row in a record
  int zero_groups;   // the same for zero points and offsets
  int scale_offset;  // of a full record: the producer places the scales of a half tail record there too
  int zero_offset;
  bool scale_is_bf16;  // of ScaleStorage::half
};

// Where a main loop finds the records of a weight.
struct PackedRecords {
  const uint8_t* packed;
  int64_t strip_bytes;
  int num_strips;
  int num_k_tiles;       // records along K
  bool half_tail;        // the last of them has 64 columns
  int record_bytes;      // of a full record
  int tail_codes_bytes;  // of the half tail record: its two areas
  int tail_scale_bytes;
  RecordView view;
};

}  // namespace humming
