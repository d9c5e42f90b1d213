"""The benchmark of whole MoE layers, without a GPU: cases, floors, checks, the peer's layer, the gate, a whole run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import humming_ext
import numpy as np
import pytest
import torch
from oracle.weights import dequantise
from support import Recorder

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import bench, peer_layer, results, timing  # noqa: E402
from benchmarks.cases import LAYER_TOKENS, PARTS, LayerCase  # noqa: E402
from benchmarks.layer import Layer, LayerProblem  # noqa: E402
from benchmarks.moe import MoeMatrix  # noqa: E402
from benchmarks.problem import WrongResultError  # noqa: E402
from benchmarks.references import Call, UnavailableError, rotation  # noqa: E402

CPU = torch.device("cpu")
SMOKE: list[LayerCase] = PARTS["layer-smoke"]
WITH_BIAS, WITHOUT_BIAS = SMOKE[0], SMOKE[2]  # both bf16
MODELS = {  # hidden and inner size, experts, top_k
    "layer-deepseek": (4096, 2048, 256, 6),
    "layer-gpt-oss": (2880, 2880, 128, 4),
    "layer-qwen3": (2048, 768, 128, 8),
}


def make(case: LayerCase, tokens: int = 17) -> LayerProblem:
    return Layer(case, CPU, (tokens,)).problem(tokens)


# ---- cases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", MODELS)
def test_layers_are_whole(part: str) -> None:
    cases = PARTS[part]
    assert {case.activation for case in cases} == {"bf16", "e4m3"} and len(cases) == 2
    for case in cases:
        hidden, inner, experts, top_k = MODELS[part]
        assert (case.n, case.k, case.experts, case.top_k) == (2 * inner, hidden, experts, top_k)
        assert (case.down.n, case.down.k, case.down.experts, case.down.top_k) == (hidden, inner, experts, top_k)
        assert case.has_bias == case.down.has_bias == (part == "layer-gpt-oss")
        assert case.tokens == LAYER_TOKENS


def test_every_target_of_layers_is_one_case() -> None:
    rows = [case.key(tokens) for cases in PARTS.values() for case in cases for tokens in case.tokens]
    targets = [target for target in results.load_targets()[1] if target.op == "fused_moe"]
    assert [(target.tokens, target.limit) for target in targets] == [
        *((4, 92), (16, 290), (64, 690), (256, 890), (1024, 930), (8192, 2250)),
    ]
    for target in targets:
        (row,) = (row for row in rows if target.fits(row))
        assert (row["model"], row["experts"]) == ("deepseek-v4-flash", 256)


def test_a_part_can_be_chosen_by_its_op(capsys: pytest.CaptureFixture) -> None:
    assert bench.main(["--list", "--op", "fused_moe"]) == 0
    listed = {line.split(":")[0] for line in capsys.readouterr().out.splitlines()}
    assert listed == {*MODELS, "layer-smoke"}


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def test_the_floor_counts_active_experts_of_both_matrices() -> None:
    case = WITH_BIAS  # 2 * 80 rows of 128 columns, 128 rows of 80
    problem = make(case)
    active, pairs = problem.facts["active_experts"], 17 * 3
    gate_up = 160 * 128 // 2 + 160 * 4 + 160 * (4 + 2)  # codes, scales, then scale2 and bias of each row
    down = 128 * 80 // 2 + 128 * 3 + 128 * (4 + 2)
    assert 3 < active <= 8
    assert problem.work.bytes == round(active * (gate_up + down)) + 2 * 17 * 128 * 2
    assert problem.work.flops == 2 * pairs * (160 * 128 + 128 * 80)
    assert problem.facts["pairs"] == pairs


@pytest.mark.parametrize("case", SMOKE, ids=str)
def test_values_are_the_oracles(case: LayerCase) -> None:
    matrix = MoeMatrix(case, CPU, (1,))
    raw = matrix.scale.view(torch.uint8) if case.scheme.group == 32 else matrix.scale
    scale = raw[3].double().numpy()
    scale = np.exp2(scale - 127) if case.scheme.group == 32 else scale
    expected = dequantise(matrix.codes[3].numpy(), case.scheme.format.name, scale=scale, group=case.scheme.group)
    assert np.array_equal(matrix.values(3, slice(None)).numpy(), expected)


# ---- verification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMOKE, ids=str)
def test_every_draw_is_verified_and_small_errors_are_left(case: LayerCase) -> None:
    problem = make(case)
    problem.verify(problem.calls, repeats=3)
    assert len(problem._first) == 8 and not torch.equal(problem._first[0], problem._first[1])
    problem.calls[0]()
    assert 0 < problem.error() < (0.01 if case.activation == "bf16" else 0.1)


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        (WITHOUT_BIAS, {"activation_args": []}),  # no limit
        (WITH_BIAS, {"activation_args": [7.0, 1.0, 1.0]}),
        (WITH_BIAS, {"activation_args": [7.0, 1.702, 0.0]}),
        (WITH_BIAS, {"w13_bias": None}),
        (WITH_BIAS, {"w2_bias": None}),
        (WITHOUT_BIAS, {"routed_scaling_factor": 1.05}),
        (WITHOUT_BIAS, {"activation": "gelu"}),
    ],
)
def test_other_layers_are_wrong(case: LayerCase, changes: dict) -> None:
    problem = make(case)
    layer = problem.matrix.weights[0]
    options = {"w13_bias": layer.w13.bias, "w2_bias": layer.w2.bias, "activation": layer.activation}
    options |= {"activation_args": [] if changes.get("activation") == "gelu" else layer.activation_args}
    other = humming_ext.FusedMoE(layer.w13.weight, layer.w2.weight, **{**options, **changes})
    with pytest.raises(WrongResultError, match="error"):
        problem.verify([problem._call(other, routing) for routing in problem._routings], repeats=0)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out, turn: out[-1, 3:5].fill_(float("nan")), "2 of 2176 elements are not written"),
        (lambda out, turn: out.copy_(out.roll(1, 0)), "worst error"),
        (lambda out, turn: turn == 9 and out[0, 0].add_(10), "run 10: 1 of 2176 elements differ"),
    ],
)
def test_wrong_results_are_found(damage: Callable, words: str) -> None:
    problem, turns = make(WITHOUT_BIAS), []

    def wrong(call: Call) -> None:
        call()
        damage(problem.out, len(turns))
        turns.append(None)

    with pytest.raises(WrongResultError, match=words):
        problem.verify([lambda call=call: wrong(call) for call in problem.calls], repeats=4)


def test_a_call_is_one_op_that_is_given_its_memory() -> None:
    problem = make(WITHOUT_BIAS)
    with Recorder() as recorder:
        problem.calls[0]()
    assert recorder.names == ["humming.fused_moe.out"]
    with pytest.raises(UnavailableError, match="fused_moe is not one kernel instance"):
        problem.plans()


# ---- the peer -------------------------------------------------------------------------------------------------------


class StandIn:
    """In the place of humming-kernels' matrix: its steps in torch, with the activation that it would compile."""

    name = "humming-kernels"

    def __init__(self, matrix: MoeMatrix) -> None:
        self.matrix = matrix

    def block(self, rows: int) -> int:
        return 16

    def prepare(self, x: torch.Tensor, **activation: str) -> tuple[Call, dict]:
        if not activation:
            return (lambda: None), {"inputs": x}
        assert activation["activation_type"] == "binary_split"
        filled = x.new_empty(len(x), x.shape[1] // 2)
        code = activation["activation_impl"].replace("f *", " *").replace("f)", ")").replace("f,", ",")
        code = code.replace("1.0f", "1.0")

        def run() -> None:
            a, b = x.float().chunk(2, 1)
            names = {"fminf": lambda u, v: u.clamp(max=v), "fmaxf": lambda u, v: u.clamp(min=v), "__expf": torch.exp}
            filled.copy_(eval(code, {"a": a, "b": b, **names}))

        return run, {"inputs": filled}

    def products(self, prepared: dict, out: torch.Tensor, routings: list[torch.Tensor]) -> list[Call]:
        def run(ids: torch.Tensor) -> None:
            rows = prepared["inputs"].double().repeat_interleave(ids.shape[1], 0)
            for expert in ids.unique().tolist():
                chosen = ids.view(-1) == expert
                out[chosen] = self.matrix.multiply(rows[chosen], rows[chosen], expert, slice(None))[0].bfloat16()

        return [lambda ids=ids: run(ids) for _, ids in rotation(self.matrix.weights, routings)]


@pytest.mark.parametrize("case", [WITH_BIAS, WITHOUT_BIAS], ids=str)
def test_the_peers_layer_is_the_same(case: LayerCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_layer, "HummingKernels", StandIn)
    problem = make(case)
    peer = problem.matrix.peers["humming-kernels"]
    calls = problem.references()["humming-kernels"]()
    problem.verify(calls, repeats=2)
    with Recorder() as recorder:
        calls[0]()
    ours = [name for name in recorder.names if name.startswith("humming.")]
    assert ours == ["humming.moe_align.out", "humming.moe_reduce.out"]
    assert {"humming-kernels aligner", "humming-kernels sum over experts"} == set(peer.notes)


# ---- rows and runs --------------------------------------------------------------------------------------------------


def test_a_row_has_what_a_target_asks_for() -> None:
    problem = make(SMOKE[1])
    row = {**problem.matrix.case.key(17), **bench.stamp(CPU, [])} | bench.measure(problem, timing.Ceilings(CPU), 1)
    assert json.loads(json.dumps(row)) == row
    assert (row["op"], row["part"], row["routing"], row["experts"]) == ("fused_moe", "layer", "balanced", 8)
    assert (row["draws"], row["gemm_us"], row["library"], row["peer"], row["instance"]) == (8, None, None, None, None)
    problem = {name: row[name] for name in ("op", "n", "k", "weight", "activation", "tokens")}
    target = results.Target(work="a layer", kind="us", limit=row["us"], **problem)
    assert results.judge(target, [row]).is_met
    assert f"{row['active_experts']:.1f} experts, balanced" in results.line(row)


def test_smoke_runs_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--device", "cpu", "--part", "layer-smoke", "--repeats", "1", "--results", str(tmp_path)]
    assert bench.main(arguments) == 0
    printed = capsys.readouterr().out
    total = sum(len(case.tokens) for case in SMOKE)
    assert f"[{total}/{total}]" in printed and "WRONG" not in printed
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_layer_has_no_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(LayerProblem, "_call", lambda self, layer, routing: lambda: self.out.zero_())
    assert bench.main(["--device", "cpu", "--part", "layer-smoke", "--tokens", "1"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("WRONG: ") == 4 and "4 WRONG results" in printed


def test_a_layer_is_tuned_by_its_products() -> None:
    """Of quantised tokens by expert, of others by index, as the layer multiplies them."""
    fp8, bf16 = PARTS["layer-deepseek"]
    found = [[(p.matrix, p.layout, p.n, p.k, p.tokens) for p in case.products((64, 8192))] for case in (fp8, bf16)]
    down = ("down", "contiguous", 4096, 2048, (64, 8192))
    assert found[0] == [down, ("gate_up", "contiguous", 4096, 4096, (64, 8192))]
    assert found[1] == [down, ("gate_up", "indexed", 4096, 4096, (64, 8192))]
