"""What will run for a weight: in words, and as a list of kernel instances."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .packed_weight import PackedWeight


def explain(
    weight: PackedWeight | Sequence[int], dtype: torch.dtype, tokens: int = 1, *, cuda: bool | None = None
) -> str:
    """The plan for `tokens` activations of `dtype` on a packed weight, or on a descriptor from `QuantSpec.desc`.

    The first line names the operand type that multiplies, whether tokens are widened to it, how sums are accumulated,
    and what runs: the instruction set on the CPU, the kernel instance (or that there is none) on a GPU. On a GPU more
    lines follow: why this instance, the estimates of the others that can run the product, and why the rest cannot.
    `cuda` chooses which; by default it is the device of the weight, and the CPU for a descriptor. Without a GPU plans
    are made for an H200.

    Raises RuntimeError if the weight cannot take activations of `dtype`, or if `tokens` is not positive.
    """
    on_cuda = isinstance(weight, PackedWeight) and weight.device.type == "cuda"
    return torch.ops.humming.plan(_desc_of(weight), dtype, tokens, on_cuda if cuda is None else cuda)


@dataclass(frozen=True)
class InstancePlan:
    """What selection thinks of one kernel instance for one product."""

    name: str
    rejection: str | None  # why it cannot run the product
    estimate: float | None  # in SM cycles, only good for comparing two instances; None if it cannot run
    chosen: bool
    tuned: bool  # chosen because of a tuned row


def instance_plans(
    weight: PackedWeight | Sequence[int], dtype: torch.dtype, tokens: int, *, cuda: bool | None = None
) -> list[InstancePlan]:
    """All instances of `gemm` in this build, for `tokens` aligned rows of `dtype` and a bf16 result; for a weight with
    experts those of `moe_gemm`, for as many rows together.

    The plan is that of the first GPU, or of an H200 where there is none, wherever the weight is; with `cuda=False` it
    is that of the CPU, which has no instances.

    Raises RuntimeError if the weight cannot take activations of `dtype`, or if `tokens` is not positive.
    """
    rows = json.loads(torch.ops.humming.gemm_plan(_desc_of(weight), dtype, tokens))
    return [InstancePlan(**row) for row in rows] if cuda is not False else []


def _desc_of(weight: PackedWeight | Sequence[int]) -> list[int]:
    return weight.desc if isinstance(weight, PackedWeight) else list(weight)
