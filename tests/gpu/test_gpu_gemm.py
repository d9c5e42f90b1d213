"""The dense product on the GPU, every instance of the build by name: bit for bit where arithmetic is exact, else as
accurate as torch in the operand's type. Problems and checks are those of tests/products.py, which the CPU passes too.
"""

import re
from collections.abc import Iterator
from functools import cache

import humming_ext
import products
import pytest
import torch
from instances import MAX_STAGES, REFUSES_SCALARS, built, extent, plans, runnable, stage_columns, takes_scalars
from products import PAIRS, Problem, Run, case_of, make_problem
from support import WeightCase

ops = torch.ops.humming


def forced(instance: str) -> Run:
    """What runs a problem with the named instance."""

    def run(problem: Problem, out: torch.Tensor) -> None:
        ops.gemm.instance(*problem.args, instance=instance, out=out, workspace=problem.workspace())

    return run


def chosen(problem: Problem, out: torch.Tensor) -> None:
    """Runs a problem with the instance that selection chooses."""
    out.copy_(ops.gemm(*problem.args, out_dtype=out.dtype))


every_instance = pytest.mark.parametrize(("pair", "instance"), runnable(PAIRS))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_pair_has_an_instance(pair: tuple) -> None:
    reasons = plans(pair)
    if None not in reasons.values():
        pytest.skip(f"no instance of {len(reasons)} takes it: {sorted(set(filter(None, reasons.values())))}")


@every_instance
def test_identity_returns_the_weights(pair: tuple, instance: str) -> None:
    products.check_identity(forced(instance), pair, "cuda")


@every_instance
def test_small_integers_give_exact_sums(pair: tuple, instance: str) -> None:
    tokens = extent(instance, "tokens")
    for n, k in [(200, 360), (72, 720)]:
        for m in (1, tokens - 1, tokens + 1):
            products.check_integers(forced(instance), pair, n, k, m, "cuda")


def random_problems(pair: tuple, instance: str) -> Iterator[Problem]:
    """Token counts around the tile; rows that fill no tile; columns with half tails and with masked ends, in one stage,
    in some, and in more than there are."""
    tokens = extent(instance, "tokens")
    wrap = (MAX_STAGES + 1) * stage_columns(instance) + 80
    for n, k in [(200, 80), (72, 192), (360, 360), (136, 720), (136, wrap)]:
        problem = make_problem(case_of(pair, n, k), 320, "cuda")
        for turn, m in enumerate((1, tokens - 1, tokens, tokens + 1, 300)):
            yield problem.rows(m, pitched=turn % 2 == 0)
    yield make_problem(case_of(pair, 208, 288, gate_up=True), 320, "cuda").rows(tokens + 1, pitched=True)


@every_instance
def test_random_products_are_as_accurate_as_torch(pair: tuple, instance: str) -> None:
    for problem in random_problems(pair, instance):
        products.check_random(forced(instance), problem)


@every_instance
def test_outputs_of_every_type_and_alignment(pair: tuple, instance: str) -> None:
    """The same number in every type; fp32 rows, odd widths and odd pitches not from Hopper's tiles of many tokens."""
    run, m = forced(instance), extent(instance, "tokens") + 1
    problem = make_problem(case_of(pair, 200, 192), 320, "cuda").rows(m, pitched=True)
    odd = make_problem(case_of(pair, 203, 192), 320, "cuda").rows(m, pitched=True)
    usual = products.product(run, problem)
    for dtype, pitch in products.output_types(scalar=False):
        products.assert_one_number_rounded(products.product(run, problem, dtype, pitch=pitch), usual, f"pitch {pitch}")
    for dtype, pitch in products.output_types(scalar=True):
        if takes_scalars(instance):
            got = products.product(run, problem, dtype, pitch=pitch)
            products.assert_one_number_rounded(got, usual, f"pitch {pitch}")
        else:
            with pytest.raises(RuntimeError, match=REFUSES_SCALARS):
                products.product(run, problem, dtype, pitch=pitch)
    if takes_scalars(instance):
        products.check_random(run, odd)


SIZES = {"larger than the GPU": (3080, 256, 6), "smaller than the GPU": (200, 720, 1)}  # n, k, token tiles


@pytest.mark.parametrize("size", SIZES)
@every_instance
def test_hundred_runs_replays_and_another_stream_give_the_same_bits(pair: tuple, instance: str, size: str) -> None:
    n, k, tiles = SIZES[size]
    m = tiles * extent(instance, "tokens") + 1 if tiles > 1 else extent(instance, "tokens") - 1
    problem = make_problem(case_of(pair, n, k), m, "cuda")
    products.check_random(forced(instance), problem)
    out = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
    workspace = problem.workspace()
    differing = torch.zeros((), dtype=torch.int64, device="cuda")

    def run() -> None:
        ops.gemm.instance(*problem.args, instance=instance, out=out, workspace=workspace)

    def compare() -> None:
        differing.add_((out.view(torch.int16) != first.view(torch.int16)).sum())
        out.fill_(float("nan"))

    run()
    first = out.clone()
    out.fill_(float("nan"))
    for _ in range(100):
        run()
        compare()
    assert differing.item() == 0

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(100):
            run()
            compare()
    stream.synchronize()
    assert differing.item() == 0, "on another stream"

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(4):  # one after the other: each may start before the last has ended
            run()
    for _ in range(25):
        graph.replay()
        compare()
    assert differing.item() == 0, "in a graph"


@cache
def with_token_groups(pair: tuple) -> tuple[Problem, dict[str, str]]:
    """A problem with x scales per token and 128 columns; instances that refuse it, with their reasons."""
    problem = make_problem(case_of(pair, 200, 360), 300, "cuda", x_group=128)
    refusals = {}
    out = torch.empty(problem.exact.shape, dtype=torch.bfloat16, device="cuda")
    for name in plans(pair):
        try:
            forced(name)(problem, out)
        except RuntimeError as error:
            if name not in str(error):  # no refusal but a failure
                raise
            refusals[name] = str(error).partition(name)[2].partition(";")[0].strip()
    return problem, refusals


TOKEN_GROUP_PAIRS = [pair for pair in PAIRS if pair[1] in ("e4m3", "s8", "s4")]


@pytest.mark.parametrize("pair", TOKEN_GROUP_PAIRS, ids=str)
def test_scales_per_token_and_group(pair: tuple) -> None:
    problem, refusals = with_token_groups(pair)
    names = [name for name in plans(pair) if name not in refusals]
    if not names:
        pytest.skip(f"no instance of {len(refusals)} takes it: {sorted(set(refusals.values()))}")
    for name in names:
        for m in (1, extent(name, "tokens") + 1, 300):
            products.check_random(forced(name), problem.rows(min(m, 300), pitched=m > 1))


def test_every_instance_is_tested() -> None:
    tested = {parameter.values[1] for parameter in runnable(PAIRS)}
    for pair in TOKEN_GROUP_PAIRS:
        tested |= set(plans(pair)) - set(with_token_groups(pair)[1])
    missing = built("gemm_") - tested
    assert not missing, f"add a pair to products.py for {sorted(missing)}"


def test_an_instance_that_does_not_fit_says_why() -> None:
    problem = make_problem(case_of(PAIRS[0], 72, 80), 320, "cuda")
    out = torch.empty(problem.exact.shape, dtype=torch.bfloat16, device="cuda")
    for name, rejection in plans(PAIRS[0]).items():
        if rejection is not None:
            with pytest.raises(RuntimeError, match=f"{name}.*{re.escape(rejection)}"):
                forced(name)(problem, out)
    with pytest.raises(RuntimeError, match="gemm_of_nobody"):
        forced("gemm_of_nobody")(problem, out)


def test_what_has_no_instance_is_refused_instance_by_instance() -> None:
    case = WeightCase("int6", n=64, k=128)
    packed = case.make().pack()[0].cuda()
    x = torch.zeros(3, 128, dtype=torch.int8, device="cuda")
    groups = torch.ones(3, 4, device="cuda")  # of 32 columns, in fp32: no kernel takes such scales
    with pytest.raises(RuntimeError, match=r"humming::gemm: no CUDA instance in this build.*int6 weights x int8"):
        ops.gemm(x, groups, packed, None, None, case.desc)
    with pytest.raises(RuntimeError, match="humming::gemm: x has shape"):
        ops.gemm(x[:, :64].contiguous(), groups, packed, None, None, case.desc)
    with pytest.raises(RuntimeError, match="humming::gemm: packed is on cpu"):
        ops.gemm(x, groups, packed.cpu(), None, None, case.desc)
    assert ops.gemm(x[:0], groups[:0], packed, None, None, case.desc).shape == (0, 64)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_functional_form_chooses_an_instance(pair: tuple) -> None:
    """Any number of tokens, on a model's shape and on one whose rows of x are copied first."""
    if None not in plans(pair).values():
        pytest.skip("no instance takes it")
    for n, k in [(1440, 2880), (200, 360)]:
        problem = make_problem(case_of(pair, n, k), 320, "cuda")
        for m in (1, 3, 8, 17, 64, 100, 256, 300):
            products.check_random(chosen, problem.rows(m, pitched=False))


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[0] == "int4"], ids=str)
def test_many_tokens(pair: tuple) -> None:
    """A peer's product of 4-bit weights and 8-bit tokens did not return from 2048 tokens on."""
    if None not in plans(pair).values():
        pytest.skip("no instance takes it")
    for n, k, m in [(200, 360, 2048), (3080, 256, 8193)]:
        products.check_random(chosen, make_problem(case_of(pair, n, k), m, "cuda"))


def test_the_build_lists_its_products() -> None:
    info = humming_ext.build_info()
    archs = {
        family: {entry["arch"] for entry in info["instances"] if entry["name"].startswith(family)}
        for family in ("gemm_sm90_", "gemm_sm80_", "moe_gemm_sm90_", "moe_gemm_sm80_")
    }
    built_for = {int(arch.rstrip("a")) for arch in info["cuda_archs"]}
    for family in ("gemm_", "moe_gemm_"):
        assert archs[f"{family}sm90_"] == built_for & {90}
        assert archs[f"{family}sm80_"] == built_for & ({80, 89, 90} if info["preset"] == "test" else {80, 89})
