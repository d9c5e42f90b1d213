"""What `make sanitize` runs under compute-sanitizer: small shapes that reach every path of the kernels' memory use.

Tensors have no guards around them, so that memcheck sees the first byte beyond.
"""

import re

import moe_products
import pytest
import torch
from instances import MAX_STAGES, extent, runnable, stage_columns
from products import PAIRS, case_of, make_problem
from support import assert_as_accurate
from test_gpu_torch import CALLS

pytestmark = pytest.mark.sanitizer


def one_of_each(pairs: list[tuple], experts: int = 0) -> list:
    """Pairs and instances: every tile once for 16-bit, 8-bit and 4-bit x, and every way to read scales and zeros."""
    seen: set[tuple] = set()
    chosen = []
    for parameter in runnable(pairs, experts):
        pair, instance = parameter.values
        named = re.fullmatch(r".*_([a-z]+_\w+_group\d+)_(.*)", instance)
        # The kernel for any format has scales as the pair has them.
        scales, tile = named.groups() if named else (f"any {pair[2]} of {pair[3]}", instance)
        paths = {({"bf16": 16, "fp16": 16, "s4": 4}.get(pair[1], 8), tile), (pair[4], scales)}
        if not paths <= seen:
            seen |= paths
            chosen.append(parameter)
    return chosen


@pytest.mark.parametrize(("pair", "instance"), one_of_each(PAIRS))
def test_product(pair: tuple, instance: str) -> None:
    """Two tiles each way, the last nearly empty; more stages than a ring has, then a half tail with masked columns."""
    n = 64 * extent(instance, "row_groups") + 8
    k = MAX_STAGES * stage_columns(instance) + 32  # rows of 4-bit x that begin at multiples of 16 bytes
    problem = make_problem(case_of(pair, n, k), extent(instance, "tokens") + 1, "cuda")
    out = torch.full(problem.exact.shape, float("nan"), dtype=torch.bfloat16, device="cuda")
    workspace = out.new_empty(0, dtype=torch.uint8)
    torch.ops.humming.gemm.instance(*problem.args, instance=instance, out=out, workspace=workspace)
    assert_as_accurate(out, problem.exact, problem.plain)


@pytest.mark.parametrize("layout", moe_products.LAYOUTS)
@pytest.mark.parametrize(("pair", "instance"), one_of_each(moe_products.PAIRS, experts=3))
def test_product_with_experts(pair: tuple, instance: str, layout: str) -> None:
    """Blocks that are full, nearly empty and not there; scales, bias, weights and two rows of every tile."""
    n, k = 64 * extent(instance, "row_groups") + 8, 2 * stage_columns(instance) + 48
    routing = moe_products.Routing("gaps", extent(instance, "tokens") + 1, 1, 3)
    mixture = moe_products.make_mixture(pair, n, k, routing, moe_products.Epilogue(), "cuda")
    problem = moe_products.lay_out(mixture, layout, pitched=False)
    out = torch.full(problem.out_shape, float("nan"), dtype=torch.bfloat16, device="cuda")
    workspace = problem.workspace()
    torch.ops.humming.moe_gemm.instance(*problem.args, instance=instance, out=out, workspace=workspace)
    rows = out.view(problem.exact.shape)[problem.written]
    assert_as_accurate(rows, problem.exact[problem.written], problem.plain[problem.written])


@pytest.mark.parametrize("name", CALLS)
def test_small_kernel(name: str) -> None:
    call = CALLS[name](1)
    outputs = call.outputs("cuda")
    call.run("cuda", outputs)
    call.check(outputs)
