"""Rounding to the small types, to nearest with ties to even, in float64.

Every function takes numbers of any real numpy type. `fma32` is the fp32 operation that numpy does not have.
"""

import numpy as np

from .formats import value_table


def round_to_float(x, mantissa_bits: int, min_exponent: int, max_value: float, *, saturate: bool = False):
    """float64: `x` rounded to a binary float type with subnormals.

    min_exponent is that of the smallest normal number. Above max_value the result is infinite, or max_value if
    `saturate`; NaN stays NaN.
    """
    x = np.asarray(x, np.float64)
    finite = np.isfinite(x)
    _, exponent = np.frexp(np.where(finite, x, 0.0))  # x = f * 2^exponent with 0.5 <= |f| < 1
    quantum = np.ldexp(1.0, np.maximum(exponent - 1, min_exponent) - mantissa_bits)
    rounded = np.where(finite, np.rint(np.where(finite, x, 0.0) / quantum) * quantum, x)
    limit = max_value if saturate else np.inf
    return np.where(np.abs(rounded) > max_value, np.copysign(limit, rounded), rounded)


def round_bf16(x):
    return round_to_float(x, 7, -126, float.fromhex("0x1.fep127"))


def round_fp16(x):
    return round_to_float(x, 10, -14, 65504.0)


def round_fp32(x):
    return np.asarray(x, np.float64).astype(np.float32).astype(np.float64)


ROUND = {"bf16": round_bf16, "fp16": round_fp16, "fp32": round_fp32}


def _nearest_code(values, table_name: str):
    """uint8 codes of exactly representable `values`; keeps the sign of zero; NaN becomes 0x7f."""
    half = value_table(table_name)[:128]
    usable = np.isfinite(half)
    codes = np.searchsorted(half[usable], np.abs(values)).astype(np.uint8)
    codes = np.where(np.isnan(values), 0x7F, codes).astype(np.uint8)
    return np.where(np.signbit(values) & ~np.isnan(values), codes | 0x80, codes).astype(np.uint8)


def encode_e4m3(x):
    """uint8 codes of e4m3fn, saturating at 448; NaN becomes 0x7f."""
    return _nearest_code(round_to_float(_finite_or_max(x, 448.0), 3, -6, 448.0, saturate=True), "e4m3")


def encode_e5m2(x):
    """uint8 codes of e5m2, saturating at 57344; NaN becomes 0x7f."""
    return _nearest_code(round_to_float(_finite_or_max(x, 57344.0), 2, -14, 57344.0, saturate=True), "e5m2")


def _finite_or_max(x, max_value: float):
    x = np.asarray(x, np.float64)
    return np.where(np.isinf(x), np.copysign(max_value, x), x)


def round_int(x, max_value: int):
    """int8: nearest integer, ties to even, clamped to +-max_value; NaN becomes 0."""
    x = np.asarray(x, np.float64)
    return np.clip(np.rint(np.where(np.isnan(x), 0.0, x)), -max_value, max_value).astype(np.int8)


def e8m0_value(code):
    """float64: 2^(code - 127); 255 is NaN."""
    code = np.asarray(code, np.int64)
    return np.where(code == 255, np.nan, np.ldexp(1.0, code - 127))


def encode_e8m0_ceil(x):
    """uint8: the smallest power of two that is at least x (x > 0), within 2^-127 .. 2^127."""
    fraction, exponent = np.frexp(np.asarray(x, np.float64))
    exponent = np.where(fraction == 0.5, exponent - 1, exponent)
    return np.clip(exponent + 127, 0, 254).astype(np.uint8)


def pack_int4(values):
    """uint8 [..., K/2] of int8 [..., K] in -8..7: even k in the low nibble, two's complement."""
    nibbles = np.asarray(values).astype(np.uint8) & 0xF
    return (nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)).astype(np.uint8)


def unpack_int4(packed):
    """int8 [..., K] of uint8 [..., K/2]."""
    packed = np.asarray(packed, np.uint8)
    nibbles = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1).astype(np.int8)
    return np.where(nibbles >= 8, nibbles - 16, nibbles).astype(np.int8)


def fma_to_odd(a, b, c):
    """float64: a * b + c rounded to odd, for a and b whose product is exact in float64.

    A value rounded to odd never lies on a tie of a narrower type, so a second rounding to one is harmless.
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = product + addend
    rest = total - product
    error = (product - (total - rest)) + (addend - rest)  # exact: total + error == product + addend
    even = (total.view(np.int64) & 1) == 0
    inexact = np.isfinite(error) & (error != 0)
    return np.where(inexact & even, np.nextafter(total, np.copysign(np.inf, error)), total)


def fma32(a, b, c):
    """float32: a * b + c of float32 inputs with one rounding."""
    return fma_to_odd(np.asarray(a, np.float32), np.asarray(b, np.float32), np.asarray(c, np.float32)).astype(
        np.float32
    )
