"""The mixtures that GPU tests hold kernels against: the same numbers as the oracle's, and the CPU product passes."""

import humming_ext  # noqa: F401 - registers the ops
import moe_products
import numpy as np
import products
import pytest
import torch
from moe_products import (
    BLOCKS,
    EPILOGUES,
    LAYOUTS,
    PAIRS,
    SHAPES,
    TOKEN_GROUP_PAIRS,
    Epilogue,
    Problem,
    activate,
    lay_out,
    make_mixture,
)
from moe_routings import ROUTINGS, Routing
from oracle import activations
from oracle.matmul import moe_contiguous, moe_indexed, moe_masked, scaled_rows
from support import array

ops = torch.ops.humming
INT4 = PAIRS[0]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def run(problem: Problem, out: torch.Tensor) -> None:
    ops.moe_gemm.out(*problem.args, out=out, workspace=problem.workspace())


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=str)
def test_activations_are_those_of_the_oracle(epilogue: Epilogue) -> None:
    y = torch.randn(50, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    expected = activations.activate(y.numpy(), epilogue.activation, epilogue.args)
    np.testing.assert_allclose(activate(y, epilogue).numpy(), expected, rtol=1e-12, atol=1e-12)


@layouts
@pytest.mark.parametrize(("x_scale", "x_group"), [("groups", 0), ("groups", 128), ("e8m0", 128), ("tensor", 0)])
@pytest.mark.parametrize("epilogue", [Epilogue("silu"), Epilogue("swigluoai", scale2="expert", bias="fp32")], ids=str)
def test_mixtures_are_those_of_the_oracle(layout: str, x_scale: str, x_group: int, epilogue: Epilogue) -> None:
    tokens = {"x_scale": x_scale, "x_group": x_group}
    mixture = make_mixture(PAIRS[-1], 48, 208, Routing("mapped", 21, 3, 4), epilogue, "cpu", gate_up=True, **tokens)
    problem = lay_out(mixture, layout, block=8, skew=3)
    weights = array(ops.decode_packed(mixture.experts.packed, mixture.scale2, mixture.case.desc))
    options = {
        "bias": array(mixture.bias),
        "activation": epilogue.activation,
        "args": epilogue.args,
        "topk_weights": array(problem.topk_weights),
    }
    scales = array(problem.x_scale)
    x = scaled_rows(array(problem.x).reshape(-1, 208), scales.reshape(-1, scales.shape[-1]), x_group)
    given = [tensor.tolist() for tensor in problem.routing.values()]
    if layout == "indexed":
        ids, experts, (padded,) = given
        expected = moe_indexed(x, weights, ids, experts, padded, 3, **options)
    elif layout == "sorted":
        ids, offsets = given
        experts = np.repeat(np.arange(-1, len(offsets) - 1), np.diff([0, *offsets]))  # -1: before the first offset
        expected = moe_indexed(x, weights, ids[: offsets[-1]], experts, offsets[-1], 3, **options)
    elif layout == "contiguous":
        expected = moe_contiguous(x, weights, *given, **options)
    else:
        expected = moe_masked(x.reshape(problem.x.shape), weights, *given, **options).reshape(problem.exact.shape)
    np.testing.assert_allclose(array(problem.exact), expected, rtol=2e-6, atol=2e-6)  # fp32 products of the decoder


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_routings_are_what_they_are_called(routing: Routing) -> None:
    pairs, local = routing.pairs(), routing.local()
    assert pairs.shape == local.shape == (routing.tokens * routing.top_k,)
    counts = local[local >= 0].bincount(minlength=routing.experts)
    if routing.kind == "balanced":
        assert counts.sum() == len(local) and counts.max() - counts.min() <= 1
    elif routing.kind == "one":
        assert counts.max() == len(local)
    elif routing.kind == "gaps":
        assert counts.sum() == len(local) and (counts[::2] == 0).all()
    elif routing.kind == "mapped":
        assert len(local) <= 4 or ((pairs < 0).any() and ((pairs >= 0) & (local < 0)).any() and (local >= 0).any())
    elif routing.kind == "nobody":
        assert (local < 0).all()
    elif routing.tokens >= 64:
        assert counts.max() >= 1.5 * counts.float().mean()
    for row in pairs.view(-1, routing.top_k) if routing.kind in ("skewed", "mapped") else ():
        assert len(row[row >= 0].unique()) == (row >= 0).sum(), "an expert twice"


@layouts
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_cpu_product_passes(pair: tuple, layout: str) -> None:
    moe_products.check_identity(run, pair, layout, "cpu")
    moe_products.check_integers(run, pair, layout, "cpu")
    for turn, (n, k) in enumerate(SHAPES):
        mixture = make_mixture(pair, n, k, Routing("mapped", 20, 3, 3), Epilogue(), "cpu")
        moe_products.check_random(run, lay_out(mixture, layout, block=BLOCKS[turn], pitched=turn % 2 == 0))


@pytest.mark.parametrize(("turn", "routing"), list(enumerate(ROUTINGS)), ids=str)
def test_the_cpu_product_passes_with_every_routing(turn: int, routing: Routing) -> None:
    mixture = make_mixture(INT4, 72, 80, routing, Epilogue(), "cpu")
    for layout in LAYOUTS:
        problem = lay_out(mixture, layout, block=BLOCKS[turn % len(BLOCKS)], pitched=turn % 2 == 0)
        moe_products.check_random(run, problem)


@layouts
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=str)
def test_the_cpu_product_passes_with_every_epilogue(epilogue: Epilogue, layout: str) -> None:
    mixture = make_mixture(INT4, 208, 192, Routing("mapped", 20, 3, 3), epilogue, "cpu", gate_up=True)
    problem = lay_out(mixture, layout, block=8)
    moe_products.check_random(run, problem)
    usual = moe_products.product(run, problem)[problem.written]
    for scalar in (False, True):
        for dtype, pitch in products.output_types(scalar=scalar):
            other = moe_products.product(run, problem, dtype, pitch=pitch)[problem.written]
            products.assert_one_number_rounded(other, usual, f"{problem} {dtype}")


@layouts
@pytest.mark.parametrize("pair", TOKEN_GROUP_PAIRS, ids=str)
def test_the_cpu_product_passes_with_scales_per_token_and_group(pair: tuple, layout: str) -> None:
    mixture = make_mixture(pair, 72, 360, Routing("skewed", 20, 3, 3), Epilogue(), "cpu", x_group=128)
    moe_products.check_random(run, lay_out(mixture, layout))


@layouts
def test_the_cpu_product_passes_with_tensors_written_over(layout: str) -> None:
    moe_products.check_replays(run, lambda call: call, *moe_products.replays(INT4, 72, 80, 40, layout, "cpu"))


@layouts
def test_a_wrong_row_is_found(layout: str) -> None:
    """Kernels that forget the last row, write one that is none's, or write beside a row."""
    mixture = make_mixture(INT4, 72, 80, Routing("mapped", 20, 3, 3), Epilogue(), "cpu")
    problem = lay_out(mixture, layout)
    last, idle = int(problem.written.nonzero()[-1]), int((~problem.written).nonzero()[0])

    def wrong(row: int, value: float, column: int) -> moe_products.Run:
        def run_and_spoil(problem: Problem, out: torch.Tensor) -> None:
            run(problem, out)
            out.as_strided((1,), (1,), out.storage_offset() + row * out.stride(-2) + column).fill_(value)

        return run_and_spoil

    for spoiled, message in [
        (wrong(last, float("nan"), 5), "wrong set"),
        (wrong(idle, 0.0, 5), "no expert takes"),
        (wrong(idle, float("nan"), 5), "no expert takes"),  # computed from poison
        (wrong(last, 0.0, 72), "outside"),
    ]:
        with pytest.raises(AssertionError, match=message):
            moe_products.check_random(spoiled, problem)
