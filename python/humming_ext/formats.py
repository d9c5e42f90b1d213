"""The numbers that weight descriptors store: code formats, operands, scale types, zero kinds."""

import enum

import torch

from ._formats import WeightFormat

__all__ = ["Operand", "ScaleType", "WeightFormat", "ZeroKind"]


class Operand(enum.IntEnum):
    """The tensor-core operand type a weight is packed for."""

    bf16 = 1
    fp16 = 2
    e4m3 = 3
    s8 = 4
    s4 = 5


class ScaleType(enum.IntEnum):
    """The type of the group scales inside a packed weight."""

    none = 0
    fp32 = 1
    bf16 = 2
    fp16 = 3
    e8m0 = 4
    e4m3 = 5

    @classmethod
    def of(cls, dtype: torch.dtype | None) -> "ScaleType":
        """The scale type of a torch dtype; None means no group scales. Raises ValueError for any other dtype."""
        if dtype not in _SCALE_TYPES:
            legal = ", ".join(str(key) for key in _SCALE_TYPES)
            raise ValueError(f"scale_dtype = {dtype} is none of {legal}")
        return _SCALE_TYPES[dtype]

    @property
    def dtype(self) -> torch.dtype | None:
        """The torch dtype, None for `none`."""
        return next(dtype for dtype, scale_type in _SCALE_TYPES.items() if scale_type is self)


_SCALE_TYPES: dict[torch.dtype | None, ScaleType] = {
    None: ScaleType.none,
    torch.float32: ScaleType.fp32,
    torch.bfloat16: ScaleType.bf16,
    torch.float16: ScaleType.fp16,
    torch.float8_e8m0fnu: ScaleType.e8m0,
    torch.float8_e4m3fn: ScaleType.e4m3,
}


class ZeroKind(enum.IntEnum):
    """What unsigned codes carry beside their scale: value = scale * (code - zero), or scale * code + offset."""

    none = 0
    integer = 1
    floating = 2
