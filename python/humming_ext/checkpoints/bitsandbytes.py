"""bitsandbytes: int8 with a scale per channel ("LLM.int8()"), and nf4.

The layout of int8, from the library's Linear8bitLt; N rows, K columns:

NAME.weight         int8 [N, K]
NAME.SCB            fp32 [N]: the largest magnitude of a row, which code 127 stands for
NAME.weight_format  uint8 [], 0: the weight is stored in rows; may be missing

The layout of nf4, from its Linear4bit and QuantState. Blocks are consecutive weights of all rows, one after the other:

NAME.weight                  [ceil(N * K / 2), 1] bytes of two codes, the first in the high half; of a wider dtype fewer
NAME.weight.quant_map        fp32 [16]: the values of the codes
NAME.weight.absmax           fp32 [blocks]: the scales; or, quantised in their turn, uint8
NAME.weight.nested_absmax    fp32 [nested blocks]  } of quantised scales, which are
NAME.weight.nested_quant_map fp32 [256]            } quant_map[absmax] * nested_absmax + nested_offset in fp32
NAME.weight.quant_state.bitsandbytes__nf4  uint8, a JSON text: shape [N, K], blocksize, nested_blocksize, nested_offset

4-bit codes of the other kind, fp4, have a table of values that is none of the formats here.
"""

from math import gcd

import torch
from torch import Tensor

from ..formats import WeightFormat
from ..spec import QuantSpec
from ._bits import offset_codes
from ._fields import Fields, parse_json
from ._tensors import Tensors
from ._weight import CheckpointWeight

_STATE = ".quant_state.bitsandbytes__nf4"
_MAX_STATE = 4096  # bytes of the JSON text; the library's have some 200


class BitsAndBytes:
    """The adapter of bitsandbytes checkpoints. Raises ValueError for those of fp4."""

    def __init__(self, fields: Fields) -> None:
        self._nf4 = fields.flag("load_in_4bit", False)
        if self._nf4:
            fields.choice("bnb_4bit_quant_type", ["nf4"], "fp4")

    def names(self, tensors: Tensors) -> list[str]:
        """The modules with a QuantState; of 8 bits those that have a weight of int8, or one with an SCB."""
        return tensors.with_suffix(f".weight{_STATE}") if self._nf4 else tensors.modules((torch.int8,), ["SCB"])

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of a module. Raises ValueError, naming the tensor, if it is not as documented."""
        return _read_nf4(tensors, name) if self._nf4 else _read_int8(tensors, name)


def _read_int8(tensors: Tensors, name: str) -> CheckpointWeight:
    values = tensors.get(f"{name}.weight", (torch.int8,), [None, None])
    largest = tensors.get(f"{name}.SCB", (torch.float32,), [len(values)])
    order = f"{name}.weight_format"
    if order in tensors and int(tensors.get(order, (torch.uint8,), [])) != 0:
        raise ValueError(f"{order}: only 0 is read, a weight in rows; save the model with a newer bitsandbytes")
    spec = QuantSpec(WeightFormat.int8, scale_dtype=largest.dtype)
    return CheckpointWeight(name, spec, offset_codes(values, 8), largest / 127)


def _read_nf4(tensors: Tensors, name: str) -> CheckpointWeight:
    weight = f"{name}.weight"
    text = bytes(tensors.get(f"{weight}{_STATE}", (torch.uint8,), [None])[:_MAX_STATE].tolist())
    state = parse_json(text.decode(errors="replace"), f"{weight}{_STATE}: ")
    n, k = state.block("shape")
    block = state.integer("blocksize", [1 << exponent for exponent in range(5, 13)])
    table = tensors.get(f"{weight}.quant_map", (torch.float32,), [len(WeightFormat.nf4.values)])
    if table.tolist() != list(WeightFormat.nf4.values):
        raise ValueError(f"{weight}.quant_map: {table.tolist()} are not the values of nf4")

    packed = tensors.get(weight, shape=[None, 1]).view(torch.uint8).view(-1)
    if len(packed) != -(-n * k // 2):
        raise ValueError(f"{weight}: {len(packed)} bytes are not two codes each of the shape [{n}, {k}]")
    codes = torch.stack([packed >> 4, packed & 0xF], 1).view(-1)[: n * k].view(n, k)

    # A row may begin within a block: scales per as many columns as divide both.
    group = gcd(block, k)
    of_group = torch.arange(n * k // group) * group // block
    scale = _absmax(tensors, weight, state, -(-n * k // block))[of_group].view(n, k // group)
    return CheckpointWeight(name, QuantSpec(WeightFormat.nf4, group=group, scale_dtype=scale.dtype), codes, scale)


def _absmax(tensors: Tensors, weight: str, state: Fields, blocks: int) -> Tensor:
    """The scales of all blocks, float32 [blocks]."""
    absmax = tensors.get(f"{weight}.absmax", (torch.float32, torch.uint8), [blocks])
    if absmax.dtype == torch.float32:
        return absmax
    nested = state.integer("nested_blocksize", range(1, 1 << 31))
    factors = tensors.get(f"{weight}.nested_absmax", (torch.float32,), [-(-blocks // nested)])
    table = tensors.get(f"{weight}.nested_quant_map", (torch.float32,), [256])
    return table[absmax.int()] * factors[torch.arange(blocks) // nested] + state.number("nested_offset")
