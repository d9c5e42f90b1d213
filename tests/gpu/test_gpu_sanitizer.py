"""What `make sanitize` runs under compute-sanitizer: small shapes that reach every path of the kernels' memory use.

Tensors have no guards around them, so that memcheck sees the first byte beyond.
"""

import re

import pytest
import torch
from products import PAIRS, case_of, make_problem
from support import assert_as_accurate
from test_gpu_gemm import MAX_STAGES, extent, runnable, stage_columns
from test_gpu_torch import CALLS

pytestmark = pytest.mark.sanitizer


def one_of_each() -> list:
    """Pairs and instances: every tile once for 16-bit and once for 8-bit x, and every way to read scales and zeros."""
    seen: set[tuple] = set()
    chosen = []
    for parameter in runnable(PAIRS):
        pair, instance = parameter.values
        scales, tile = re.fullmatch(r".*_([a-z]+_\w+_group\d+)_(.*)", instance).groups()
        paths = {(pair[1] in ("bf16", "fp16"), tile), (pair[4], scales)}
        if not paths <= seen:
            seen |= paths
            chosen.append(parameter)
    return chosen


@pytest.mark.parametrize(("pair", "instance"), one_of_each())
def test_product(pair: tuple, instance: str) -> None:
    """Two tiles each way, the last nearly empty; more stages than a ring has, then a half tail with masked columns."""
    n = 64 * extent(instance, "row_groups") + 8
    k = MAX_STAGES * stage_columns(instance) + 48
    problem = make_problem(case_of(pair, n, k), extent(instance, "tokens") + 1, "cuda")
    out = torch.full(problem.exact.shape, float("nan"), dtype=torch.bfloat16, device="cuda")
    workspace = out.new_empty(0, dtype=torch.uint8)
    torch.ops.humming.gemm.instance(*problem.args, instance=instance, out=out, workspace=workspace)
    assert_as_accurate(out, problem.exact, problem.plain)


@pytest.mark.parametrize("name", CALLS)
def test_small_kernel(name: str) -> None:
    call = CALLS[name](1)
    outputs = call.outputs("cuda")
    call.run("cuda", outputs)
    call.check(outputs)
