"""Where prepack puts every bit, written from the drawings of csrc/layout (word_codec.h, record.h), not from its code.

A packed weight is strips of 64 rows; a strip is records along K, each 64 rows x 128 columns (or 64 at the end). In a
record come the code words, then [warp][g][row half][group] scales, then zero points in the same order, padded to 128
bytes; a record of 64 columns has the scales of one of 128.
Inside, warp w holds rows 16w..16w+15 and its lane 4g + t, for each half of 64 columns, 32 codes: register n = 4 step +
i, value v, is row g + 8 (i & 1) and column 8V step + 4V (i >> 1) + V t + v.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from .formats import FORMATS

VALUES_PER_REGISTER = {"bf16": 2, "fp16": 2, "e4m3": 4, "s8": 4, "s4": 8}
# (bits, values per register) whose codes lie whole; the others lie in planes of powers of two.
WHOLE = {
    *((bits, values) for bits in (1, 2, 3, 4, 7, 8) for values in (2, 4)),
    (5, 2),
    *((bits, 8) for bits in (1, 2, 3, 4)),
}
PLANE_WIDTHS = {1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8]}
# By values per register: how far the sign lies above the next bit, and where that bit lies for each register of a word.
SIX_BIT_FLOATS = {
    "e2m3": {2: (7, [0, 14, 12, 10, 8, 6, 4, 2]), 4: (3, [0, 6, 4, 2])},
    "e3m2": {2: (6, [0, 12, 8, 4, 1, 13, 9, 5]), 4: (2, [0, 4, 1, 5])},
}


@dataclass(frozen=True)
class Shape:
    """The logical shape of one expert's weight and what follows from it."""

    n: int
    k: int
    gate_up: bool = False

    @property
    def packed_rows(self) -> int:
        rows = 2 * _round_up(self.n // 2, 8) if self.gate_up else self.n
        return _round_up(rows, 64)

    def rows(self) -> np.ndarray:
        """int [packed_rows]: the logical row of each packed row, -1 for padding."""
        logical = np.full(self.packed_rows, -1)
        if not self.gate_up:
            logical[: self.n] = np.arange(self.n)
            return logical
        half = self.n // 2
        for index in range(half):  # patches of 16 rows: 8 of gate, then their 8 of up
            patch, within = divmod(index, 8)
            logical[16 * patch + within] = index
            logical[16 * patch + 8 + within] = half + index
        return logical

    def record_columns(self) -> list[int]:
        """Columns of the records along K: 128 each, 64 for a last one that needs no more."""
        return [128 if self.k - start > 64 else 64 for start in range(0, self.k, 128)]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def lane_bits(name: str, operand: str, n, v, b):
    """int: where bit b of a stored code lies in its lane's words of one patch, as 32 * word + bit.

    The code is value v of register n; all three may be arrays.
    """
    bits = FORMATS[name].bits
    values = VALUES_PER_REGISTER[operand]
    unit = 32 // values
    n, v, b = np.broadcast_arrays(n, v, b)
    if name == "e2m1" and values == 2:  # where a turn to the left by so much puts e e m at bits 8..6 and the sign at 15
        turn = np.array([0, 6, 10, 4])[n % 4]
        turn = np.where((n % 4 == 3) & (b == 0), 28, turn)
        return 32 * (n // 4) + (16 * v + np.where(b == 3, 15, 6 + b) - turn) % 32
    if name == "e2m1":  # magnitudes are nibbles; the signs fill the nibbles' top bits
        slot = n % 2
        return 32 * (n // 2) + np.where(b == 3, 8 * v + 7 - 4 * slot, 4 * (4 * slot + v) + b)
    if name in SIX_BIT_FLOATS and values < 8:  # low bits in nibbles; the sign and its neighbour turned
        distance, lower = SIX_BIT_FLOATS[name][values]
        word, bit = whole_slot(4, values, n)
        pairs = unit // 2
        upper = unit * v + np.array(lower)[n % pairs] + np.where(b == 5, distance, 0)
        return np.where(b < 4, 32 * word + unit * v + bit + b, 32 * (4 + n // pairs) + upper % 32)
    if (bits, values) in WHOLE:  # in slots; one bit of every word for registers that are left over
        word, bit = whole_slot(bits, values, n)
        return np.where(word < bits, 32 * word + unit * v + bit + b, 32 * (bits - 1 - b) + unit * v + bit)
    position = np.empty(b.shape, np.int64)
    above = 0  # bits in the planes before this one
    for width in PLANE_WIDTHS[bits]:
        low = bits - above - width  # lowest code bit of this plane
        here = (b >= low) & (b < low + width)
        word, bit = whole_slot(width, values, n)
        position[here] = (32 * (above + word) + unit * v + bit + b - low)[here]
        above += width
    return position


def whole_slot(width: int, values: int, n):
    """(word, lowest bit in the unit) of register n, for codes of `width` bits; word `width`: a left-over bit."""
    if values > 2:  # from the top; what is left over is at the bottom
        unit = 32 // values
        slots = [(word, unit - width * (i + 1)) for word in range(width) for i in range(unit // width)]
        slots += [(width, bit) for bit in range(unit % width)]
    else:  # the low byte of every half word, in pairs of registers with the next window; then what is above both
        windows = 8 // width
        slots = [
            (word, width * (i + second * windows)) for word in range(width) for i in range(windows) for second in (0, 1)
        ]
        slots += [(word, bit) for word in range(width) for bit in range(2 * windows * width, 17 - width, width)]
        slots += [(width, bit) for bit in range(16 - 16 % width, 16)]
    return np.array(slots).T[:, n]


@cache
def code_bit_positions(name: str, operand: str, columns: int) -> np.ndarray:
    """int [64, columns, bits]: the bit of the record where bit b (0 = least significant) of a stored code lies."""
    bits = FORMATS[name].bits
    values = VALUES_PER_REGISTER[operand]
    row, k, b = np.meshgrid(np.arange(64), np.arange(columns), np.arange(bits), indexing="ij")
    warp, patch_row = row // 16, row % 16
    half, column = k // 64, k % 64
    step, in_step = column // (8 * values), column % (8 * values)
    n = 4 * step + 2 * (in_step // (4 * values)) + patch_row // 8
    lane = 4 * (patch_row % 8) + in_step % (4 * values) // values
    word, bit = np.divmod(lane_bits(name, operand, n, in_step % values, b), 32)

    positions = np.empty(row.shape, np.int64)
    above = 0
    for width in PLANE_WIDTHS[bits]:
        here = (word >= above) & (word < above + width)
        at = word - above
        chunk = min(4, width)  # a lane's words of one plane, in loads of up to 128 bits
        address = 128 * (half * bits + above) + ((at // chunk * 4 + warp) * 32 + lane) * chunk + at % chunk
        positions[here] = (32 * address + bit)[here]
        above += width
    positions.setflags(write=False)
    return positions


def stored_codes(codes, name: str, operand: str):
    """Symmetric integers are stored in two's complement for integer-like operands (8 and 4 bits), else as they are."""
    fmt = FORMATS[name]
    flip = fmt.kind == "int" and operand not in ("bf16", "fp16")
    return codes ^ np.uint8(1 << (fmt.bits - 1)) if flip else codes


def pack_record(codes, name: str, operand: str) -> np.ndarray:
    """uint8 code bytes of one record from codes [64, columns]."""
    fmt = FORMATS[name]
    positions = code_bit_positions(name, operand, codes.shape[1])
    flags = (stored_codes(codes, name, operand)[:, :, None] >> np.arange(fmt.bits, dtype=np.uint8)) & 1
    record = np.zeros(positions.size, np.uint8)
    record[positions.reshape(-1)] = flags.reshape(-1)
    return np.packbits(record, bitorder="little")


def group_area(entries) -> np.ndarray:
    """Scale or zero bytes of a record in stored order, from entries uint8 [64, groups, entry bytes]."""
    by_lane = entries.reshape(4, 2, 8, *entries.shape[1:])  # warp, row half, g
    return by_lane.transpose(0, 2, 1, 3, 4).reshape(-1)


def pack(
    codes, name: str, operand: str, *, scale=None, zero=None, group: int = 0, gate_up: bool = False, scale_pad: int = 0
):
    """uint8 [strips, strip_bytes] of codes [N, K].

    scale, zero: uint8 [N, G, entry bytes], the bytes of each entry; group is the columns per entry (0: one for all).
    scale_pad fills the bytes of padding scales; padding codes and zeros are 0.
    """
    n, k = codes.shape
    shape = Shape(n, k, gate_up)
    logical = shape.rows()
    padded_k = sum(shape.record_columns())
    per_record = 128 // group if group else 1  # entries of a row in every record, in a half tail record as well
    num_entries = per_record * len(shape.record_columns()) if group else 1

    def padded(entries, width: int, fill: int):
        """Rows in packed order and `width` entries along K, padding filled."""
        out = np.full((shape.packed_rows, width, *entries.shape[2:]), fill, np.uint8)
        out[logical >= 0, : entries.shape[1]] = entries[logical[logical >= 0]]
        return out

    codes = padded(codes, padded_k, 0)
    scale = None if scale is None else padded(scale, num_entries, scale_pad)
    zero = None if zero is None else padded(zero, num_entries, 0)
    strips = []
    for first_row in range(0, shape.packed_rows, 64):
        strip, column = [], 0
        for columns in shape.record_columns():
            rows = slice(first_row, first_row + 64)
            parts = [pack_record(codes[rows, column : column + columns], name, operand)]
            first = column // 128 * per_record if group else 0
            groups = slice(first, first + per_record)
            parts += [group_area(area[rows, groups]) for area in (scale, zero) if area is not None]
            record = np.concatenate(parts)
            strip.append(np.concatenate([record, np.zeros(-len(record) % 128, np.uint8)]))
            column += columns
        strips.append(np.concatenate(strip))
    return np.stack(strips)
