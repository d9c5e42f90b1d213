"""The weight descriptor: the ten integers that every op checks before it reads a packed weight."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch


class WeightDesc(NamedTuple):
    """The descriptor's fields, in the order of the ops' `desc` argument. `n` and `k` are logical sizes."""

    layout_version: int
    format: int
    operand: int
    n: int
    k: int
    experts: int  # 0: dense
    scale_type: int
    group: int
    zero: int
    gate_up: int

    @classmethod
    def of(cls, desc: Sequence[int]) -> "WeightDesc":
        """Names the integers of `desc`. Raises ValueError unless there are ten; the ops check their values."""
        if len(desc) != len(cls._fields):
            raise ValueError(f"desc: expected {len(cls._fields)} integers, got {len(desc)}; take PackedWeight.desc")
        return cls(*desc)


def packed_shape(desc: Sequence[int]) -> list[int]:
    """The shape of the packed uint8 tensor of `desc`. Raises RuntimeError naming the field that is not legal."""
    return torch.ops.humming.packed_shape(list(desc))


@cache
def build_info() -> dict[str, Any]:
    """What was built: version, layout_version, preset, cuda_archs, cpu_isa, instances, cudart, torch_has_cuda."""
    return json.loads(torch.ops.humming.build_info())
