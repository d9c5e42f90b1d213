"""GGUF files: tensors of 4 to 6 and of 8 bits as they are, everything else dequantised.

From the descriptions of GGUF and its block types in the ggml project: a row is cut into blocks of 32 weights, each with

d   fp16, the scale
m   fp16, the minimum (Q4_1, Q5_1)
qh  4 bytes, bit j of which is bit 4 of code j (Q5_0, Q5_1)
qs  16 bytes: the low nibbles are the low bits of codes 0 to 15, the high nibbles those of codes 16 to 31; or, in Q8_0,
    32 bytes: signed codes

A weight is d * q + m; d * (q - 8) in Q4_0; d * (q - 16) in Q5_0; d * q in Q8_0. Q4_K, Q5_K and Q6_K have super-blocks,
which `_gguf_k` describes.
"""

from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..formats import WeightFormat, ZeroKind
from ..spec import QuantSpec
from ._bits import offset_codes
from ._gguf_header import Entry, read_header
from ._gguf_k import SUPER_BLOCK, decode_super_blocks
from ._weight import CheckpointWeight

BLOCK = 32  #: weights of a block

#: Of every type that is read as it is: the code format, the weights per scale, and the dtype that holds its scales.
_TYPES = {
    "Q4_0": (WeightFormat.int4, BLOCK, torch.float16),
    "Q4_1": (WeightFormat.uint4, BLOCK, torch.float16),
    "Q5_0": (WeightFormat.int5, BLOCK, torch.float16),
    "Q5_1": (WeightFormat.uint5, BLOCK, torch.float16),
    "Q8_0": (WeightFormat.int8, BLOCK, torch.float16),
    "Q4_K": (WeightFormat.uint4, 32, torch.float32),
    "Q5_K": (WeightFormat.uint5, 32, torch.float32),
    "Q6_K": (WeightFormat.int6, 16, torch.float32),
}


def block_spec(type_name: str, *, gate_up: bool = False) -> QuantSpec:
    """The quantisation of every weight of a type, such as "Q4_1". Where it has minima, operands are bf16 and fp16."""
    code_format, group, scale_dtype = _TYPES[type_name]
    zero = ZeroKind.floating if code_format.kind == "uint" else ZeroKind.none
    return QuantSpec(code_format, group=group, scale_dtype=scale_dtype, zero=zero, gate_up=gate_up)


class GgufFile:
    """A GGUF file, memory-mapped: its tensors are read when asked for.

    names: the weights [n, k] and [experts, n, k] that are read as they are.

    Raises ImportError without the PyPI package `gguf`, ValueError, naming the file, if it is no GGUF file.
    """

    names: list[str]

    def __init__(self, path: str | PathLike[str]) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            self._path = Path(path)
            data = np.memmap(path, np.uint8, mode="r")
            self._entries = read_header(data, {kind.value: size for kind, size in GGML_QUANT_SIZES.items()})
        except (OSError, ValueError) as error:
            raise ValueError(f"{Path(path)}: no readable GGUF file: {error}") from error
        self._types = {name: GGMLQuantizationType(entry.type) for name, entry in self._entries.items()}
        self.names = sorted(
            name for name, entry in self._entries.items() if self._types[name].name in _TYPES and len(entry.shape) > 1
        )

    def types(self) -> dict[str, str]:
        """The storage type of every tensor by name, such as "Q4_1" or "F32"."""
        return {name: kind.name for name, kind in self._types.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor of any type that `gguf` dequantises, as float32 in its logical shape. Raises ValueError."""
        from gguf.quants import dequantize

        entry = self._entry(name)
        try:
            values = dequantize(self._bytes(entry), self._types[name])
        except NotImplementedError as error:
            raise ValueError(f"{name}: type {self._types[name].name} is not dequantised: {error}") from error
        return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(entry.shape)

    def read(self, name: str) -> CheckpointWeight:
        """A weight of `names` with its own codes. Raises ValueError if there is none, or if it has another type."""
        entry, type_name = self._entry(name), self._types[name].name
        if name not in self.names:
            raise ValueError(f"{name}: type {type_name} {entry.shape} is not read as it is; tensor() dequantises it")
        spec, super_blocks = block_spec(type_name), type_name.endswith("_K")
        num_blocks = entry.shape[-1] // (SUPER_BLOCK if super_blocks else BLOCK)
        blocks = torch.from_numpy(self._bytes(entry)).unflatten(-1, (num_blocks, -1))
        codes, scale, offset = decode_super_blocks(type_name, blocks) if super_blocks else _decode(blocks, spec)
        return CheckpointWeight(name, spec, codes, scale, offset)

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise ValueError(f"{name}: no such tensor in the file")
        return self._entries[name]

    def _bytes(self, entry: Entry) -> np.ndarray:
        """uint8 [..., bytes of a row], in the file."""
        # A mapping for each tensor ends with it; one for all would keep every page that was ever read.
        data = np.memmap(self._path, np.uint8, mode="c", offset=entry.begin, shape=(entry.end - entry.begin,))
        return data.reshape(*entry.shape[:-1], -1)


def _decode(blocks: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor, Tensor | None]:
    """(codes uint8 [..., k], scales fp16 [..., blocks], minima of that shape or None) of blocks of 32."""
    halves = 1 + int(spec.zero != ZeroKind.none)
    scales = blocks[..., : 2 * halves].contiguous().view(torch.float16)
    offset = scales[..., 1].contiguous() if halves == 2 else None
    return _codes(blocks[..., 2 * halves :], spec.format.bits).flatten(-2), scales[..., 0].contiguous(), offset


def _codes(stored: Tensor, bits: int) -> Tensor:
    """uint8 [..., BLOCK] of what lies behind the scales of blocks."""
    if bits == 8:
        return offset_codes(stored.view(torch.int8), 8)
    nibbles = stored[..., -BLOCK // 2 :]
    codes = torch.cat([nibbles & 15, nibbles >> 4], -1)
    if bits == 5:
        flags = stored[..., : BLOCK // 8, None] >> torch.arange(8, dtype=torch.uint8) & 1
        codes |= flags.flatten(-2) << 4
    return codes
