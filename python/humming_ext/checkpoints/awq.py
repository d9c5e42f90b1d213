"""AWQ: 4-bit integers with zero points, packed along N.

The layout, from AutoAWQ's GEMM version; N rows, K columns, G groups of columns:

qweight  int32 [K, N / 8]: nibble i, from the lowest, of word w is the code of row 8 w + (0, 2, 4, 6, 1, 3, 5, 7)[i]
qzeros   int32 [G, N / 8]: zero points in the same order
scales   [G, N]
"""

import torch
from torch import Tensor

from ..formats import WeightFormat, ZeroKind
from ..spec import QuantSpec
from ._bits import unpack
from ._fields import Fields
from ._tensors import FLOATS, Tensors
from ._weight import CheckpointWeight

_NIBBLE_OF_ROW = [0, 4, 1, 5, 2, 6, 3, 7]


class Awq:
    """The adapter of AWQ checkpoints."""

    def __init__(self, fields: Fields) -> None:
        fields.integer("w_bit" if "w_bit" in fields else "bits", [4])
        fields.choice("version", ["gemm", "GEMM"], "gemm")
        if not fields.flag("zero_point", True):
            raise fields.error("zero_point", "false is not read")
        self._group = fields.group("q_group_size" if "q_group_size" in fields else "group_size")

    def names(self, tensors: Tensors) -> list[str]:
        """The modules that have a qweight."""
        return tensors.with_suffix(".qweight")

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of a module. Raises ValueError, naming tensor and field, if it is not as documented."""
        words = tensors.get(f"{name}.qweight", (torch.int32,), [None, None])
        k, n = words.shape[0], 8 * words.shape[1]
        groups = -(-k // (self._group or k))
        scale = tensors.get(f"{name}.scales", FLOATS, [groups, n]).t()
        zero = _rows_in_order(tensors.get(f"{name}.qzeros", (torch.int32,), [groups, n // 8]))
        spec = QuantSpec(WeightFormat.uint4, group=self._group, scale_dtype=scale.dtype, zero=ZeroKind.integer)
        return CheckpointWeight(name, spec, _rows_in_order(words), scale, zero)


def _rows_in_order(words: Tensor) -> Tensor:
    """uint8 [N, rows of words] of int32 [..., N / 8]."""
    nibbles = unpack(words, 4, 8 * words.shape[1])
    return nibbles.view(len(words), -1, 8)[..., _NIBBLE_OF_ROW].reshape(len(words), -1).t()
