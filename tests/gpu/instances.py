"""The kernel instances of the build, as parameters of tests."""

import re
from dataclasses import replace
from functools import cache

import humming_ext
import pytest
import torch
from humming_ext._explain import instance_plans
from products import NATIVE, case_of
from support import TORCH

MAX_STAGES = 16
REFUSES_SCALARS = "aligned 16-bit rows only"  # Hopper's tiles of many tokens


def extent(instance: str, column: str) -> int:
    """The value of a column of the manifest, from the instance's name; 1 if the family has no such column."""
    found = re.search(rf"_{column}(\d+)", instance)
    return int(found[1]) if found else 1


def takes_scalars(instance: str) -> bool:
    """Whether it stores rows that are not aligned, or fp32."""
    return "gemm_sm80_" in instance or extent(instance, "tokens") <= 64


def stage_columns(instance: str) -> int:
    """Columns of K that one stage of the pipelines of a cluster holds."""
    return 128 * max(extent(instance, "mma_patches"), 1) * extent(instance, "k_tiles") * extent(instance, "cluster_k")


def built(family: str) -> set[str]:
    """The names of the instances for this GPU that begin so."""
    major = torch.cuda.get_device_capability()[0]
    entries = humming_ext.build_info()["instances"]
    return {entry["name"] for entry in entries if entry["name"].startswith(family) and entry["arch"] // 10 == major}


@cache
def plans(pair: tuple, experts: int = 0) -> dict[str, str | None]:
    """Every instance of gemm, or with experts of moe_gemm, and why it cannot take a pair, if so."""
    case = replace(case_of(pair, 256, 512), experts=experts)
    found = instance_plans(case.desc, TORCH[NATIVE[pair[1]]], 1, cuda=True)
    # Of an instance that is compiled for several archs, what the one that runs here says.
    return {plan.name: plan.rejection for plan in sorted(found, key=lambda plan: plan.rejection is None)}


def runnable(pairs: list[tuple], experts: int = 0) -> list:
    """A parameter for every pair and every instance that takes it."""
    return [
        pytest.param(pair, name, id=f"{'-'.join(map(str, pair))}-{name}")
        for pair in pairs
        for name, rejection in plans(pair, experts).items()
        if rejection is None
    ]
