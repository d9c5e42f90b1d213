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

namespace tile_codec {

inline constexpr int kColumnLanes = 4;          // lanes t of a fragment row
inline constexpr int kVector = kStripRows / 2;  // rows that share a register half: 4 warps x 8 groups

// Unpacks one k half: the words of all four warps as words[word][t][8 * warp + g], so that one vector operation decodes
// 32 rows.
template <int kFields>
HUMMING_HD void decode_half(const uint32_t (*words)[kColumnLanes][kVector], Codec codec, Order order, int bits,
                            uint32_t flip, uint8_t* codes) {
  for (int n = 0; n < registers_per_patch(order); ++n) {
    for (int v = 0; v < values_per_register(order); ++v) {
      const CodeFields fields = code_fields(codec, order, bits, n, v);
      for (int t = 0; t < kColumnLanes; ++t) {
        uint8_t rows[kVector];
        for (int r = 0; r < kVector; ++r) {
          uint32_t code = 0;
          for (int i = 0; i < kFields; ++i) {
            const Field field = fields.field[i];
            code = code << field.width | (words[field.word][t][r] >> field.bit & ((1u << field.width) - 1));
          }
          rows[r] = static_cast<uint8_t>(code ^ flip);
        }
        uint8_t* column = codes + patch_coord(order, t, n, v).k * kStripRows;
        for (int warp = 0; warp < 4; ++warp) {
          __builtin_memcpy(column + strip_row(warp, n & 1, 0), rows + 8 * warp, 8);
        }
      }
    }
  }
}

// The inverse: packs one k half into zeroed words.
template <int kFields>
HUMMING_HD void encode_half(const uint8_t* codes, Codec codec, Order order, int bits, uint32_t flip,
                            uint32_t (*words)[kColumnLanes][kVector]) {
  for (int n = 0; n < registers_per_patch(order); ++n) {
    for (int v = 0; v < values_per_register(order); ++v) {
      const CodeFields fields = code_fields(codec, order, bits, n, v);
      for (int t = 0; t < kColumnLanes; ++t) {
        const uint8_t* column = codes + patch_coord(order, t, n, v).k * kStripRows;
        uint8_t rows[kVector];
        for (int warp = 0; warp < 4; ++warp) {
          __builtin_memcpy(rows + 8 * warp, column + strip_row(warp, n & 1, 0), 8);
        }
        int below = bits;
        for (int i = 0; i < kFields; ++i) {
          const Field field = fields.field[i];
          below -= field.width;
          const uint32_t mask = (1u << field.width) - 1;
          for (int r = 0; r < kVector; ++r) {
            words[field.word][t][r] |= ((rows[r] ^ flip) >> below & mask) << field.bit;
          }
        }
      }
    }
  }
}

}  // namespace tile_codec

// Codes of a record: codes[64 * halves columns][64 rows], as the format defines them (the stored form undone).
HUMMING_HD void decode_record(const uint8_t* record, const FormatTraits& format, Order order, int halves,
                              uint8_t* codes) {
  using namespace tile_codec;
  const Codec codec = codec_of(format);
  const uint32_t flip = stored_code(format, order, 0);
  for (int half = 0; half < halves; ++half) {
    uint32_t words[8][kColumnLanes][kVector];
    for (int word = 0; word < format.bits; ++word) {
      for (int warp = 0; warp < 4; ++warp) {
        // Lanes of a warp are a fixed stride apart.
        const int first = word_index(format.bits, half, warp, 0, word);
        const int stride = word_index(format.bits, half, warp, 1, word) - first;
        for (int lane = 0; lane < kLanes; ++lane) {
          __builtin_memcpy(&words[word][lane % 4][8 * warp + lane / 4], record + 4 * (first + lane * stride), 4);
        }
      }
    }
    uint8_t* out = codes + half * kHalfK * kStripRows;
    switch (code_fields(codec, order, format.bits, 0, 0).count) {
      case 1: decode_half<1>(words, codec, order, format.bits, flip, out); break;
      case 2: decode_half<2>(words, codec, order, format.bits, flip, out); break;
      default: decode_half<3>(words, codec, order, format.bits, flip, out); break;
    }
  }
}

// Writes the words of a record from codes[64 * halves columns][64 rows]. Scales and zero points are not touched.
HUMMING_HD void encode_record(const uint8_t* codes, const FormatTraits& format, Order order, int halves,
                              uint8_t* record) {
  using namespace tile_codec;
  const Codec codec = codec_of(format);
  const uint32_t flip = stored_code(format, order, 0);
  for (int half = 0; half < halves; ++half) {
    uint32_t words[8][kColumnLanes][kVector] = {};
    const uint8_t* in = codes + half * kHalfK * kStripRows;
    switch (code_fields(codec, order, format.bits, 0, 0).count) {
      case 1: encode_half<1>(in, codec, order, format.bits, flip, words); break;
      case 2: encode_half<2>(in, codec, order, format.bits, flip, words); break;
      default: encode_half<3>(in, codec, order, format.bits, flip, words); break;
    }
    for (int word = 0; word < format.bits; ++word) {
      for (int warp = 0; warp < 4; ++warp) {
        for (int lane = 0; lane < kLanes; ++lane) {
          __builtin_memcpy(record + 4 * word_index(format.bits, half, warp, lane, word),
                           &words[word][lane % 4][8 * warp + lane / 4], 4);
        }
      }
    }
  }
}

}  // namespace humming
