"""torchao: integers of 2 to 8 bits, a byte each, and of 4 bits, two per byte.

The layout, from torchao's tensor classes and how it flattens them for safetensors. NAME.weight is the tensors
NAME._weight_qdata, _scale and _zero_point; the metadata in the header of the file has the class and its attributes as
a JSON object. N rows, K columns, block_size [R, C], G = K / C:

Int8Tensor, IntxUnpackedToInt8Tensor  qdata int8 [N, K]; scale [N / R, G]; zero_point int8, of the shape of the scale,
                                      which an Int8Tensor may lack; the bits are those of target_dtype
Int4Tensor                            qdata int8 [N, K / 2]: signed codes, low nibble first; scale and zero_point
                                      [G, N], both floats; R is 1. A weight is scale * code + zero_point.
"""

import torch
from torch import Tensor

from ..formats import WeightFormat, ZeroKind
from ..spec import QuantSpec
from ._bits import offset_codes
from ._fields import Fields
from ._tensors import FLOATS, Tensors
from ._weight import CheckpointWeight

_QDATA = "._weight_qdata"


class TorchAo:
    """The adapter of torchao checkpoints."""

    def names(self, tensors: Tensors) -> list[str]:
        """The modules whose weight is stored in parts."""
        return tensors.with_suffix(_QDATA)

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of a module. Raises ValueError, naming tensor and field, if it is not as documented."""
        described = tensors.metadata(f"{name}.weight")
        reader = _READERS[described.choice("_type", _READERS)]
        if f"{name}._weight_act_pre_scale" in tensors:
            raise ValueError(f"{name}._weight_act_pre_scale: scales of activations before a weight are not read")
        return reader(tensors, name, described.section("_data"))


def _int8(tensors: Tensors, name: str, fields: Fields) -> CheckpointWeight:
    return _bytes(tensors, name, fields, 8)


def _intx(tensors: Tensors, name: str, fields: Fields) -> CheckpointWeight:
    dtype = fields.section("target_dtype").choice("_data", [f"int{bits}" for bits in range(2, 9)])
    return _bytes(tensors, name, fields, int(dtype.removeprefix("int")))


def _bytes(tensors: Tensors, name: str, fields: Fields, bits: int) -> CheckpointWeight:
    values = tensors.get(f"{name}{_QDATA}", (torch.int8,), [None, None])
    n, k = values.shape
    rows, columns = fields.block("block_size")
    scale = tensors.get(f"{name}._weight_scale", FLOATS, [-(-n // rows), -(-k // columns)])
    zero: Tensor | None = None
    if f"{name}._weight_zero_point" in tensors:
        stored = tensors.get(f"{name}._weight_zero_point", (torch.int8,), scale.shape)
        zero = offset_codes(stored, bits) if bool(stored.any()) else None
    spec = QuantSpec(
        WeightFormat[f"int{bits}" if zero is None else f"uint{bits}"],
        group=columns if columns < k else 0,
        block_rows=rows if rows < n else 0,
        scale_dtype=scale.dtype,
        zero=ZeroKind.none if zero is None else ZeroKind.integer,
    )
    return CheckpointWeight(name, spec, offset_codes(values, bits), scale, zero)


def _int4(tensors: Tensors, name: str, fields: Fields) -> CheckpointWeight:
    values = tensors.get(f"{name}{_QDATA}", (torch.int8,), [None, None])
    n, k = values.shape[0], 2 * values.shape[1]
    rows, group = fields.block("block_size")
    if rows != 1:
        raise fields.error("block_size", f"{[rows, group]} is not one row and a group of columns")
    shape = [-(-k // group), n]
    scale = tensors.get(f"{name}._weight_scale", FLOATS, shape).t()
    offset = tensors.get(f"{name}._weight_zero_point", (scale.dtype,), shape).t()
    codes = values.view(torch.uint8) ^ 0x88  # which adds 8 to both
    if not bool(offset.any()):
        spec = QuantSpec(WeightFormat.int4, group=group, scale_dtype=scale.dtype)
        return CheckpointWeight(name, spec, codes, scale, k=k, code_bits=4)
    # Offsets belong to codes without sign, and 8 scales less they need the bits of float32.
    scale, offset = scale.float(), offset.float() - 8 * scale.float()
    spec = QuantSpec(WeightFormat.uint4, group=group, scale_dtype=scale.dtype, zero=ZeroKind.floating)
    return CheckpointWeight(name, spec, codes, scale, offset, k=k, code_bits=4)


_READERS = {"Int4Tensor": _int4, "Int8Tensor": _int8, "IntxUnpackedToInt8Tensor": _intx}
