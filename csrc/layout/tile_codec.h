// Codes of a whole record on the host: between the record's words and a plain byte per code.
//
// Codes are kept as codes[column][row], 64 rows side by side, because the CPU product works on 64 rows at a time.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "layout/weight_desc.h"

namespace humming {

// Row of the strip that lane column t of group g in warp w holds in register half `row_half` (i & 1).
HUMMING_HD constexpr int strip_row(int warp, int row_half, int g) { return 16 * warp + 8 * row_half + g; }

// The codes of records of one format and order: built once, used for many records.
class RecordCodec {
 public:
  HUMMING_HD RecordCodec(const FormatTraits& format, Order order)
      : order_(order), bits_(format.bits), flip_(stored_code(format, order, 0)) {
    for (int n = 0; n < registers_per_patch(order); ++n) {
      for (int v = 0; v < values_per_register(order); ++v) {
        fields_[n * values_per_register(order) + v] = code_fields(codec_of(format), order, bits_, n, v);
      }
    }
  }

  // Codes of a record: codes[64 * halves columns][64 rows], as the format defines them (the stored form undone).
  HUMMING_HD void decode(const uint8_t* record, int halves, uint8_t* codes) const {
    for (int half = 0; half < halves; ++half) {
      uint32_t words[8][kColumnLanes][kVector];
      for (int word = 0; word < bits_; ++word) {
        for (int warp = 0; warp < 4; ++warp) {
          // Lanes of a warp are a fixed stride apart.
          const int first = word_index(bits_, half, warp, 0, word);
          const int stride = word_index(bits_, half, warp, 1, word) - first;
          for (int lane = 0; lane < kLanes; ++lane) {
            __builtin_memcpy(&words[word][lane % 4][8 * warp + lane / 4], record + 4 * (first + lane * stride), 4);
          }
        }
      }
      decode_half(words, codes + half * kHalfK * kStripRows);
    }
  }

  // The inverse: writes the words of a record. Scales and zero points are not touched.
  HUMMING_HD void encode(const uint8_t* codes, int halves, uint8_t* record) const {
    for (int half = 0; half < halves; ++half) {
      uint32_t words[8][kColumnLanes][kVector] = {};
      encode_half(codes + half * kHalfK * kStripRows, words);
      for (int word = 0; word < bits_; ++word) {
        for (int warp = 0; warp < 4; ++warp) {
          for (int lane = 0; lane < kLanes; ++lane) {
            __builtin_memcpy(record + 4 * word_index(bits_, half, warp, lane, word),
                             &words[word][lane % 4][8 * warp + lane / 4], 4);
          }
        }
      }
    }
  }

 private:
  static constexpr int kColumnLanes = 4;          // lanes t of a fragment row
  static constexpr int kVector = kStripRows / 2;  // rows that share a register half: 4 warps x 8 groups

  // The codes of 32 rows. The field count is a constant where it matters for speed: compilers then keep codes in vector
  // registers.
  template <int kFields>
  HUMMING_HD void decode_rows(const uint32_t (*words)[kColumnLanes][kVector], const CodeFields& fields, int t,
                              uint8_t* rows) const {
    for (int r = 0; r < kVector; ++r) {
      uint32_t code = 0;
      for (int i = 0; i < kFields; ++i) {
        const Field field = fields.field[i];
        code = code << field.width | (words[field.word][t][r] >> field.bit & ((1u << field.width) - 1));
      }
      rows[r] = static_cast<uint8_t>(code ^ flip_);
    }
  }

  // One k half, from the words of all four warps as words[word][t][8 * warp + g], so that one vector operation decodes
  // 32 rows.
  HUMMING_HD void decode_half(const uint32_t (*words)[kColumnLanes][kVector], uint8_t* codes) const {
    for (int code = 0; code < kCodesPerLane; ++code) {
      const CodeFields& fields = fields_[code];
      const int n = code / values_per_register(order_), v = code % values_per_register(order_);
      for (int t = 0; t < kColumnLanes; ++t) {
        uint8_t rows[kVector];
        switch (fields.count) {
          case 1: decode_rows<1>(words, fields, t, rows); break;
          case 2: decode_rows<2>(words, fields, t, rows); break;
          case 3: decode_rows<3>(words, fields, t, rows); break;
          case 5: decode_rows<5>(words, fields, t, rows); break;
          default: decode_rows<7>(words, fields, t, rows); break;
        }
        uint8_t* column = codes + patch_coord(order_, t, n, v).k * kStripRows;
        for (int warp = 0; warp < 4; ++warp) {
          __builtin_memcpy(column + strip_row(warp, n & 1, 0), rows + 8 * warp, 8);
        }
      }
    }
  }

  // The inverse, into zeroed words.
  HUMMING_HD void encode_half(const uint8_t* codes, uint32_t (*words)[kColumnLanes][kVector]) const {
    for (int code = 0; code < kCodesPerLane; ++code) {
      const CodeFields& fields = fields_[code];
      const int n = code / values_per_register(order_), v = code % values_per_register(order_);
      for (int t = 0; t < kColumnLanes; ++t) {
        const uint8_t* column = codes + patch_coord(order_, t, n, v).k * kStripRows;
        uint8_t rows[kVector];
        for (int warp = 0; warp < 4; ++warp) {
          __builtin_memcpy(rows + 8 * warp, column + strip_row(warp, n & 1, 0), 8);
        }
        int below = bits_;
        for (int i = 0; i < fields.count; ++i) {
          const Field field = fields.field[i];
          below -= field.width;
          const uint32_t mask = (1u << field.width) - 1;
          for (int r = 0; r < kVector; ++r) {
            words[field.word][t][r] |= ((rows[r] ^ flip_) >> below & mask) << field.bit;
          }
        }
      }
    }
  }

  Order order_;
  int bits_;
  uint32_t flip_;  // the stored form of code 0
  CodeFields fields_[kCodesPerLane];
};

}  // namespace humming
