"""HQQ: integers of 1 to 8 bits with a zero point between them, in groups along K.

The layout, from the library's Quantizer and BitPack; N rows, K columns, R = N * K / group_size rows of a group each:

NAME.W_q                    uint8, for 3 bits int32 [ceil(R / c), group_size]: c codes per element, row r in element
                            r mod ceil(R / c); the first in the highest bits of 8, for 3 bits of 30
NAME.scale, zero            [R, 1]: a weight is scale * (code - zero)
NAME.shape                  [2]: N, K
NAME.nbits, group_size, axis  integers
NAME.packing                the name of the packing, a byte per letter

With axis 0 the columns of a group are those of different rows, which no packed weight can hold.
"""

import torch
from torch import Tensor

from ..formats import WeightFormat, ZeroKind
from ..spec import QuantSpec
from ._tensors import FLOATS, Tensors
from ._weight import CheckpointWeight

#: Codes per element, and the bits that each takes, by packing.
_PACKINGS = {"8bit_u8": (1, 8), "4bit_u8": (2, 4), "3bit_32": (10, 3), "2bit_u8": (4, 2), "1bit_u8": (8, 1)}
_LETTERS = 7  # of each of these names


class Hqq:
    """The adapter of HQQ checkpoints."""

    def names(self, tensors: Tensors) -> list[str]:
        """The modules that have a W_q."""
        return tensors.with_suffix(".W_q")

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of a module. Raises ValueError, naming the tensor, if it is not as documented."""
        if _integer(tensors, f"{name}.axis") != 1:
            raise ValueError(f"{name}.axis: only 1 is read, groups along K; quantise the model with axis=1")
        group, bits = _integer(tensors, f"{name}.group_size"), _integer(tensors, f"{name}.nbits")
        n, k = tensors.get(f"{name}.shape", (torch.int64, torch.int32), [2]).tolist()
        if n < 1 or k < 1 or group < 1 or k % group:
            raise ValueError(f"{name}.shape: {[n, k]} is not in groups of group_size = {group} columns")
        packing = bytes(tensors.get(f"{name}.packing", (torch.uint8,), [_LETTERS]).tolist()).decode("latin-1")
        if packing not in _PACKINGS or not 0 < bits <= _PACKINGS[packing][1]:
            raise ValueError(f"{name}.packing: {packing!r} is not read for nbits = {bits}")
        count, width = _PACKINGS[packing]
        rows = n * (k // group)
        dtype = torch.int32 if width == 3 else torch.uint8
        stored = tensors.get(f"{name}.W_q", (dtype,), [-(-rows // count), group])
        scale = tensors.get(f"{name}.scale", FLOATS, [rows, 1])
        zero = tensors.get(f"{name}.zero", (scale.dtype,), [rows, 1])
        # Products of 16-bit floats are exact in float32.
        offset = -scale.float() * zero.float()
        spec = QuantSpec(WeightFormat[f"uint{bits}"], group=group, scale_dtype=offset.dtype, zero=ZeroKind.floating)
        codes = _unpack(stored, count, width)[:rows].view(n, k)
        return CheckpointWeight(name, spec, codes, scale.float(), offset)


def _integer(tensors: Tensors, name: str) -> int:
    return int(tensors.get(name, (torch.int32, torch.int64), []))


def _unpack(stored: Tensor, count: int, width: int) -> Tensor:
    """uint8 codes [count * rows, columns] of elements [rows, columns]."""
    shifts = range(width * (count - 1), -1, -width)
    return torch.cat([(stored >> shift & (1 << width) - 1).to(torch.uint8) for shift in shifts])
