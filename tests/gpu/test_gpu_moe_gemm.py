"""The product with experts on the GPU: bit for bit where arithmetic is exact, else as accurate as torch in the type of
the operand. Problems and checks are those of tests/moe_products.py, which the CPU passes too.

Every instance of the build by name; a few tests through selection.
"""

import moe_products
import products
import pytest
import torch
from instances import built, runnable
from moe_products import (
    BLOCKS,
    EPILOGUES,
    LAYOUTS,
    PAIRS,
    SHAPES,
    TOKEN_GROUP_PAIRS,
    Epilogue,
    Problem,
    Run,
    lay_out,
    make_mixture,
)
from moe_routings import ROUTINGS, Routing
from support import assert_bits_equal

ops = torch.ops.humming
MXFP4, MXFP4_FP8 = ("e2m1", "bf16", "e8m0", 32, "none"), ("e2m1", "e4m3", "e8m0", 32, "none")

layouts = pytest.mark.parametrize("layout", LAYOUTS)
every_instance = pytest.mark.parametrize(("pair", "instance"), runnable(PAIRS, experts=8))
MXFP4_INSTANCES = runnable([MXFP4, MXFP4_FP8], experts=8)


def forced(instance: str) -> Run:
    """What runs a problem with the named instance."""

    def run(problem: Problem, out: torch.Tensor) -> None:
        ops.moe_gemm.instance(*problem.args, instance=instance, out=out, workspace=problem.workspace())

    return run


def chosen(problem: Problem, out: torch.Tensor) -> None:
    """Runs a problem with the instance that selection chooses."""
    try:
        ops.moe_gemm.out(*problem.args, out=out, workspace=problem.workspace())
    except RuntimeError as error:
        if "no CUDA instance" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[0])


@layouts
@every_instance
def test_exact_sums(pair: tuple, instance: str, layout: str) -> None:
    moe_products.check_identity(forced(instance), pair, layout, "cuda")
    moe_products.check_integers(forced(instance), pair, layout, "cuda")


@layouts
@every_instance
def test_random_products_are_accurate(pair: tuple, instance: str, layout: str) -> None:
    for turn, (n, k) in enumerate(SHAPES):
        mixture = make_mixture(pair, n, k, Routing("mapped", 100, 3, 3), Epilogue(), "cuda")
        problem = lay_out(mixture, layout, block=BLOCKS[turn], pitched=turn % 2 == 0)
        moe_products.check_random(forced(instance), problem)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_hint_chooses_an_instance(pair: tuple) -> None:
    """Selection believes what it is told of the rows that experts have; the result is right if it is wrong."""
    if not runnable([pair], experts=3):
        pytest.skip("no instance takes it")
    mixture = make_mixture(pair, 72, 80, Routing("skewed", 100, 3, 3), Epilogue(), "cuda")
    problem = lay_out(mixture, "indexed")
    for expected in (1, 100, 1000, 10000):

        def run(problem: Problem, out: torch.Tensor, expected: int = expected) -> None:
            workspace = problem.workspace()
            ops.moe_gemm.out(*problem.args, expected_tokens=expected, out=out, workspace=workspace)

        moe_products.check_random(run, problem)


@pytest.mark.parametrize("pair", [MXFP4, MXFP4_FP8], ids=str)
@pytest.mark.parametrize(("turn", "routing"), list(enumerate(ROUTINGS)), ids=str)
def test_every_routing(turn: int, routing: Routing, pair: tuple) -> None:
    mixture = make_mixture(pair, 72, 80, routing, Epilogue(), "cuda")
    for layout in LAYOUTS:
        problem = lay_out(mixture, layout, block=BLOCKS[turn % len(BLOCKS)], pitched=turn % 2 == 0)
        for parameter in runnable([pair], experts=8):
            moe_products.check_random(forced(parameter.values[1]), problem)


@pytest.mark.parametrize("layout", ["contiguous", "indexed", "sorted"])
@pytest.mark.parametrize("pair", [MXFP4, MXFP4_FP8], ids=str)
def test_every_width(pair: tuple, layout: str) -> None:
    """Every number of rows that a tile can have: products are as wide as these want."""
    experts = 260
    routing = Routing("stairs", experts * (experts - 1) // 2, 1, experts)
    problem = lay_out(make_mixture(pair, 72, 80, routing, Epilogue(), "cuda"), layout)
    for parameter in runnable([pair], experts=8):
        moe_products.check_random(forced(parameter.values[1]), problem)


@pytest.mark.parametrize("routing", [Routing("mapped", 4200, 3, 3), Routing("skewed", 3000, 4, 8)], ids=str)
@pytest.mark.parametrize("pair", [MXFP4, MXFP4_FP8], ids=str)
def test_many_pairs(pair: tuple, routing: Routing) -> None:
    """More than one block of the sorting kernel counts for itself."""
    mixture = make_mixture(pair, 72, 144, routing, Epilogue(), "cuda")
    for layout in ("indexed", "sorted"):
        moe_products.check_random(chosen, lay_out(mixture, layout, block=16))


@pytest.mark.parametrize(("pair", "instance"), MXFP4_INSTANCES)
def test_counts_beyond_the_capacity_are_the_capacity(pair: tuple, instance: str) -> None:
    """vllm#47281: numbers of a routing led outside of memory."""
    mixture = make_mixture(pair, 72, 80, Routing("balanced", 16, 4, 8), Epilogue(), "cuda")
    problem = lay_out(mixture, "masked", capacity=8)
    problem.routing["expert_counts"].add_(1000)
    moe_products.check_random(forced(instance), problem)


@layouts
@pytest.mark.parametrize(("pair", "instance"), runnable([MXFP4], experts=8))
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=str)
def test_every_epilogue(epilogue: Epilogue, pair: tuple, instance: str, layout: str) -> None:
    mixture = make_mixture(pair, 208, 192, Routing("mapped", 70, 3, 3), epilogue, "cuda", gate_up=True)
    problem = lay_out(mixture, layout, block=8)
    run = forced(instance)
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
    moe_products.check_random(chosen, lay_out(mixture, layout))


def test_every_instance_is_tested() -> None:
    tested = {parameter.values[1] for parameter in runnable(PAIRS, experts=8)}
    missing = built("moe_gemm_") - tested
    assert not missing, f"add a pair to moe_products.py for {sorted(missing)}"


def capture(call) -> object:
    """A CUDA graph of the call."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@layouts
@pytest.mark.parametrize(("pair", "instance"), MXFP4_INSTANCES)
def test_replays_with_other_routings(pair: tuple, instance: str, layout: str) -> None:
    moe_products.check_replays(forced(instance), capture, *moe_products.replays(pair, 72, 80, 40, layout, "cuda"))


@layouts
@pytest.mark.parametrize(("pair", "instance"), MXFP4_INSTANCES)
def test_a_hundred_runs_give_the_same_bits(pair: tuple, instance: str, layout: str) -> None:
    problem = lay_out(make_mixture(pair, 360, 720, Routing("skewed", 64, 4, 8), Epilogue(), "cuda"), layout)
    run = forced(instance)
    first = moe_products.product(run, problem)
    out = torch.empty(problem.out_shape, dtype=torch.bfloat16, device="cuda")
    for _ in range(100):
        out.fill_(torch.nan)
        run(problem, out)
        assert_bits_equal(out.view(problem.exact.shape)[problem.written], first[problem.written])
