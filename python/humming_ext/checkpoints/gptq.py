"""GPTQ: integers of 2 to 8 bits with zero points, packed along K; with or without activation order.

The layout, from AutoGPTQ and GPTQModel; N rows, K columns, G groups of columns:

qweight  int32 [K * bits / 32, N]: codes as a bit stream along K
scales   [G, N]
qzeros   int32 [G, N * bits / 32]: zero points as a bit stream along N, less 1 in checkpoint_format "gptq" (version 1)
         and as they are in "gptq_v2"
g_idx    int32 [K]: the group of each column

In checkpoint_format "gptq_p" codes and zero points are in planes instead (`unpack_planes`), and zero points are as they
are. GPTQModel has codes of 5, 6 and 7 bits in no other format.

Version 1 stores the zero point 0 as -1, which its writers and readers take differently: as 2^bits, or as 0 with or
without a borrow from the next one. A file with such zero points is refused.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..formats import WeightFormat, ZeroKind
from ..spec import QuantSpec
from ._bits import num_words, sort_columns, unpack, unpack_planes
from ._fields import Fields
from ._tensors import FLOATS, Tensors
from ._weight import CheckpointWeight


class Gptq:
    """The adapter of GPTQ checkpoints."""

    def __init__(self, fields: Fields, first_version: bool | None = None) -> None:
        """first_version: whether zero points are less 1, in streams of any width; None: `fields` have the format."""
        self._fields = fields
        self._group = fields.group("group_size")
        self._symmetric = fields.flag("sym", False)
        self._planes = False
        legal_bits: Iterable[int] = range(2, 9)
        if first_version is None:
            key = "checkpoint_format" if "checkpoint_format" in fields else "format"
            layout = fields.choice(key, ["gptq", "gptq_v2", "gptq_p"], "gptq")
            first_version, self._planes = layout == "gptq", layout == "gptq_p"
            legal_bits = legal_bits if self._planes else [2, 3, 4, 8]
        self._first_version = first_version
        self._bits = fields.integer("bits", legal_bits)

    def names(self, tensors: Tensors) -> list[str]:
        """The modules that have a qweight."""
        return tensors.with_suffix(".qweight")

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of a module. Raises ValueError, naming tensor and field, if it is not as documented."""
        words = tensors.get(f"{name}.qweight", (torch.int32,), [None, None])
        n, k = words.shape[1], words.shape[0] * 32 // self._bits
        if num_words(k, self._bits) != words.shape[0]:
            raise ValueError(f"{name}.qweight: shape {list(words.shape)} contradicts bits = {self._bits}")
        groups = -(-k // (self._group or k))
        scale = tensors.get(f"{name}.scales", FLOATS, [groups, n]).t()
        columns = None
        if f"{name}.g_idx" in tensors:
            g_idx = tensors.get(f"{name}.g_idx", (torch.int32, torch.int64), [k])
            columns = sort_columns(f"{name}.g_idx", g_idx, self._group or k)
        elif self._fields.flag("desc_act", False):
            raise ValueError(f"{name}.g_idx: no such tensor in the checkpoint, which contradicts desc_act = true")
        zero = self._zero_points(tensors, f"{name}.qzeros", groups, n)
        codes = self._unpack(f"{name}.qweight", words.t(), k)
        spec = QuantSpec(
            WeightFormat[f"{'' if zero is None else 'u'}int{self._bits}"],
            group=self._group,
            scale_dtype=scale.dtype,
            zero=ZeroKind.none if zero is None else ZeroKind.integer,
        )
        return CheckpointWeight(
            name, spec, codes if columns is None else codes[:, columns], scale, zero, columns=columns
        )

    def _unpack(self, name: str, words: Tensor, count: int) -> Tensor:
        """uint8 [..., count] of int32 [..., words]."""
        if not self._planes:
            return unpack(words, self._bits, count)
        if count % 32:
            raise ValueError(f"{name}: {count} codes are no multiple of the 32 that planes hold")
        return unpack_planes(words, self._bits)

    def _zero_points(self, tensors: Tensors, name: str, groups: int, n: int) -> Tensor | None:
        """uint8 [N, G], or None if all are the middle of the codes."""
        words = tensors.get(name, (torch.int32,), [groups, num_words(n, self._bits)])
        zero, middle = self._unpack(name, words, n), 1 << self._bits - 1
        if self._first_version:
            largest = 2 * middle - 1
            if bool((zero == largest).any()):
                raise ValueError(
                    f"{name}: holds {largest} of checkpoint_format 'gptq', which stands for 0 or for {largest + 1}; "
                    "convert the checkpoint to 'gptq_v2'"
                )
            zero = zero + 1
        if bool((zero == middle).all()):
            return None
        if self._symmetric:
            raise ValueError(
                f"{name}: zero points {zero.min()} to {zero.max()} contradict sym = true, which has {middle}; "
                "check checkpoint_format"
            )
        return zero.t()
