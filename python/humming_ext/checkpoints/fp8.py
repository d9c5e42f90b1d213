"""FP8: e4m3 weights with a scale per tensor, channel or block; and the MXFP4 experts beside them in DeepSeek-V4.

The layout; N rows, K columns:

NAME.weight            e4m3 [N, K]
NAME.weight_scale_inv  with weight_block_size [R, C]: [ceil(N / R), ceil(K / C)], which multiplies the codes despite its
                       name; DeepSeek-V4 calls it NAME.scale
NAME.weight_scale      without: one element, [N] or [N, 1]

In DeepSeek-V4 the weights of experts are int8 (or uint8) [N, K / 2], two e2m1 codes per byte, low nibble first, with
NAME.scale e8m0 [N, K / 32].
"""

import torch
from torch import Tensor

from ..formats import WeightFormat
from ..spec import QuantSpec
from ._fields import Fields
from ._tensors import FLOATS, Tensors
from ._weight import CheckpointWeight
from .mxfp4 import mxfp4_spec

_CODES = (torch.float8_e4m3fn, torch.int8, torch.uint8)
_E8M0 = torch.float8_e8m0fnu


class Fp8:
    """The adapter of FP8 checkpoints (quant_method "fp8" and "fbgemm_fp8")."""

    def __init__(self, fields: Fields) -> None:
        fields.choice("fmt", ["e4m3", "float8_e4m3fn"], "e4m3")
        self._block = fields.block("weight_block_size") if "weight_block_size" in fields else None

    def names(self, tensors: Tensors) -> list[str]:
        """The modules that have a weight of bytes, or one with a scale."""
        return tensors.modules(_CODES, self._scales)

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of a module. Raises ValueError, naming the tensor, if it is not as documented."""
        found = [part for part in self._scales if f"{name}.{part}" in tensors]
        if len(found) != 1:
            raise ValueError(f"{name}.weight: needs one scale, {' or '.join(self._scales)}, and has {found}")
        scale_name = f"{name}.{found[0]}"
        codes = tensors.get(f"{name}.weight", _CODES, [None, None])
        if codes.dtype != torch.float8_e4m3fn:
            return _mxfp4(tensors, name, scale_name, codes)
        if not self._block:
            return read_fp8(tensors, name)
        n, k = codes.shape
        rows, columns = self._block
        shape = [-(-n // rows), -(-k // columns)]
        scale = tensors.get(scale_name, (*FLOATS, _E8M0), shape)
        spec = QuantSpec(WeightFormat.e4m3, group=columns, block_rows=rows, scale_dtype=scale.dtype)
        return CheckpointWeight(name, spec, codes, scale)

    @property
    def _scales(self) -> list[str]:
        return ["weight_scale_inv", "scale"] if self._block else ["weight_scale"]


def read_fp8(tensors: Tensors, name: str) -> CheckpointWeight:
    """A weight with a scale per tensor or channel. Raises ValueError, naming the tensor, if it is something else."""
    codes = tensors.get(f"{name}.weight", (torch.float8_e4m3fn,), [None, None])
    scale = tensors.get(f"{name}.weight_scale", FLOATS)
    n = len(codes)
    if list(scale.shape) not in ([], [1], [n], [n, 1]):
        raise ValueError(f"{name}.weight_scale: shape {list(scale.shape)} is not [], [1], [{n}] or [{n}, 1]")
    spec = QuantSpec(WeightFormat.e4m3, block_rows=int(scale.numel() != 1), scale_dtype=scale.dtype)
    return CheckpointWeight(name, spec, codes, scale)


def _mxfp4(tensors: Tensors, name: str, scale_name: str, codes: Tensor) -> CheckpointWeight:
    n, k = codes.shape[0], 2 * codes.shape[1]
    scale = tensors.get(scale_name, (_E8M0, torch.uint8), [n, -(-k // 32)])
    return CheckpointWeight(name, mxfp4_spec(), codes.view(torch.uint8), scale, k=k, code_bits=4)
