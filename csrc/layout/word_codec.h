// Where the bits of a weight code lie: within a lane's words, and where the words lie within a record.
//
// Weights are the A operand of the MMA. A patch is 16 rows x 64 k, the A fragments of one warp for 64 columns of K.
// Lane 4g + t of the warp holds 32 codes of it, as `bits` 32-bit words. The codes fill R registers of V values each:
//
//   order   operand      V values per register   register n = 4 * step + i    unit (bits per value in a register)
//   k16     bf16, fp16   2                       4 steps of k16, i = 0..3     16
//   k32     e4m3, s8     4                       2 steps of k32               8
//   k64     s4           8                       1 step of k64                4
//
// Register i of a step holds row g + 8 * (i & 1) and columns 4V * (i >> 1) + V * t + v, v = 0..V-1: the A fragment of
// wgmma m64 per warp and of mma.sync m16, for every operand width.
//
// Codes lie whole where that takes few moves: a unit has unit / bits slots, so that a shift and a mask bring all V
// values of a register into place. Where bits do not divide the unit, unit % bits bits of every unit are left over, and
// as many registers, the last: each takes one of those bits of every word, its code's most significant bit from word 0,
// the next from word 1, ...
//
//   k32, k64  slots from the top, in the order of the registers; the lowest bits are left over
//   k16       the low eight bits of a bf16 are linear (dequant.h, RawDequant), so that as many codes as fit there are
//             registers without a shift. Registers 2q and 2q + 1, which meet the same tokens, lie alike within the two
//             windows of a word; a slot above both is that of the registers after all others; the highest bits are left
//             over
//
// Where that takes more moves (6 bits, and 5 bits in order k32), codes are split into bit planes, most significant bits
// first (5 = 4+1, 6 = 4+2): a plane of p bits has p words and lies like a code of p bits.
//
//   p = 4, k16   |31..28|27..24|23..20|19..16|15..12|11..8 | 7..4 | 3..0 |
//             v=1: n+3    n+1    n+2    n  v=0: n+3    n+1    n+2    n
//   p = 4, k32   |31..28|27..24|23..20|19..16|15..12|11..8 | 7..4 | 3..0 |
//                  n,v=3  n+1    n,v=2  n+1    n,v=1  n+1    n,v=0  n+1
//
// Floats of 4 and 6 bits differ: to move sign, exponent and mantissa apart is dearer than to place them so once. e2m1:
//   k16: turned left by 0, 6, 10 (across the whole word), register i = 0, 1, 2 of a word has its signs at bits 15 and
//        its magnitudes (e e m) at bits 8..6 of the half words: a bf16 whose exponent field is e e. Of i = 3, sign and
//        e e do so turned by 4, and m turned by 28.
//   k32: magnitudes are the low three bits of nibble 4 * slot + v, PRMT's selectors; the sign of slot 0 is bit 8v + 7,
//        that of slot 1 bit 8v + 3.
// e2m3 and e3m2, k16 and k32: the four words of the plane p = 4 have the low bits of the codes, the two others the sign
// and the bit below it, as far apart as a bf16 or an e4m3 wants them: one turn of a word brings both into place for all
// values of a register. turn_of() says where they lie.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "formats/format.h"

namespace humming {

enum class Order { k16, k32, k64 };

HUMMING_HD constexpr Order order_of(Operand operand) {
  if (operand == Operand::s4) return Order::k64;
  return operand == Operand::bf16 || operand == Operand::fp16 ? Order::k16 : Order::k32;
}

// How the codes of a format are placed in words.
enum class Codec { plain, e2m1, e2m3, e3m2 };

HUMMING_HD constexpr Codec codec_of(const FormatTraits& format) {
  switch (static_cast<Format>(format.id)) {
    case Format::e2m1: return Codec::e2m1;
    case Format::e2m3: return Codec::e2m3;
    case Format::e3m2: return Codec::e3m2;
    default: return Codec::plain;
  }
}

inline constexpr int kLanes = 32;
inline constexpr int kCodesPerLane = 32;  // of one patch

// Values per register, and the register count of a patch.
HUMMING_HD constexpr int values_per_register(Order order) {
  return order == Order::k16 ? 2 : order == Order::k32 ? 4 : 8;
}
HUMMING_HD constexpr int registers_per_patch(Order order) { return kCodesPerLane / values_per_register(order); }

// Width of bit plane `plane` of a code of `bits` bits (0 past the last plane), and the number of bits above it.
HUMMING_HD constexpr int plane_width(int bits, int plane) {
  for (int width = 8, index = 0; width; width /= 2) {
    if (bits & width && index++ == plane) return width;
  }
  return 0;
}
HUMMING_HD constexpr int bits_above_plane(int bits, int plane) {
  int above = 0;
  for (int index = 0; index < plane; ++index) above += plane_width(bits, index);
  return above;
}
HUMMING_HD constexpr int num_planes(int bits) {
  return (bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1) + (bits >> 3 & 1);
}

// Whether codes lie whole, moved once, and bit by bit in the registers that are left over; else plane by plane.
HUMMING_HD constexpr bool lie_whole(Order order, int bits) {
  const int unit = 32 / values_per_register(order);  // as many as registers
  return unit / bits * bits + unit % bits * bits <= num_planes(bits) * unit;
}

// Row within the patch and column within it of value v of register n, for the lane 4g + t.
struct PatchCoord {
  int row;  // 0..15
  int k;    // 0..63
};
HUMMING_HD constexpr PatchCoord patch_coord(Order order, int lane, int n, int v) {
  const int width = values_per_register(order);
  const int i = n % 4;
  return {lane / 4 + 8 * (i & 1), 8 * width * (n / 4) + 4 * width * (i >> 1) + width * (lane % 4) + v};
}

// A run of bits of a code: word among the lane's `bits` words of the patch, lowest bit there, width.
struct Field {
  int word, bit, width;
};

// A code as its fields, most significant first: the whole code, a field per plane or per bit; of floats that are placed
// apart, their parts.
struct CodeFields {
  Field field[8];
  int count;
};

// Where a code, or a plane, of `bits` bits lies that is stored whole: word, and bit within the unit. Past the slots:
// word -1, and the left-over bit.
struct Slot {
  int word, bit;
};

// Registers of a word that lie in the two windows of order k16.
HUMMING_HD constexpr int windowed_registers(int bits) { return 2 * (8 / bits); }

HUMMING_HD constexpr Slot slot_of(Order order, int bits, int n) {
  const int unit = 32 / values_per_register(order);
  const int slots = unit / bits;
  const int left_over = n - bits * slots;
  if (order != Order::k16) {
    return left_over < 0 ? Slot{n / slots, unit - bits * (n % slots + 1)} : Slot{-1, left_over};
  }
  const int windowed = windowed_registers(bits);
  const int above = n - bits * windowed;  // the windows of all words come first
  if (above < 0) return {n / windowed, bits * (n % windowed / 2) + bits * windowed / 2 * (n % 2)};
  return left_over < 0 ? Slot{above, bits * windowed} : Slot{-1, bits * slots + left_over};
}

// Of e2m3 and e3m2, in the operand: how far the sign lies above the bit below it.
HUMMING_HD constexpr int sign_distance(Codec codec, Order order) {
  const int mantissa = codec == Codec::e2m3 ? 3 : 2;
  return order == Order::k16 ? 15 - (7 - mantissa + 4) : 7 - (3 - mantissa + 4);
}

// Where two bits of a unit lie, the upper `distance` above the lower, so that unit / 2 such pairs fill all units of a
// word, whose ends meet: the lower bit of pair `index`. Steps of `distance` run through the unit in cycles of even
// length; every other step is a lower bit.
HUMMING_HD constexpr int turn_of(int unit, int distance, int index) {
  bool taken[16] = {};
  for (int first = 0;; ++first) {
    for (int at = first; !taken[at]; at = (at + 2 * distance) % unit) {
      if (index-- == 0) return at;
      taken[at] = taken[(at + distance) % unit] = true;
    }
  }
}

// Fields of value v of register n: the one definition of the placement drawn above.
HUMMING_HD constexpr CodeFields code_fields(Codec codec, Order order, int bits, int n, int v) {
  const int unit = 32 / values_per_register(order);
  if (codec == Codec::e2m1 && order == Order::k16) {
    const int word = n / 4, i = n % 4;
    const int turn = i == 0 ? 0 : i == 1 ? 6 : i == 2 ? 10 : 4;
    const int mantissa = i == 3 ? 28 : turn;
    return {{{word, (16 * v + 15 - turn + 32) % 32, 1},
             {word, (16 * v + 7 - turn + 32) % 32, 2},
             {word, (16 * v + 6 - mantissa + 32) % 32, 1}},
            3};
  }
  if (codec == Codec::e2m1) {
    const int word = n / 2, slot = n % 2, nibble = 4 * (4 * slot + v);
    return {{{word, 8 * v + (slot ? 3 : 7), 1}, {word, nibble + 1, 2}, {word, nibble, 1}}, 3};
  }
  if (codec == Codec::e2m3 || codec == Codec::e3m2) {
    const Slot low = slot_of(order, 4, n);
    const int distance = sign_distance(codec, order);
    const int word = 4 + n / (unit / 2), at = unit * v + turn_of(unit, distance, n % (unit / 2));
    return {{{word, (at + distance) % 32, 1}, {word, at, 1}, {low.word, unit * v + low.bit, 4}}, 3};
  }
  CodeFields fields{};
  if (lie_whole(order, bits)) {
    const Slot slot = slot_of(order, bits, n);
    if (slot.word >= 0) return {{{slot.word, unit * v + slot.bit, bits}}, 1};
    for (fields.count = 0; fields.count < bits; ++fields.count) {
      fields.field[fields.count] = {fields.count, unit * v + slot.bit, 1};
    }
    return fields;
  }
  for (fields.count = 0; fields.count < num_planes(bits); ++fields.count) {
    const int width = plane_width(bits, fields.count);
    const Slot slot = slot_of(order, width, n);
    fields.field[fields.count] = {bits_above_plane(bits, fields.count) + slot.word, unit * v + slot.bit, width};
  }
  return fields;
}

// What is stored for a code: symmetric integers lie in two's complement where the MMA wants integers, so that their top
// bit is the operand's sign; elsewhere in offset binary, as in checkpoints. Its own inverse.
HUMMING_HD constexpr uint32_t stored_code(const FormatTraits& format, Order order, uint32_t code) {
  const bool flip = format.kind == Kind::symmetric_int && order != Order::k16;
  return flip ? code ^ 1u << (format.bits - 1) : code;
}

// A stored code out of and into a lane's words of one patch. set_code wants zeroed words.
HUMMING_HD uint32_t get_code(const CodeFields& fields, const uint32_t* words) {
  uint32_t code = 0;
  for (int i = 0; i < fields.count; ++i) {
    const Field& field = fields.field[i];
    code = code << field.width | (words[field.word] >> field.bit & ((1u << field.width) - 1));
  }
  return code;
}

HUMMING_HD void set_code(const CodeFields& fields, int bits, uint32_t* words, uint32_t code) {
  int below = bits;
  for (int i = 0; i < fields.count; ++i) {
    const Field& field = fields.field[i];
    below -= field.width;
    words[field.word] |= (code >> below & ((1u << field.width) - 1)) << field.bit;
  }
}

// Index, in 32-bit words from the start of a record, of word `word` of a lane's patch. A record has one or two k halves
// of 64 columns, one after the other, and four row patches (`warp`, 16 rows each). A lane's words are cut into the
// powers of two that make up `bits` (the planes, where there are any), and those stored in chunks of up to four, which
// it fetches with one load of up to 128 bits, free of bank conflicts.
HUMMING_HD constexpr int word_index(int bits, int half, int warp, int lane, int word) {
  int plane = 0;
  while (word >= bits_above_plane(bits, plane + 1)) ++plane;
  const int above = bits_above_plane(bits, plane);
  const int chunk = plane_width(bits, plane) < 4 ? plane_width(bits, plane) : 4;
  const int at = word - above;
  return 4 * kLanes * (half * bits + above) + ((at / chunk * 4 + warp) * kLanes + lane) * chunk + at % chunk;
}

}  // namespace humming
