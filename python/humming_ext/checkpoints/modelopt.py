"""Model Optimizer ("modelopt"): NVFP4, MXFP8 and FP8 weights, one format for all modules or one each.

The layouts, as its documentation and its tensor classes have them; N rows, K columns:

NVFP4  NAME.weight uint8 [N, K / 2], low nibble first; NAME.weight_scale e4m3 [N, K / 16];
       NAME.weight_scale_2 fp32, one element, by which the scales are multiplied.
MXFP8  NAME.weight e4m3 [N, K]; NAME.weight_scale uint8 [N, K / 32], the e8m0 exponent.
FP8    NAME.weight e4m3 [N, K]; NAME.weight_scale, one element, [N] or [N, 1].

The format is quant_algo; where that is MIXED_PRECISION, quantized_layers has the quant_algo of each module.
"""

import torch

from ..formats import WeightFormat
from ..spec import QuantSpec
from ._fields import Fields
from ._tensors import Tensors
from ._weight import CheckpointWeight
from .fp8 import read_fp8


class Modelopt:
    """The adapter of modelopt checkpoints."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        mixed = fields.choice("quant_algo", [*_READERS, "MIXED_PRECISION"]) == "MIXED_PRECISION"
        self._layers = fields.section("quantized_layers") if mixed else None

    def names(self, tensors: Tensors) -> list[str]:
        """The modules that have a weight of bytes, or one with a scale."""
        return tensors.modules((torch.uint8, torch.float8_e4m3fn), ["weight_scale"])

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of a module. Raises ValueError, naming tensor and field, if it is not as documented."""
        if f"{name}.pre_quant_scale" in tensors:
            raise ValueError(f"{name}.pre_quant_scale: scales of activations before a weight are not read")
        fields = self._fields if self._layers is None else self._layers.section(name)
        return _READERS[fields.choice("quant_algo", _READERS)](tensors, name)


def _nvfp4(tensors: Tensors, name: str) -> CheckpointWeight:
    codes = tensors.get(f"{name}.weight", (torch.uint8,), [None, None])
    n, k = codes.shape[0], 2 * codes.shape[1]
    scale = tensors.get(f"{name}.weight_scale", (torch.float8_e4m3fn,), [n, -(-k // 16)])
    factor = tensors.get(f"{name}.weight_scale_2", (torch.float32,))
    if factor.numel() != 1:
        raise ValueError(f"{name}.weight_scale_2: shape {list(factor.shape)} is not one element")
    spec = QuantSpec(WeightFormat.e2m1, group=16, scale_dtype=scale.dtype)
    return CheckpointWeight(name, spec, codes, scale, scale2=factor.reshape(1), k=k, code_bits=4)


def _mxfp8(tensors: Tensors, name: str) -> CheckpointWeight:
    codes = tensors.get(f"{name}.weight", (torch.float8_e4m3fn,), [None, None])
    n, k = codes.shape
    scale = tensors.get(f"{name}.weight_scale", (torch.uint8,), [n, -(-k // 32)])
    spec = QuantSpec(WeightFormat.e4m3, group=32, scale_dtype=torch.float8_e8m0fnu)
    return CheckpointWeight(name, spec, codes, scale)


_READERS = {
    "FP8": read_fp8,
    "FP8_PER_CHANNEL_PER_TOKEN": read_fp8,
    "MXFP8": _mxfp8,
    "NVFP4": _nvfp4,
    "W4A16_NVFP4": _nvfp4,
}
