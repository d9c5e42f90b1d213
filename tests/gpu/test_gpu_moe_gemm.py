"""The product with experts on the GPU: bit for bit where arithmetic is exact, else as accurate as torch in the type of
the operand. Problems and checks are those of tests/moe_products.py, which the CPU passes too.

Selection chooses an instance by the rows that an expert may expect, which is a hint and may be wrong: with other hints
the same problems meet every tile.
"""

import moe_products
import products
import pytest
import torch
from moe_products import (
    BLOCKS,
    EPILOGUES,
    LAYOUTS,
    PAIRS,
    ROUTINGS,
    SHAPES,
    TOKEN_GROUP_PAIRS,
    Epilogue,
    Problem,
    Routing,
    Run,
    lay_out,
    make_mixture,
)
from support import assert_bits_equal

ops = torch.ops.humming
MXFP4, MXFP4_FP8 = ("e2m1", "bf16", "e8m0", 32, "none"), ("e2m1", "e4m3", "e8m0", 32, "none")
EXPECTED = (1, 20, 60, 120, 2000)  # rows of an expert

layouts = pytest.mark.parametrize("layout", LAYOUTS)
hints = pytest.mark.parametrize("expected", EXPECTED)


def runner(expected: int = 1) -> Run:
    """What runs a problem with a hint of so many rows for each expert."""

    def run(problem: Problem, out: torch.Tensor) -> None:
        hint = expected * problem.mixture.routing.experts
        try:
            ops.moe_gemm.out(*problem.args, expected_tokens=hint, out=out, workspace=problem.workspace())
        except RuntimeError as error:
            if "no CUDA instance" not in str(error):
                raise
            pytest.skip(str(error).splitlines()[0])

    return run


@layouts
@hints
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_exact_sums(pair: tuple, expected: int, layout: str) -> None:
    moe_products.check_identity(runner(expected), pair, layout, "cuda")
    moe_products.check_integers(runner(expected), pair, layout, "cuda")


@layouts
@hints
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_random_products_are_accurate(pair: tuple, expected: int, layout: str) -> None:
    for turn, (n, k) in enumerate(SHAPES):
        mixture = make_mixture(pair, n, k, Routing("mapped", 100, 3, 3), Epilogue(), "cuda")
        problem = lay_out(mixture, layout, block=BLOCKS[turn], pitched=turn % 2 == 0)
        moe_products.check_random(runner(expected), problem)


@pytest.mark.parametrize(("turn", "routing"), list(enumerate(ROUTINGS)), ids=str)
def test_every_routing(turn: int, routing: Routing) -> None:
    mixture = make_mixture(MXFP4, 72, 80, routing, Epilogue(), "cuda")
    for layout in LAYOUTS:
        problem = lay_out(mixture, layout, block=BLOCKS[turn % len(BLOCKS)], pitched=turn % 2 == 0)
        for expected in (1, 60):
            moe_products.check_random(runner(expected), problem)


@layouts
@pytest.mark.parametrize("expected", [1, 60, 2000])
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=str)
def test_every_epilogue(epilogue: Epilogue, expected: int, layout: str) -> None:
    mixture = make_mixture(MXFP4, 208, 192, Routing("mapped", 70, 3, 3), epilogue, "cuda", gate_up=True)
    problem = lay_out(mixture, layout, block=8)
    run = runner(expected)
    moe_products.check_random(run, problem)
    usual = moe_products.product(run, problem)[problem.written]
    for scalar in (False, True):
        for dtype, pitch in products.output_types(scalar=scalar):
            other = moe_products.product(run, problem, dtype, pitch=pitch)[problem.written]
            products.assert_one_number_rounded(other, usual, f"{problem} {dtype}")


@layouts
@pytest.mark.parametrize("pair", TOKEN_GROUP_PAIRS, ids=str)
def test_scales_per_token_and_group(pair: tuple, layout: str) -> None:
    mixture = make_mixture(pair, 72, 360, Routing("skewed", 20, 3, 3), Epilogue(), "cuda", x_group=128)
    moe_products.check_random(runner(), lay_out(mixture, layout))


def capture(call) -> object:
    """A CUDA graph of the call."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@layouts
@pytest.mark.parametrize("expected", [1, 2000])
@pytest.mark.parametrize("pair", [MXFP4, MXFP4_FP8], ids=str)
def test_replays_with_other_routings(pair: tuple, expected: int, layout: str) -> None:
    moe_products.check_replays(runner(expected), capture, *moe_products.replays(pair, 72, 80, 40, layout, "cuda"))


@layouts
@hints
def test_a_hundred_runs_give_the_same_bits(expected: int, layout: str) -> None:
    problem = lay_out(make_mixture(MXFP4, 360, 720, Routing("skewed", 64, 4, 8), Epilogue(), "cuda"), layout)
    run = runner(expected)
    first = moe_products.product(run, problem)
    out = torch.empty(problem.out_shape, dtype=torch.bfloat16, device="cuda")
    for _ in range(100):
        out.fill_(torch.nan)
        run(problem, out)
        assert_bits_equal(out.view(problem.exact.shape)[problem.written], first[problem.written])
