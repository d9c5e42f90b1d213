"""Codes out of the packed integers of checkpoints."""

from math import gcd

import torch
from torch import Tensor
from torch.nn.functional import pad


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """Codes uint8 [..., count] of a stream of `bits` each, lowest bits first, in int32 words [..., at least as many].

    The stream runs along the last dimension; codes of 3, 5, 6 and 7 bits may begin in one word and end in the next.
    """
    per_period, words_per_period = 32 // gcd(32, bits), bits // gcd(32, bits)
    periods = -(-count // per_period)
    words = pad(words, (0, periods * words_per_period - words.shape[-1]))
    codes = torch.empty(*words.shape[:-1], periods * per_period, dtype=torch.uint8)
    for index in range(per_period):
        first, shift = divmod(index * bits, 32)
        # The shift copies the sign into the bits above 31 - shift, so the mask keeps only what this word holds.
        held = min(bits, 32 - shift)
        code = words[..., first::words_per_period] >> shift & (1 << held) - 1
        if held < bits:
            code |= (words[..., first + 1 :: words_per_period] & (1 << bits - held) - 1) << held
        codes[..., index::per_period] = code
    return codes[..., :count]


def unpack_planes(words: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., words * 32 / bits] in planes, in int32 words [..., a multiple of bits].

    `bits` words hold 32 codes: a stream of the lowest 4 bits of all (of 8, if that is `bits`), then of the next 2, then
    of the last 1, as far as `bits` is a sum of these.
    """
    words = words.unflatten(-1, (-1, bits))
    planes, first = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            planes.append(unpack(words[..., first : first + width], width, 32) << first)
            first += width
    return torch.stack(planes).sum(0, dtype=torch.uint8).flatten(-2)


def offset_codes(values: Tensor, bits: int) -> Tensor:
    """uint8 codes of int8 values of `bits`; those out of range stay so, which packing reports."""
    return values.view(torch.uint8) + (1 << bits - 1)


def num_words(count: int, bits: int) -> int:
    """int32 words of a stream of `count` codes."""
    return -(-count * bits // 32)


def sort_columns(name: str, g_idx: Tensor, group: int) -> Tensor | None:
    """The columns in the order of their groups, int64 [k], or None if that is the order they are in.

    g_idx: int [k], the group of each column.
    group: columns of each group but the last.

    Raises ValueError, naming the tensor, if the groups are others.
    """
    wanted = torch.arange(len(g_idx)) // group
    if torch.equal(g_idx.long(), wanted):
        return None
    columns = g_idx.argsort(stable=True)
    if not torch.equal(g_idx[columns].long(), wanted):
        raise ValueError(f"{name}: its {len(g_idx)} columns are not in groups of {group}; check group_size")
    return columns
