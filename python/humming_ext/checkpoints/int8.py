"""INT8 weights for int8 activations ("w8a8_int8").

The layout; N rows, K columns:

NAME.weight        int8 [N, K]
NAME.weight_scale  [N, 1]

Activations are quantised per token when the model runs: pack for `spec.for_activation(torch.int8)`.
"""

import torch

from ..formats import WeightFormat
from ..spec import QuantSpec
from ._bits import offset_codes
from ._tensors import FLOATS, Tensors
from ._weight import CheckpointWeight


class Int8:
    """The adapter of such checkpoints."""

    def names(self, tensors: Tensors) -> list[str]:
        """The modules that have a weight of int8, or one with a scale."""
        return tensors.modules((torch.int8,), ["weight_scale"])

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of a module. Raises ValueError, naming the tensor, if it is not as documented."""
        weight = tensors.get(f"{name}.weight", (torch.int8,), [None, None])
        scale = tensors.get(f"{name}.weight_scale", FLOATS, [len(weight), 1])
        spec = QuantSpec(WeightFormat.int8, scale_dtype=scale.dtype)
        return CheckpointWeight(name, spec, offset_codes(weight, 8), scale)
