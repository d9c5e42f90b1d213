"""Checkpoint codes, scales and zeros to real weights."""

import numpy as np

from .formats import value_table
from .rounding import fma32


def pack_bitstream(codes, bits: int):
    """uint8 [..., ceil(K * bits / 8)] of codes [..., K]: little-endian, least significant bit first, along K."""
    codes = np.asarray(codes, np.uint8)
    flags = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(flags.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


def unpack_bitstream(stream, bits: int, k: int):
    """The inverse of pack_bitstream: uint8 codes [..., k]."""
    flags = np.unpackbits(np.asarray(stream, np.uint8), axis=-1, bitorder="little")[..., : k * bits]
    flags = flags.reshape(*stream.shape[:-1], k, bits)
    return (flags << np.arange(bits, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)


def source_rows(row_order: str, n: int):
    """int [n]: the source row of every logical row. Logical order of a gate/up weight is [gate; up]."""
    if row_order == "gate_up_interleaved":
        return np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)])
    return np.arange(n)


def per_column(groups, k: int, group: int):
    """[..., N, k] from one entry per group of `group` columns; group 0 has one entry for all."""
    groups = np.asarray(groups)
    index = np.arange(k) // group if group else np.zeros(k, np.int64)
    return groups[..., index]


def dequantise(codes, name: str, *, scale=None, group: int = 0, zero=None, offset=None, scale2=None):
    """float64 [..., N, K]: (value - zero) * scale, or scale * code + offset, then * scale2.

    codes [..., N, K]; scale, zero, offset [..., N, G]; scale2 one number, [...] or [..., N].
    """
    weights = value_table(name)[codes]
    k = weights.shape[-1]
    if zero is not None:
        weights = weights - per_column(zero, k, group)
    if scale is not None:
        weights = weights * per_column(np.asarray(scale, np.float64), k, group)
    if offset is not None:
        weights = weights + per_column(np.asarray(offset, np.float64), k, group)
    if scale2 is not None:
        weights = weights * rows_of_scale2(scale2, weights)[..., None]
    return weights


def decode(codes, name: str, *, scale=None, group: int = 0, zero=None, offset=None, scale2=None):
    """float32 [..., N, K]: as `dequantise`, each step rounded to fp32 in the order that decode_packed documents."""
    weights = value_table(name)[codes].astype(np.float32)
    k = weights.shape[-1]
    if zero is not None:
        weights = weights - per_column(zero, k, group).astype(np.float32)
    if offset is not None:
        columns = per_column(np.asarray(scale, np.float32), k, group)
        weights = fma32(columns, weights, per_column(np.asarray(offset, np.float32), k, group))
    elif scale is not None:
        weights = weights * per_column(np.asarray(scale, np.float32), k, group)
    if scale2 is not None:
        weights = weights * rows_of_scale2(np.asarray(scale2, np.float32), weights)[..., None]
    return weights


def rows_of_scale2(scale2, weights):
    """scale2 (one number, [experts] or [..., N]) in the shape of the weights' rows."""
    scale2 = np.asarray(scale2)
    rows = weights.shape[:-1]
    if scale2.size == 1:
        return np.broadcast_to(scale2.reshape(()), rows)
    if len(rows) == 2 and scale2.size == rows[0] != rows[0] * rows[1]:
        return np.broadcast_to(scale2.reshape(-1, 1), rows)
    return scale2.reshape(rows)
