// Packing and its inverse: prepack and decode_packed, strip by strip.
#include "kernel/source.h"
#include "layout/rebase.h"
#include "layout/record.h"
#include "layout/tile_codec.h"
#include "ops/cpu/convert.h"
#include "ops/cpu/dequant.h"
#include "ops/cpu/kernel_set.h"

namespace humming::HUMMING_CPU_NAMESPACE {
namespace {

// Packs one packed row after the other into the codes tile and the scale and zero areas of a record.
class StripPacker {
 public:
  StripPacker(const RepackParams& params, int64_t strip, int64_t* stats)
      : params_(params),
        desc_(params.desc),
        format_(desc_.format_traits()),
        codec_(format_, desc_.order()),
        stats_(stats) {
    const int64_t expert = strip / desc_.num_strips();
    const int64_t first = strip % desc_.num_strips() * kStripRows;
    rebased_ = desc_.rebased();
    range_ = rebased_ ? rebase_range(format_, desc_.operand) : RebaseRange{};
    for (int row = 0; row < kStripRows; ++row) {
      const int64_t logical = desc_.logical_row(first + row);
      source_[row] = logical < 0 ? -1 : expert * desc_.n + source_row(params, logical);
      if (rebased_ && logical >= 0) {
        const uint8_t* scale = scales(source_[row]);
        int largest = 0;
        for (int64_t group = 0; group < params.num_groups; ++group)
          largest = scale[group] > largest ? scale[group] : largest;
        largest_[row] = largest;
        params.row_scale[expert * desc_.n + logical] = rebase_row_scale(largest);
      }
    }
  }

  void pack(int64_t k_tile, uint8_t* record) {
    const int halves = desc_.k_tile_halves(k_tile);
    const RecordGeometry geometry(desc_, halves);
    __builtin_memset(record, 0, static_cast<size_t>(geometry.bytes));
    uint8_t codes[kTileK * kStripRows];
    __builtin_memset(codes, 0, sizeof codes);
    for (int row = 0; row < kStripRows; ++row) {
      pack_scales(k_tile, row, geometry, record);
      if (source_[row] >= 0) pack_codes(k_tile, row, codes);
    }
    codec_.encode(codes, halves, record);
  }

 private:
  const uint8_t* scales(int64_t source) const {
    return static_cast<const uint8_t*>(params_.scale) + source * params_.num_groups * scale_bytes(desc_.scale_type);
  }
  const uint8_t* zeros(int64_t source) const {
    return static_cast<const uint8_t*>(params_.zero) + source * params_.num_groups * desc_.zero_bytes();
  }

  void pack_codes(int64_t k_tile, int row, uint8_t* codes) {
    const int64_t begin = k_tile * kTileK;
    const int count = static_cast<int>(desc_.k - begin < kTileK ? desc_.k - begin : kTileK);
    const uint8_t* from = params_.codes + source_[row] * params_.codes_row_bytes;
    uint8_t line[kTileK];
    for (int i = 0; i < count; ++i) {
      const uint32_t code = source_code(from, params_.code_bits, begin + i);
      stats_[1] += !is_valid_code(format_, code);
      line[i] = static_cast<uint8_t>(code & format_.code_mask());
    }
    if (rebased_) rebase(begin, row, count, line);
    for (int i = 0; i < count; ++i) codes[i * kStripRows + row] = line[i];
  }

  // Rounds the codes of groups far below the row's largest scale to their stored scale.
  void rebase(int64_t begin, int row, int count, uint8_t* line) {
    for (int first = 0; first < count; first += desc_.group) {
      const int scale = scales(source_[row])[(begin + first) / desc_.group];
      const int down = rebase_shift_down(range_, scale, largest_[row]);
      if (down == 0) continue;
      bool changed = false;
      for (int i = first; i < first + desc_.group && i < count; ++i) {
        const uint32_t rounded = rebase_code(format_, line[i], down);
        changed |= rebase_changed(format_, line[i], rounded, down);
        line[i] = static_cast<uint8_t>(rounded);
      }
      stats_[0] += changed;
    }
  }

  void pack_scales(int64_t k_tile, int row, const RecordGeometry& geometry, uint8_t* record) {
    const int scale_size = scale_bytes(desc_.scale_type), zero_size = desc_.zero_bytes();
    for (int group = 0; group < geometry.groups; ++group) {
      const int64_t source_group = k_tile * kTileK / desc_.group + group;
      uint8_t* scale =
          record + geometry.scale_offset + RecordGeometry::group_index(row, group, geometry.groups) * scale_size;
      if (source_[row] < 0 || source_group >= params_.num_groups) {
        if (desc_.scale_type == ScaleType::e8m0) *scale = 127;
        continue;
      }
      const uint8_t* from = scales(source_[row]) + source_group * scale_size;
      stats_[1] += !is_valid_scale(desc_.scale_type, from, 0);
      if (rebased_) {
        *scale = rebased_scale(range_, *from, largest_[row]);
      } else {
        __builtin_memcpy(scale, from, static_cast<size_t>(scale_size));
      }
    }
    for (int group = 0; group < geometry.zero_groups; ++group) {
      const int64_t source_group = desc_.group ? k_tile * kTileK / desc_.group + group : 0;
      if (source_[row] < 0 || source_group >= params_.num_groups) continue;
      uint8_t* zero =
          record + geometry.zero_offset + RecordGeometry::group_index(row, group, geometry.zero_groups) * zero_size;
      const uint8_t* from = zeros(source_[row]) + source_group * zero_size;
      // Counted once, although a record of a weight without groups repeats the row's only zero point.
      const bool count = desc_.group || k_tile == 0;
      const bool legal =
          desc_.zero == ZeroKind::integer ? is_valid_zero(format_, *from) : is_valid_scale(desc_.scale_type, from, 0);
      stats_[1] += count && !legal;
      __builtin_memcpy(zero, from, static_cast<size_t>(zero_size));
    }
  }

  const RepackParams& params_;
  const WeightDesc& desc_;
  const FormatTraits& format_;
  const RecordCodec codec_;
  int64_t* stats_;
  bool rebased_;
  RebaseRange range_;
  int64_t source_[kStripRows];  // row of codes, scale and zero; -1 for padding
  int largest_[kStripRows];     // rebased: largest scale of the row
};

}  // namespace

void prepack(const RepackParams& params, int64_t begin, int64_t end, int64_t* stats) {
  const WeightDesc& desc = params.desc;
  for (int64_t strip = begin; strip < end; ++strip) {
    StripPacker packer(params, strip, stats);
    uint8_t* out = params.packed + strip * desc.strip_bytes();
    for (int64_t k_tile = 0; k_tile < desc.num_k_tiles(); ++k_tile)
      packer.pack(k_tile, out + desc.record_offset(k_tile));
  }
}

void decode(const DecodeParams& params, int64_t begin, int64_t end) {
  const WeightDesc& desc = params.desc;
  const RecordReader reader(desc);
  alignas(64) uint8_t codes[kTileK * kStripRows];
  alignas(64) float w[kTileK][kStripRows];
  RecordScales scales(*reader.format);
  for (int64_t strip = begin; strip < end; ++strip) {
    const int64_t expert = strip / desc.num_strips();
    const int64_t first_row = strip % desc.num_strips() * kStripRows;
    for (int64_t k_tile = 0; k_tile < desc.num_k_tiles(); ++k_tile) {
      const int halves = desc.k_tile_halves(k_tile);
      const uint8_t* record = params.packed + strip * desc.strip_bytes() + desc.record_offset(k_tile);
      reader.codec.decode(record, halves, codes);
      if (params.values) {
        reader.load_scales(record, RecordGeometry(desc, halves), &scales);
        for (int half = 0; half < halves; ++half) {
          reader.dequantise(codes, scales, half * kHalfK, kHalfK, w[half * kHalfK]);
        }
      }
      const int64_t column = k_tile * kTileK;
      const int64_t count = desc.k - column < kTileK ? desc.k - column : kTileK;
      for (int row = 0; row < kStripRows; ++row) {
        const int64_t logical = desc.logical_row(first_row + row);
        if (logical < 0) continue;
        const int64_t out = (expert * desc.n + logical) * desc.k + column;
        if (params.codes) {
          for (int64_t i = 0; i < count; ++i) params.codes[out + i] = codes[i * kStripRows + row];
        } else {
          const Scale2View& scale2 = params.scale2;
          const float factor =
              scale2.data ? scale2.data[expert * scale2.expert_stride + logical * scale2.row_stride] : 1.0f;
          for (int64_t i = 0; i < count; ++i) params.values[out + i] = w[i][row] * factor;
        }
      }
    }
  }
}

}  // namespace humming::HUMMING_CPU_NAMESPACE
