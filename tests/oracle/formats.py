"""Value tables of the weight formats, by code.

An integer format of B bits: intB stores value + 2^(B-1), int1 stores -1 and +1, uintB stores the value.
A float format: sign | exponent | mantissa with bias 2^(E-1) - 1 and subnormals. Only e4m3 (one NaN per sign, no
infinity) and e5m2 (IEEE) have codes that are no numbers.
A table is written out: nf4 as bitsandbytes has it, quantiles of the normal distribution as numbers of float32.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np


@dataclass(frozen=True)
class Format:
    name: str
    id: int
    kind: str  # "int", "uint", "float" or "table"
    bits: int
    exponent_bits: int = 0
    mantissa_bits: int = 0


def _float_format(format_id: int, exponent_bits: int, mantissa_bits: int) -> Format:
    name = f"e{exponent_bits}m{mantissa_bits}"
    return Format(name, format_id, "float", 1 + exponent_bits + mantissa_bits, exponent_bits, mantissa_bits)


FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        *(Format(f"int{bits}", bits, "int", bits) for bits in range(1, 9)),
        *(Format(f"uint{bits}", 10 + bits, "uint", bits) for bits in range(1, 9)),
        _float_format(21, 2, 1),
        _float_format(22, 2, 2),
        _float_format(23, 2, 3),
        _float_format(24, 3, 2),
        _float_format(25, 3, 3),
        _float_format(26, 4, 3),
        _float_format(27, 5, 2),
        Format("nf4", 31, "table", 4),
    )
}

# The magnitudes written out by hand, for the formats short enough to read. The tests hold them against the definition.
WRITTEN_MAGNITUDES = {
    "e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
    "e2m2": [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7],
    "e2m3": [
        *(0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875),
        *(1, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875),
        *(2, 2.25, 2.5, 2.75, 3, 3.25, 3.5, 3.75),
        *(4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5),
    ],
    "e3m2": [
        *(0, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375),
        *(0.5, 0.625, 0.75, 0.875, 1, 1.25, 1.5, 1.75),
        *(2, 2.5, 3, 3.5, 4, 5, 6, 7),
        *(8, 10, 12, 14, 16, 20, 24, 28),
    ],
    "e3m3": [
        *(0, 0.03125, 0.0625, 0.09375, 0.125, 0.15625, 0.1875, 0.21875),
        *(0.25, 0.28125, 0.3125, 0.34375, 0.375, 0.40625, 0.4375, 0.46875),
        *(0.5, 0.5625, 0.625, 0.6875, 0.75, 0.8125, 0.875, 0.9375),
        *(1, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875),
        *(2, 2.25, 2.5, 2.75, 3, 3.25, 3.5, 3.75),
        *(4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5),
        *(8, 9, 10, 11, 12, 13, 14, 15),
        *(16, 18, 20, 22, 24, 26, 28, 30),
    ],
}

TABLES = {
    "nf4": [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
}


def float_value(fmt: Format, code: int) -> float:
    """The number a float code stands for, from the definition of its three fields."""
    mantissa = code & ((1 << fmt.mantissa_bits) - 1)
    exponent = (code >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)
    sign = -1.0 if code >> (fmt.bits - 1) else 1.0
    if fmt.name == "e4m3" and exponent == 15 and mantissa == 7:
        return float("nan")
    if fmt.name == "e5m2" and exponent == 31:
        return sign * float("inf") if mantissa == 0 else float("nan")
    bias = 2 ** (fmt.exponent_bits - 1) - 1
    fraction = mantissa / 2**fmt.mantissa_bits
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)


@cache
def value_table(name: str) -> np.ndarray:
    """float64 [2^bits]: the value of every code, NaN and infinity where the format has them."""
    fmt = FORMATS[name]
    codes = range(1 << fmt.bits)
    if fmt.kind == "table":
        values = TABLES[name]
    elif fmt.kind == "float":
        values = [float_value(fmt, code) for code in codes]
    elif name == "int1":
        values = [-1.0, 1.0]
    elif fmt.kind == "int":
        values = [float(code - 2 ** (fmt.bits - 1)) for code in codes]
    else:
        values = [float(code) for code in codes]
    table = np.array(values)
    table.setflags(write=False)
    return table


@cache
def finite_codes(name: str) -> np.ndarray:
    """uint8: the codes that stand for finite numbers."""
    return np.flatnonzero(np.isfinite(value_table(name))).astype(np.uint8)
