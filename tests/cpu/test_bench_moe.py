"""The benchmark of products with experts, without a GPU: routings, floors, checks, the gate, and whole runs."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import Recorder

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import bench, references, results, retune, timing  # noqa: E402
from benchmarks.cases import MODEL_TOKENS, PARTS, SKEWED_TOKENS, MoeCase  # noqa: E402
from benchmarks.moe import MoeMatrix, MoeProblem, draw  # noqa: E402
from benchmarks.problem import WrongResultError  # noqa: E402

CPU = torch.device("cpu")
SMOKE: list[MoeCase] = PARTS["moe-smoke"]
EXPERT_PARTS = ["moe-deepseek", "moe-gpt-oss", "moe-qwen3"]


def smoke_case(layout: str, activation: str, routing: str = "balanced", quantisation: str | None = None) -> MoeCase:
    wanted = (layout, activation, routing, quantisation)
    (case,) = (case for case in SMOKE if (case.layout, case.activation, case.routing, case.quantisation) == wanted)
    return case


def make(case: MoeCase, tokens: int = 17) -> MoeProblem:
    return MoeMatrix(case, CPU, (tokens,)).problem(tokens)


# ---- cases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", EXPERT_PARTS)
def test_sweeps_are_complete(part: str) -> None:
    cases = PARTS[part]
    assert {case.tokens for case in cases if case.routing == "balanced"} == {MODEL_TOKENS}
    assert {case.tokens for case in cases if case.routing == "skewed"} == {SKEWED_TOKENS}
    variants = {(case.activation, case.routing, case.quantisation) for case in cases}
    assert variants == {
        *(("bf16", "balanced", None), ("bf16", "skewed", None)),
        *(("e4m3", routing, "before") for routing in ("balanced", "skewed")),
        ("e4m3", "balanced", "timed"),
    }
    assert len(cases) == len(variants) * len({case.matrix for case in cases})
    assert all((case.layout == "indexed") == case.matrix.endswith("gate_up") for case in cases)
    assert all(case.has_bias == (part == "moe-gpt-oss") for case in cases)


@pytest.mark.parametrize(
    ("matrix", "experts", "pairs"),
    [("TP4 gate_up", 256, {1: 6, 16: 96, 1024: 6144}), ("EP4 down", 64, {1: 6, 16: 24, 100: 150, 1024: 1536})],
)
def test_a_rank_takes_its_share(matrix: str, experts: int, pairs: dict[int, int]) -> None:
    case = next(case for case in PARTS["moe-deepseek"] if case.matrix == matrix)
    assert case.experts == experts
    assert {tokens: case.local_tokens(tokens) * case.top_k for tokens in pairs} == pairs


def test_every_target_of_experts_is_one_case() -> None:
    rows = [case.key(tokens) for part in EXPERT_PARTS for case in PARTS[part] for tokens in case.tokens]
    targets = [target for target in results.load_targets()[1] if target.op == "moe_gemm"]
    assert len(targets) == 4 * 6 + 12 * 2 * 5
    assert [sum(target.fits(row) for row in rows) for target in targets] == [1] * len(targets)


# ---- routing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", ["balanced", "skewed"])
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 256, 6), (300, 64, 6), (40, 8, 8), (5, 4, 1)])
def test_a_token_has_different_experts(routing: str, tokens: int, experts: int, top_k: int) -> None:
    ids = draw(tokens, experts, top_k, routing, np.random.default_rng(0))
    assert ids.shape == (tokens, top_k) and ids.dtype == np.int32
    assert ids.min() >= 0 and ids.max() < experts
    assert all(len(set(row)) == top_k for row in ids.tolist())


def test_popularity_is_equal_or_by_zipf() -> None:
    tokens, experts = 200_000, 16
    zipf = 1 / np.arange(1, experts + 1)
    for routing, expected in (("balanced", np.full(experts, 1 / experts)), ("skewed", zipf / zipf.sum())):
        ids = draw(tokens, experts, 1, routing, np.random.default_rng(1))
        share = np.sort(np.bincount(ids[:, 0], minlength=experts))[::-1] / tokens
        np.testing.assert_allclose(share, expected, rtol=0.05)


def test_draws_differ_and_are_the_same_in_every_run() -> None:
    case = smoke_case("indexed", "bf16")
    first, second = (MoeMatrix(case, CPU, (17,)).draws(17) for _ in range(2))
    assert len(first) == 8 and len(MoeMatrix(case, CPU, (256,)).draws(256)) == 2
    assert all(np.array_equal(*same) for same in zip(first, second, strict=True))
    assert len({ids.tobytes() for ids in first}) == 8


def test_active_experts_are_those_with_rows() -> None:
    matrix = MoeMatrix(replace(smoke_case("indexed", "bf16"), experts=8, top_k=8), CPU, (1,))
    assert matrix.active_experts(1) == 8
    matrix = MoeMatrix(smoke_case("indexed", "bf16"), CPU, (1,))
    assert matrix.active_experts(1) == 3  # the experts of one token
    assert 20 < matrix.active_experts(17) < 32
    skewed = MoeMatrix(smoke_case("indexed", "bf16", "skewed"), CPU, (17,))
    assert skewed.active_experts(17) < matrix.active_experts(17)


def test_calls_reach_every_copy_and_every_draw() -> None:
    for copies, draws in ((2, 8), (19, 8), (3, 2), (5, 1)):
        turns = references.rotation(range(copies), range(draws))
        assert {copy for copy, _ in turns} == set(range(copies))
        assert [product for _, product in turns] == [i % draws for i in range(len(turns))]
        assert len(turns) % draws == 0


@pytest.mark.parametrize("layout", ["indexed", "contiguous"])
def test_the_peer_gets_the_same_product(layout: str) -> None:
    problem = make(smoke_case(layout, "bf16"))
    for routing in problem._routings:
        ids = routing.peer_ids().numpy()
        assert len(ids) == len(problem.x16) and ids.size == len(problem.out)
        assert np.array_equal(ids.reshape(-1), routing.row_experts())


# ---- arithmetic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "quantisation", "x_bytes"),
    [
        ("indexed", "before", 17 * (128 + 4)),
        ("indexed", "timed", 17 * 128 * 2),
        ("contiguous", "before", 12 * (80 + 4)),
        ("contiguous", "timed", 12 * 80 * 2),
    ],
)
def test_the_floor_counts_active_experts_once(layout: str, quantisation: str, x_bytes: int) -> None:
    case = smoke_case(layout, "e4m3", quantisation=quantisation)
    problem = make(case)
    pairs = {"indexed": 17 * 3, "contiguous": 4 * 3}[layout]  # the second is one of four ranks
    groups = -(-case.k // 32)
    expert_bytes = case.n * case.k // 2 + case.n * groups + case.n * (4 + 2)  # scale2 and bias of each row
    active = problem.facts["active_experts"]
    assert problem.work.bytes == round(active * expert_bytes) + x_bytes + pairs * case.n * 2
    assert problem.work.flops == 2 * pairs * case.n * case.k
    assert problem.facts["pairs"] == pairs


def test_what_is_read_between_two_uses_of_a_copy_exceeds_the_cache() -> None:
    """Copies are counted by the experts that the smallest problem reads, not by the whole weight."""
    case = smoke_case("indexed", "bf16")
    matrix = MoeMatrix(case, CPU, (40, 1))
    weight = matrix.weights[0]
    assert matrix.bytes_per_call(weight) == round(weight.nbytes * 3 / 32)
    sets = references.num_sets(matrix.bytes_per_call(weight), torch.device("cuda"))
    assert sets * 3 / 32 * weight.nbytes >= 250e6


# ---- verification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMOKE, ids=str)
def test_every_draw_is_verified_and_small_errors_are_left(case: MoeCase) -> None:
    problem = make(case)
    problem.verify(problem.calls, repeats=9)
    assert len(problem._first) == 8
    assert not torch.equal(problem._first[0], problem._first[1])
    problem.calls[0]()
    assert 0 < problem.error() < 0.01


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out, turn: out[-1, 3:5].fill_(float("nan")), "2 of 8160 elements are not written"),
        (lambda out, turn: out.copy_(out.roll(1, 0)), "worst error"),
        (lambda out, turn: turn == 9 and out[0, 0].add_(1), "run 10: 1 of 8160 elements differ"),
        (lambda out, turn: turn == 5 and out.mul_(1.1), "worst error"),  # one draw only
    ],
)
def test_wrong_results_are_found(damage: Callable, words: str) -> None:
    problem, turns = make(smoke_case("indexed", "bf16")), []

    def wrong(call: Callable) -> None:
        call()
        damage(problem.out, len(turns))
        turns.append(None)

    with pytest.raises(WrongResultError, match=words):
        problem.verify([lambda call=call: wrong(call) for call in problem.calls], repeats=4)


@pytest.mark.parametrize("quantisation", ["before", "timed"])
@pytest.mark.parametrize("layout", ["indexed", "contiguous"])
def test_graphs_contain_what_is_documented_and_allocate_nothing(layout: str, quantisation: str) -> None:
    problem = make(smoke_case(layout, "e4m3", quantisation=quantisation))
    quantise = ["humming.quantize_activation.out"] if quantisation == "timed" else []
    with Recorder() as whole:
        problem.calls[0]()
    assert whole.names == ["humming.moe_align.out", *quantise, "humming.moe_gemm.out"]
    if problem.gemm_calls is not None:
        with Recorder() as alone:
            problem.gemm_calls[0]()
        assert alone.names == ["humming.moe_gemm.out"]


@pytest.mark.parametrize("layout", ["indexed", "contiguous"])
def test_calls_align_and_quantise_by_themselves(layout: str) -> None:
    """Nothing that the graph is said to contain may come from the set-up."""
    case = smoke_case(layout, "e4m3", quantisation="timed")
    problem = make(case)
    for routing in problem._routings:
        for tensor in routing.aligned.values():
            tensor.fill_(-7)
    rows, scales = problem._rows
    assert len(rows) == len(problem.out)
    rows.view(torch.uint8).fill_(127)  # NaN
    scales.fill_(float("nan"))
    problem.verify(problem.calls, repeats=1)


# ---- rows and the gate ----------------------------------------------------------------------------------------------


def a_row(**fields: object) -> results.Row:
    row = {**smoke_case("indexed", "bf16").key(17), "us": 14.0, "gemm_us": 10.0, "tflops": 1.0, "gbs": 1.0}
    row |= {"floor_us": 8.0, "floor_percent": 57.0, "peer_us": 13.0, "ratio": 1.3, "active_experts": 20.0}
    return {**row, "binary": "new", "time": "2026-01-02T00:00:00+00:00", **fields}


@pytest.mark.parametrize(
    ("kind", "limit", "miss"), [("us", 10.0, 0), ("us", 8.0, 25), ("of_peer", 1.3, 0), ("of_floor", 1.25, 0)]
)
def test_targets_are_about_the_product_alone(kind: str, limit: float, miss: float) -> None:
    problem = {name: a_row()[name] for name in ("op", "n", "k", "weight", "activation", "tokens")}
    target = results.Target(work="a line", kind=kind, limit=limit, **problem)
    assert results.judge(target, [a_row()]).miss == pytest.approx(miss, abs=1e-9)
    for other in ({"routing": "skewed"}, {"quantisation": "timed"}, {"op": "gemm"}):
        assert results.judge(target, [a_row(**other)]).miss is None


@pytest.mark.parametrize(("us", "floor_us", "passes"), [(11.5, 8.0, True), (11.6, 8.0, False), (5.8, 4.0, False)])
def test_skew_may_cost_15_percent(us: float, floor_us: float, passes: bool, capsys: pytest.CaptureFixture) -> None:
    skewed = a_row(routing="skewed", gemm_us=us, floor_us=floor_us)
    assert results.gate([a_row(), skewed], []) == passes
    assert ("1 of 1 rows" in capsys.readouterr().out.splitlines()[-1 if passes else -2]) == (not passes)
    assert results.gate([a_row(tokens=40), skewed], [])  # nothing to compare with


def test_rows_without_a_quantisation_keep_their_keys() -> None:
    row = PARTS["smoke"][0].key(16)
    assert results.key_of(row) == results.key_of({name: value for name, value in row.items() if name != "quantisation"})


@pytest.mark.parametrize("layout", ["indexed", "contiguous"])
@pytest.mark.parametrize("quantisation", ["before", "timed"])
def test_a_row_says_what_was_timed(layout: str, quantisation: str) -> None:
    problem = make(smoke_case(layout, "e4m3", quantisation=quantisation))
    row = {**problem.matrix.case.key(17), **bench.stamp(CPU, [])} | bench.measure(problem, timing.Ceilings(CPU), 1)
    assert json.loads(json.dumps(row)) == row
    assert (row["routing"], row["quantisation"], row["experts"]) == (
        "balanced",
        quantisation,
        problem.matrix.case.experts,
    )
    assert (row["draws"], row["library"], row["peer"], row["others"]) == (8, None, None, {})
    assert 0 < row["active_experts"] <= row["experts"]
    assert (row["gemm_us"] is None) == (quantisation == "timed")
    assert f"experts, balanced, quantisation {quantisation}" in results.line(row)


def test_smoke_runs_measure_both_layouts_and_both_routings(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {(case.layout, case.routing) for case in SMOKE} == {
        (layout, routing) for layout in ("indexed", "contiguous") for routing in ("balanced", "skewed")
    }
    loaded, load = [], bench.Run.load
    monkeypatch.setattr(
        bench.Run, "load", lambda run, case, tokens: loaded.append((case.plain, tokens)) or load(run, case, tokens)
    )
    arguments = ["--device", "cpu", "--part", "moe-smoke", "--repeats", "1", "--results", str(tmp_path)]
    assert bench.main(arguments) == 0
    assert [case for case, _ in loaded] == list(dict.fromkeys(case.plain for case in SMOKE))  # each weight once
    assert all(tokens == [1, 17, 40] for _, tokens in loaded)
    printed = capsys.readouterr().out
    total = sum(len(case.tokens) for case in SMOKE)
    assert f"[{total}/{total}]" in printed and "WRONG" not in printed
    assert list(tmp_path.iterdir()) == []


def test_plans_are_for_the_rows_of_all_experts() -> None:
    case = SMOKE[0]
    problem = MoeMatrix(case, torch.device("cpu"), case.tokens).problem(case.tokens[-1])
    assert problem.rows == case.tokens[-1] * case.top_k
    assert problem.plans() and all("gemm_" in plan.name for plan in problem.plans())
    assert not any(plan.name.startswith("gemm_any_") for plan in retune.candidates(problem))
    assert problem.instance() is None
    call = problem.instance_calls("moe_gemm_sm90_x")[0]
    with pytest.raises(RuntimeError, match=r'humming::moe_gemm: instance = "moe_gemm_sm90_x" .* x is on the CPU'):
        call()
