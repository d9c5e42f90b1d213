"""MXFP4 as gpt-oss has it: experts in one tensor per layer, e2m1 codes with an e8m0 scale per 32 columns.

The layout, from the published models and the transformers library; E experts, N rows, K columns:

NAME_blocks  uint8 [E, N, K / 32, 16]: two codes per byte, low nibble first
NAME_scales  uint8 [E, N, K / 32]: the e8m0 exponent
NAME_bias    [E, N], as stored

NAME ends in gate_up_proj, whose rows are gate 0, up 0, gate 1, ..., or in down_proj.
"""

import torch

from ..formats import WeightFormat
from ..spec import QuantSpec
from ._tensors import Tensors
from ._weight import CheckpointWeight


class Mxfp4:
    """The adapter of gpt-oss checkpoints."""

    def names(self, tensors: Tensors) -> list[str]:
        """The modules that have blocks."""
        return tensors.with_suffix("_blocks")

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weights of a layer's experts. Raises ValueError, naming the tensor, if it is not as documented."""
        blocks = tensors.get(f"{name}_blocks", (torch.uint8,), [None, None, None, 16])
        scale = tensors.get(f"{name}_scales", (torch.uint8,), blocks.shape[:3])
        projection = name.rpartition(".")[2]
        if projection not in ("gate_up_proj", "down_proj"):
            raise ValueError(
                f"{name}_blocks: {projection} is neither gate_up_proj nor down_proj, so rows have no order"
            )
        gate_up = projection == "gate_up_proj"
        spec = mxfp4_spec(gate_up=gate_up)
        k = 32 * blocks.shape[2]
        return CheckpointWeight(name, spec, blocks.flatten(2), scale, k=k, code_bits=4, interleaved=gate_up)


def mxfp4_spec(*, gate_up: bool = False) -> QuantSpec:
    """The quantisation of every MXFP4 weight."""
    return QuantSpec(WeightFormat.e2m1, group=32, scale_dtype=torch.float8_e8m0fnu, gate_up=gate_up)
