"""GGUF files: Q4_1 tensors as they are, everything else dequantised.

The format, from the descriptions of GGUF and its block types in the ggml project: a Q4_1 row is cut into blocks of 32
weights, each of 20 bytes: the scale d and the minimum m as fp16, then 16 bytes of codes q. The low nibbles of the bytes
are the codes of weights 0 to 15, the high nibbles those of weights 16 to 31. The weight is d * q + m.
"""

from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..formats import Operand, WeightFormat, ZeroKind
from ..spec import QuantSpec

BLOCK = 32  #: weights of a Q4_1 block
_BLOCK_BYTES = 20


class Q4_1(NamedTuple):  # noqa: N801 - the format's name
    """A Q4_1 weight [n, k] as `PackedWeight.pack(*weight, spec=...)` takes it. Nothing is requantised."""

    codes: Tensor  #: uint8 [n, k], one code per byte
    scale: Tensor  #: float16 [n, k / 32]
    offset: Tensor  #: float16 [n, k / 32]

    @staticmethod
    def spec(operand: Operand = Operand.bf16, *, gate_up: bool = False) -> QuantSpec:
        """The quantisation of every Q4_1 weight. Float offsets leave bf16 and fp16 as operands."""
        return QuantSpec(
            WeightFormat.uint4,
            group=BLOCK,
            scale_dtype=torch.float16,
            zero=ZeroKind.floating,
            operand=operand,
            gate_up=gate_up,
        )


class GgufFile:
    """The tensors of a GGUF file, read when asked for."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Opens the file. Raises ImportError without the PyPI package `gguf`, ValueError if it is no GGUF file."""
        from gguf import GGUFReader

        self._tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}

    def types(self) -> dict[str, str]:
        """The storage type of every tensor by name, such as "Q4_1" or "F32"."""
        return {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor of any type that `gguf` dequantises, as float32 in its logical shape. Raises KeyError."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))

    def q4_1(self, name: str) -> Q4_1:
        """A Q4_1 weight [n, k]. Raises KeyError if there is none of that name, ValueError if it has another type."""
        tensor = self._tensors[name]
        if tensor.tensor_type.name != "Q4_1":
            raise ValueError(f"{name}: type {tensor.tensor_type.name} is not Q4_1; read it with tensor()")
        blocks = np.ascontiguousarray(tensor.data).reshape(tensor.data.shape[0], -1, _BLOCK_BYTES)
        scale, offset = (np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0] for at in (0, 2))
        nibbles = blocks[..., 4:]
        codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).reshape(len(blocks), -1)
        return Q4_1(torch.from_numpy(codes), torch.from_numpy(scale.copy()), torch.from_numpy(offset.copy()))


def rope_rows(rows: int, heads: int) -> Tensor:
    """The rows of a GGUF llama query or key weight in the order that transformers wants: int64 [rows].

    GGUF stores the two halves of a head's rotary dimensions alternately, transformers one after the other.
    """
    return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)
