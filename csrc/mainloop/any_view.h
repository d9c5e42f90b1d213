// Records of any format, as a kernel reads them that is compiled for none: what others know at compile time is a number
// here. No CUDA needed: the host fills and tests it.
#pragma once

#include <cstdint>

#include "core/bits.h"
#include "layout/rebase.h"
#include "layout/record.h"
#include "layout/word_codec.h"
#include "mainloop/record_view.h"

namespace humming {

struct AnyView : RecordView {
  static constexpr int kMaxBits = 8;
  // A field of a code (word_codec.h): its word, lowest bit there and width.
  struct Place {
    uint8_t word, bit, width;
  };
  struct Code {
    uint8_t count;  // of fields, the most significant first
    Place field[kMaxBits];
  };

  FormatTraits format;
  Order order;
  ScaleType scale_type;  // none: without group scales
  ZeroKind zero;
  // e8m0 scales of floats are part of the operand's values, raised so that all of these are numbers of the operand
  // (layout/rebase.h): raise * unit = 1.
  float raise, unit;
  Code codes[kCodesPerLane];      // of a lane: of value v of register n, values of a register * n + v
  int16_t word_offset[kMaxBits];  // of a lane's words in a record, in words: offset + lane * stride of the lane
  int16_t word_stride[kMaxBits];  // 32 * warp + lane, half by half
  int16_t half_words;

  // Code `index` of a lane, as the format defines it. record: its words; place: 32 * warp + lane.
  HUMMING_HD uint32_t code_at(const uint32_t* record, int half, int place, int index) const {
    const Code& code = codes[index];
    uint32_t bits = 0;
    for (int i = 0; i < code.count; ++i) {
      const Place field = code.field[i];
      const uint32_t word = record[half * half_words + word_offset[field.word] + place * word_stride[field.word]];
      bits = bits << field.width | (word >> field.bit & ((1u << field.width) - 1));
    }
    return stored_code(format, order, bits);
  }

  // Where it stands in its patch.
  HUMMING_HD PatchCoord coord_of(int lane, int index) const {
    const int values = values_per_register(order);
    return patch_coord(order, lane, index / values, index % values);
  }
};

inline AnyView any_view(const WeightDesc& desc, const RecordView& view) {
  AnyView any{};
  static_cast<RecordView&>(any) = view;
  any.format = desc.format_traits();
  any.order = desc.order();
  any.scale_type = desc.group > 0 ? desc.scale_type : ScaleType::none;
  any.zero = desc.zero;
  const RebaseRange range = desc.rebased() ? rebase_range(any.format, desc.operand) : RebaseRange{};
  any.raise = power_of_two(range.window - range.shift);
  any.unit = power_of_two(range.shift - range.window);
  const int bits = any.format.bits, values = values_per_register(any.order);
  for (int index = 0; index < kCodesPerLane; ++index) {
    const CodeFields fields = code_fields(codec_of(any.format), any.order, bits, index / values, index % values);
    any.codes[index].count = static_cast<uint8_t>(fields.count);
    for (int i = 0; i < fields.count; ++i) {
      const Field& field = fields.field[i];
      any.codes[index].field[i] = {static_cast<uint8_t>(field.word), static_cast<uint8_t>(field.bit),
                                   static_cast<uint8_t>(field.width)};
    }
  }
  for (int word = 0; word < bits; ++word) {
    const int first = word_index(bits, 0, 0, 0, word);
    any.word_offset[word] = static_cast<int16_t>(first);
    any.word_stride[word] = static_cast<int16_t>(word_index(bits, 0, 0, 1, word) - first);
  }
  any.half_words = static_cast<int16_t>(4 * kLanes * bits);
  return any;
}

}  // namespace humming
