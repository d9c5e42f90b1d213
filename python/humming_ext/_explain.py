"""What will run for a weight, in words."""

from collections.abc import Sequence

import torch

from .packed_weight import PackedWeight


def explain(
    weight: PackedWeight | Sequence[int], dtype: torch.dtype, tokens: int = 1, *, cuda: bool | None = None
) -> str:
    """The plan for `tokens` activations of `dtype` on a packed weight, or on a descriptor from `QuantSpec.desc`.

    Names the operand type that multiplies, whether tokens are widened to it, how sums are accumulated, and what runs:
    the instruction set on the CPU, the kernel instance (or that there is none) on a GPU. `cuda` chooses which; by
    default it is the device of the weight, and the CPU for a descriptor.

    Raises RuntimeError if the weight cannot take activations of `dtype`.
    """
    if isinstance(weight, PackedWeight):
        desc, on_cuda = weight.desc, weight.device.type == "cuda"
    else:
        desc, on_cuda = list(weight), False
    return torch.ops.humming.plan(desc, dtype, tokens, on_cuda if cuda is None else cuda)
