"""What codes and scales stand for, in float64 and without the kernels."""

from functools import cache

import torch
from torch import Tensor

from ._packing import CODE_DTYPES
from ._scales import expand
from .formats import WeightFormat, ZeroKind
from .spec import QuantSpec


@cache
def code_values(weight_format: WeightFormat) -> Tensor:
    """float64 [2^bits]: the value of every code; infinity and NaN where the format has them (e4m3, e5m2).

    Floats have an exponent bias of 2^(exponent_bits - 1) - 1 and subnormals.
    """
    if weight_format.kind == "table":
        return torch.tensor(weight_format.values, dtype=torch.float64)
    codes = torch.arange(1 << weight_format.bits, dtype=torch.float64)
    if weight_format.kind == "uint":
        return codes
    if weight_format.kind == "int":
        return codes - (1 << weight_format.bits - 1) if weight_format.bits > 1 else 2 * codes - 1
    for dtype, other in CODE_DTYPES.items():
        if other == weight_format:
            return codes.to(torch.uint8).view(dtype).double()
    steps, negative = 1 << weight_format.mantissa_bits, len(codes) // 2
    exponent = torch.arange(negative) // steps
    fraction = codes[:negative] % steps + steps * (exponent > 0)
    bias = (1 << weight_format.exponent_bits - 1) - 1 + weight_format.mantissa_bits
    positive = torch.ldexp(fraction, exponent.clamp(min=1) - bias)
    return torch.cat([positive, -positive])


def dequantize(
    codes: Tensor, scale: Tensor | None, zero: Tensor | None, spec: QuantSpec, *, interleaved: bool = False
) -> Tensor:
    """float64 [n, k], rows in logical order: scale * (value - zero), or scale * code + offset.

    codes: uint8, or the float8 dtype of the format, [n, k], a code per byte; scale, zero: as in PackedWeight.pack.
    """
    n, k = codes.shape

    def columns(values: Tensor, name: str) -> Tensor:
        values = expand(values[None], name, spec, n, k, interleaved)[0].double()
        return values.repeat_interleave(spec.packed_group, 1)[:, :k] if spec.packed_group else values

    weight = code_values(spec.format).to(codes.device)[codes.view(torch.uint8).int()]
    if zero is not None and spec.zero == ZeroKind.integer:
        weight = weight - columns(zero, "zero")
    if scale is not None:
        if scale.dtype == torch.uint8:
            scale = scale.view(torch.float8_e8m0fnu)
        weight = weight * columns(scale, "scale")
    if zero is not None and spec.zero == ZeroKind.floating:
        weight = weight + columns(zero, "zero")
    return torch.cat([weight[0::2], weight[1::2]]) if spec.gate_up and interleaved else weight
