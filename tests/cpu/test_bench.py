"""The benchmark without a GPU: its arithmetic, its files, its gate, and one whole run in smoke mode."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import humming_ext
import numpy as np
import pytest
import torch
from oracle.weights import pack_bitstream

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import bench, references, results, retune, timing  # noqa: E402
from benchmarks.cases import ACTIVATIONS, PARTS, Case  # noqa: E402
from benchmarks.gemm import GemmMatrix, GemmProblem  # noqa: E402
from benchmarks.problem import WrongResultError  # noqa: E402

CPU = torch.device("cpu")
SMOKE = {f"{case.scheme.name} x {case.activation}": case for case in PARTS["smoke"]}


def a_row(**fields: object) -> results.Row:
    key = PARTS["smoke"][0].key(16)
    times = {"us": 10.0, "tflops": 100.0, "gbs": 1000.0, "floor_us": 8.0, "floor_percent": 80.0, "library_ratio": 1.5}
    peer = {"peer_us": 12.0, "ratio": 1.2}
    return {**key, **times, **peer, "binary": "new", "time": "2026-01-02T00:00:00+00:00", **fields}


# ---- cases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_every_case_can_be_packed_and_is_listed_once(part: str) -> None:
    keys = set()
    for case in PARTS[part]:
        desc = case.spec.desc(case.n, case.k)
        plan = humming_ext.explain(desc, ACTIVATIONS[case.activation], max(case.tokens))
        assert "widened" not in plan, f"{case} would not run in the operand type of its activations"
        keys |= {results.key_of(case.key(tokens)) for tokens in case.tokens}
    assert len(keys) == sum(len(case.tokens) for case in PARTS[part])


def test_targets_are_about_cases() -> None:
    gpu, targets = results.load_targets()
    rows = [case.key(tokens) for cases in PARTS.values() for case in cases for tokens in case.tokens]
    assert gpu == bench.gpu_slug("NVIDIA H200")
    assert len(targets) > 30
    for target in targets:
        assert any(target.fits(row) for row in rows), target


@pytest.mark.parametrize(
    ("name", "slug"),
    [("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("cpu", "cpu")],
)
def test_slugs(name: str, slug: str) -> None:
    assert bench.gpu_slug(name) == slug


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def test_the_floor_is_the_larger_of_memory_and_product() -> None:
    work = timing.Work(bytes=4_000_000, flops=2_000_000_000, operand=humming_ext.Operand.bf16)
    assert work.floor_us(bandwidth=4e12, rate=1e15) == pytest.approx(2.0)
    assert work.floor_us(bandwidth=4e12, rate=4e14) == pytest.approx(5.0)


def test_the_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    theirs, ours = [[10, 12, 99], [30, 30, 30], [8, 8, 8]], [[10, 10, 10], [20, 20, 99], [10, 10, 10]]
    assert timing.ratio(theirs, ours) == pytest.approx(1.2)  # of 1.2, 1.5 and 0.8


@pytest.mark.parametrize(
    ("name", "weight_bits", "row_bytes", "x_bytes"),
    [
        ("int4-g128 x bf16", 4 + 16 / 128, 2, 2),  # the row bytes: its bias
        ("uint4-g128-zp x bf16", 4 + 24 / 128, 0, 2),
        ("e2m1-g32-e8m0 x e4m3", 4 + 8 / 32, 4, 1),
        ("int4-channel x int8", 4, 4, 1),
    ],
)
def test_bytes_are_counted_without_padding(name: str, weight_bits: float, row_bytes: int, x_bytes: int) -> None:
    case = replace(SMOKE[name], n=200, k=384)  # packed rows are a multiple of 64
    work = GemmMatrix(case, CPU, (3,)).problem(3).work
    tokens = 3 * 384 * x_bytes + (12 if x_bytes == 1 else 0) + 3 * 200 * 2
    assert work.bytes == 200 * 384 * weight_bits / 8 + 200 * row_bytes + tokens
    assert work.flops == 2 * 3 * 200 * 384


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_the_peers_weights_are_bit_streams(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (5, 64)).astype(np.uint8)
    words = references.bit_words(torch.from_numpy(codes), bits)
    assert words.dtype == torch.int32 and list(words.shape) == [5, 64 * bits // 32]
    assert np.array_equal(words.view(torch.uint8).numpy(), pack_bitstream(codes, bits))


class FakeGpu:
    """Stands in for torch.cuda: graphs collect calls, replays run them, every call takes 3 us."""

    def __init__(self) -> None:
        self.now, self.recording, self.graphs = 0.0, None, []
        self.Stream = lambda: SimpleNamespace(wait_stream=lambda other: None)
        self.CUDAGraph, self.Event = self._graph, self._event

    def call(self, number: int, log: list[int]) -> Callable[[], None]:
        def run() -> None:
            if self.recording is not None:
                self.recording.append(run)
            else:
                log.append(number)
                self.now += 3e-3

        return run

    def _graph(self) -> SimpleNamespace:
        calls: list[Callable[[], None]] = []
        self.graphs.append(calls)
        return SimpleNamespace(calls=calls, replay=lambda: [call() for call in calls])

    def _event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(record=lambda: setattr(event, "at", self.now))
        event.elapsed_time = lambda end: end.at - event.at
        return event

    @contextmanager
    def graph(self, graph: SimpleNamespace, stream: object):
        self.recording = graph.calls
        yield
        self.recording = None

    @contextmanager
    def stream(self, stream: object):
        yield

    def current_stream(self) -> None: ...

    def synchronize(self) -> None: ...


@pytest.mark.parametrize(("num_calls", "estimate_us"), [(8, 10.0), (8, 1400.0), (1300, 4.0)])
def test_graphs_rotate_through_all_weights(monkeypatch: pytest.MonkeyPatch, num_calls: int, estimate_us: float) -> None:
    gpu, log = FakeGpu(), []
    monkeypatch.setattr(torch, "cuda", gpu)
    calls = [gpu.call(number, log) for number in range(num_calls)]
    timer = timing.Timer(calls, torch.device("cuda"), estimate_us)
    assert log == [0, 1]  # before the graphs are captured
    assert len(gpu.graphs) <= 8 and {len(graph) for graph in gpu.graphs} == {timer.calls_per_replay}
    assert timer.calls_per_replay >= 2 and timer.calls_per_replay * estimate_us >= 1000
    log.clear()
    timer.replay()
    assert set(log) == set(range(num_calls))
    assert all((second - first) % num_calls == 1 for first, second in pairwise(log))
    assert timer.sample() == pytest.approx([3.0] * timing.REPLAYS)


def test_samples_are_taken_in_turn_after_idling(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []
    monkeypatch.setattr(time, "sleep", events.append)
    timers = {name: SimpleNamespace(sample=lambda name=name: events.append(name) or [1.0]) for name in ("us", "peer")}
    assert timing.sample_in_turn(timers, 2, idle=True) == {"us": [[1.0], [1.0]], "peer": [[1.0], [1.0]]}
    assert events == [0.4, "us", 0.4, "peer"] * 2


# ---- verification ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem() -> GemmProblem:
    return GemmMatrix(SMOKE["int4-g128 x bf16"], CPU, (17,)).problem(17)


def test_right_results_pass_and_their_error_is_small(problem: GemmProblem) -> None:
    problem.verify(problem.calls, repeats=3)
    assert 0 < problem.error() < 0.01


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out, turn: out[16, 3:5].fill_(float("nan")), "2 of 4352 elements are not written"),
        (lambda out, turn: out.mul_(1.1), "worst error"),
        (lambda out, turn: out[0, 0].add_(turn), "run 2: 1 of 4352 elements differ"),
    ],
)
def test_wrong_results_are_found(problem: GemmProblem, damage: Callable, words: str) -> None:
    turns = []

    def wrong() -> None:
        problem.calls[0]()
        damage(problem.out, len(turns))
        turns.append(None)

    with pytest.raises(WrongResultError, match=words):
        problem.verify([wrong], repeats=2)


def test_a_wrong_result_has_no_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(GemmProblem, "_call", lambda self, op, weight: lambda: self.out.zero_())
    arguments = ["--device", "cpu", "--part", "smoke", "--format", "int2-g128", "--tokens", "1"]
    assert bench.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "WRONG: " in printed and "1 WRONG results" in printed


# ---- files ----------------------------------------------------------------------------------------------------------


def test_rows_are_replaced_by_key_and_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "h200" / "part.jsonl"
    assert results.load(path) == []
    rows = [a_row(us=1.0), a_row(us=2.0, tokens=3), a_row(us=3.0, weight="other", binary="old")]
    results.save(path, results.merge(rows, a_row(us=4.0)))
    assert [(row["tokens"], row["weight"], row["us"]) for row in results.load(path)] == [
        (3, "int4-g128", 2.0),
        (16, "int4-g128", 4.0),
        (16, "other", 3.0),
    ]
    assert [path.name for path in path.parent.iterdir()] == ["part.jsonl"]


def test_what_is_measured_already_depends_on_the_kernels(tmp_path: Path) -> None:
    key = PARTS["smoke"][0].key(0)
    rows = [a_row(tokens=16), a_row(tokens=1), a_row(tokens=3, error="wrong"), a_row(tokens=8, weight="other")]
    assert [row["tokens"] for row in results.measured(rows, key, "new")] == [1, 16]
    assert results.measured(rows, key, "old") == []


def run_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[tuple[str, int]]:
    """What a run measured, on a pretended GPU."""
    measured = []

    def measure(problem: SimpleNamespace, ceilings: object, repeats: int) -> results.Row:
        measured.append((problem.case.scheme.name, problem.tokens))
        return {
            name: a_row()[name] for name in ("us", "tflops", "gbs", "floor_us", "floor_percent", "peer_us", "ratio")
        }

    def load(self: bench.Run, case: Case, tokens: list[int]) -> SimpleNamespace:
        weights = SimpleNamespace(case=case, problem=lambda count: SimpleNamespace(case=case, tokens=count))
        weights.of = lambda case: weights
        return weights

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench.Run, "load", load)
    options = bench._parser().parse_args(["--results", str(tmp_path), "--part", "smoke", *arguments])
    stamp = {"gpu": "NVIDIA H200", "binary": "new"}
    run = bench.Run(options, torch.device("cuda"), stamp, time.monotonic() + options.seconds)
    bench.run_part(run, "smoke", None)
    return measured


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_smoke(tmp_path, monkeypatch, "--seconds", "-1") == []
    some = ("--format", "int4-g128", "--activation", "bf16")
    assert run_smoke(tmp_path, monkeypatch, *some, "--tokens", "17") == [("int4-g128", 17)]
    assert run_smoke(tmp_path, monkeypatch, *some) == [("int4-g128", 1)]
    assert run_smoke(tmp_path, monkeypatch, *some) == []
    assert run_smoke(tmp_path, monkeypatch, *some, "--force") == [("int4-g128", 1), ("int4-g128", 17)]
    assert len(results.load(tmp_path / "h200" / "smoke.jsonl")) == 2


def test_lines_show_times_and_say_what_is_wrong() -> None:
    assert results.line(a_row()).endswith(" 10.00    100.0   1000    80%     12.00  1.20")
    assert results.line(a_row(peer_us=None, ratio=None)).endswith("-     -")
    assert results.line(a_row(error="worst error 3 at (0, 1)")).endswith("WRONG: worst error 3 at (0, 1)")


def test_plots_have_a_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, the extra `bench`, is not installed")
    results.save(tmp_path / "h200" / "part.jsonl", [a_row(tokens=tokens, library_us=20.0) for tokens in (1, 16)])
    assert bench.main(["--plot", "--results", str(tmp_path)]) == 0
    assert (tmp_path / "h200" / "part.png").read_bytes().startswith(b"\x89PNG")


# ---- the gate -------------------------------------------------------------------------------------------------------


def a_target(kind: str, limit: float, **fields: object) -> results.Target:
    problem = {name: a_row()[name] for name in ("n", "k", "weight", "activation", "tokens")}
    return results.Target(**{"work": "a line", **problem, "kind": kind, "limit": limit, **fields})


@pytest.mark.parametrize(
    ("kind", "limit", "plus_us", "miss"),
    [
        ("us", 10.0, 0, 0.0),
        ("us", 8.0, 0, 25.0),
        ("tflops", 100.0, 0, 0.0),
        ("tflops", 110.0, 0, 10.0),
        ("of_library", 1.5, 0, 0.0),
        ("of_library", 1.8, 0, 20.0),
        ("of_floor", 1.25, 1, 0.0),  # 10 us: 1.25 x 8
        ("of_floor", 1.15, 2, 0.0),  # 10 us: 8 + 2
        ("of_floor", 1.0, 0, 25.0),
    ],
)
def test_misses_are_in_percent_of_the_limit(kind: str, limit: float, plus_us: float, miss: float) -> None:
    verdict = results.judge(a_target(kind, limit, plus_us=plus_us), [a_row()])
    assert verdict.miss == pytest.approx(miss, abs=1e-9) and verdict.is_met == (miss == 0)


@pytest.mark.parametrize("kind", ["us", "tflops", "of_library", "of_floor"])
@pytest.mark.parametrize("rows", [[], [a_row(tokens=1)], [a_row(error="wrong")], [a_row(n=8)]])
def test_a_target_without_a_row_is_not_met(kind: str, rows: list) -> None:
    verdict = results.judge(a_target(kind, 1.0), rows)
    assert verdict.miss is None and not verdict.is_met and "no row" in str(verdict)


def test_a_library_that_was_not_timed_is_no_measurement() -> None:
    assert not results.judge(a_target("of_library", 1.0), [a_row(library_ratio=None)]).is_met


def test_the_gate_passes_and_names_what_it_does_not() -> None:
    met = [a_target("us", 10.0)]
    assert results.gate([a_row()], met)
    assert results.gate([a_row(peer_us=None, ratio=None)], met)
    assert not results.gate([a_row(ratio=0.97)], met)
    assert not results.gate([a_row(), a_row(tokens=1, error="wrong")], met)
    assert not results.gate([a_row()], [*met, a_target("us", 9.9)])
    assert not results.gate([], met)


def test_the_gate_takes_the_kernels_measured_last() -> None:
    new = a_row(tokens=1)
    assert results.newest([a_row(binary="old", time="2026-01-01T00:00:00+00:00"), new]) == [new]
    old = a_row(binary="old", time="2026-01-03T00:00:00+00:00")
    assert results.newest([old, new]) == [old] and results.newest([]) == []


def test_the_gate_takes_every_part_and_is_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(results, "load_targets", lambda: ("gpu", [a_target("us", 10.0)]))
    assert bench.main(["--gate", "--results", str(tmp_path)]) == 1
    results.save(tmp_path / "gpu" / "one.jsonl", [a_row()])
    results.save(tmp_path / "gpu" / "other.jsonl", [a_row(binary="other", tokens=1)])
    assert bench.main(["--gate", "--results", str(tmp_path)]) == 0
    assert "2 rows of commit" in capsys.readouterr().out


# ---- tuning ---------------------------------------------------------------------------------------------------------


def test_the_fastest_right_instance_is_tuned(problem: GemmProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [
        SimpleNamespace(name=name, rejection=rejection, chosen=name == "slow")
        for name, rejection in (("slow", None), ("wrong", None), ("right", None), ("other", "is for another format"))
    ]

    def slow() -> None:
        time.sleep(0.05)
        problem.calls[0]()

    calls = {"slow": slow, "wrong": problem.out.zero_, "right": problem.calls[0]}
    monkeypatch.setattr(GemmProblem, "plans", lambda self: plans)
    monkeypatch.setattr(GemmProblem, "instance_calls", lambda self, name: [calls[name]])
    lines: list[str] = []
    row = retune.retune(problem, 1.0, "abc", lines.append)
    assert (*row.place, row.instance, row.commit) == (256, 256, 0, 17, "right", "abc")
    assert "wrong gives a wrong result" in lines[0] and "chosen was slow" in lines[1]
    monkeypatch.setattr(GemmProblem, "plans", lambda self: plans[1:2])
    with pytest.raises(WrongResultError, match="none of the 1 instances"):
        retune.retune(problem, 1.0, "abc", lines.append)


def test_tables_are_sorted_and_new_rows_replace_their_own(tmp_path: Path) -> None:
    path = tmp_path / "h200.csv"
    rows = [retune.Tuned(256, 128, 0, 16, "b", 2.0, "x"), retune.Tuned(128, 256, 8, 1, "a", 1.5, "x")]
    retune.write(path, rows)
    assert path.read_text().splitlines() == [
        *("n,k,experts,tokens,instance,us,commit", "128,256,8,1,a,1.5,x", "256,128,0,16,b,2.0,x")
    ]
    assert retune.read(path) == rows[::-1]
    new = retune.Tuned(256, 128, 0, 16, "c", 1.0, "y")
    assert retune.replaces(new, rows[0], ["b", "c"])
    assert not retune.replaces(new, rows[0], ["c"])  # b is for another format
    assert not retune.replaces(replace(new, tokens=17), rows[0], ["b", "c"])


# ---- the command line -----------------------------------------------------------------------------------------------


def test_smoke_runs_measure_every_pair_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--device", "cpu", "--part", "smoke", "--tokens", "17", "--repeats", "1", "--results", str(tmp_path)]
    assert bench.main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"[{len(PARTS['smoke'])}/{len(PARTS['smoke'])}]" in printed and "WRONG" not in printed
    assert "no humming-kernels: needs a GPU" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_row_has_all_fields_and_is_json(problem: GemmProblem) -> None:
    row = {**problem.matrix.case.key(17), **bench.stamp(CPU, ["--part", "smoke"])}
    row |= bench.measure(problem, timing.Ceilings(CPU), 1)
    wanted = {*results.KEY, "us", "us_min", "us_max", "tflops", "gbs", "floor_us", "floor_percent", "peer", "peer_us"}
    wanted |= {"ratio", "torch", "driver", "commit", "command", "binary", "instance", "pdl"}
    assert wanted <= set(json.loads(json.dumps(row)))
    assert row["us_min"] <= row["us"] <= row["us_max"] and row["peer"] is None and row["ratio"] is None
    assert row["library"] == "cublas_bf16" and row["library_us"] > 0
    assert row["tflops"] == pytest.approx(2 * 17 * 256 * 256 / row["us"] / 1e6)


def test_the_list_can_be_filtered(capsys: pytest.CaptureFixture) -> None:
    assert bench.main(["--list", "--part", "dense4096", "--format", "e2m1-g32-e8m0", "--tokens", "1", "64"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"dense4096: dense square 4096x4096 e2m1-g32-e8m0 x {activation}, tokens 1 64"
        for activation in ("bf16", "e4m3")
    ]


def test_the_package_runs_the_benchmark_of_a_checkout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "humming_ext", "bench", "--list", "--part", "smoke"]
    here = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert here.returncode == 0 and len(here.stdout.splitlines()) == len(PARTS["smoke"]), here.stderr
    elsewhere = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert elsewhere.returncode == 1 and "root of a source checkout" in elsewhere.stderr
