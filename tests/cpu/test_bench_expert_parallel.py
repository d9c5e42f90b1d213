"""The benchmark of expert parallelism without a GPU: its check, its arithmetic, its rows, a whole run on gloo."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from humming_ext.distributed import AllToAll
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import bench, expert_parallel, results  # noqa: E402
from benchmarks.layer import Layer  # noqa: E402
from benchmarks.problem import WrongResultError  # noqa: E402

CPU = torch.device("cpu")
CASE = expert_parallel.CASES["cpu"][1]  # quantised


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """This process is the only rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_layer_is_whole() -> None:
    for case in expert_parallel.CASES["cuda"]:
        assert (case.n, case.k, case.experts, case.top_k, case.limit) == (4096, 4096, 256, 6, 10.0)
        assert (case.down.n, case.down.k, case.scheme.name) == (4096, 2048, "e2m1-g32-e8m0")
        assert case.tokens == (1, 16, 64, 256, 1024, 4096) and case.routing == "balanced"
    assert [case.activation for case in expert_parallel.CASES["cuda"]] == ["e4m3", "bf16"]


def test_of_each_call_the_slowest_rank_counts() -> None:
    times = np.array([[[1, 2, 3], [9, 1, 1], [1, 1, 1]], [[2, 3, 4], [1, 1, 1], [1, 5, 1]]])
    row = expert_parallel.summary(times)  # (2, 3, 4), (9, 1, 1), (1, 5, 1)
    assert row == {"us": 9, "us_min": 7, "us_max": 11, "dispatch_us": 2, "gemm_us": 3, "combine_us": 1}


def test_two_ranks_are_measured_and_smoke_runs_write_nothing(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert expert_parallel.main(["--device", "cpu", "--ranks", "2", "--results", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert printed.count("2 ranks, 1 tokens each: ") == printed.count("2 ranks, 17 tokens each: ") == 2
    assert "WRONG" not in printed and list(tmp_path.iterdir()) == []


def swap_on_rank_1(rank: int, *rest: Any) -> None:
    """A rank that gives its first two tokens each other's result, if it is rank 1 and has two."""
    combine = AllToAll.combine

    def swapped(self: AllToAll, results: Tensor, route: Any, add: Tensor | None) -> Tensor:
        y = combine(self, results, route, add)
        return torch.cat([y[:2].flip(0), y[2:]])

    if rank == 1:
        AllToAll.combine = swapped
    expert_parallel.run_rank(rank, *rest)


def test_what_one_rank_gets_wrong_has_no_time(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    wrong = torch.multiprocessing.get_context("spawn").SimpleQueue()
    options = argparse.Namespace(device="cpu", results=tmp_path)
    torch.multiprocessing.spawn(swap_on_rank_1, (2, options, [], str(tmp_path / "store"), wrong), nprocs=2)
    assert wrong.get() == 2  # of four rows, those of 17 tokens
    printed = capfd.readouterr().out
    assert printed.count("2 ranks, 17 tokens each WRONG: ") == 2
    assert printed.count("2 ranks, 1 tokens each: ") == 2


def test_tokens_that_the_oracle_does_not_see_are_compared(alone: None) -> None:
    problem = expert_parallel.RanksProblem(Layer(CASE, CPU, [17]), 17)
    problem._sampled_rows = np.array([0, 16])
    problem.verify_ranks()
    call = problem.rank_calls[0]

    def halved() -> Tensor:
        y = call()
        y[3] /= 2
        return y

    problem.rank_calls[0] = halved
    with pytest.raises(WrongResultError, match="1 of 17 tokens differ from one process's, first token 3 of rank 0"):
        problem.verify_ranks()


def test_rows_live_beside_others(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {**expert_parallel.key(CASE, 17, 1), **bench.stamp(CPU, ["command"]), "time": "2026-01-01T00:00:00+00:00"}
    row |= expert_parallel.measure(Layer(CASE, CPU, [17]), 17)
    assert json.loads(json.dumps(row)) == row
    assert (row["op"], row["gpus"], row["tokens"], row["experts"], row["top_k"]) == ("expert_parallel_moe", 1, 17, 8, 3)
    assert row["us_min"] <= row["us"] <= row["us_max"] and row["calls"] >= 20
    assert all(0 < row[step] < row["us_max"] for step in expert_parallel.STEPS)
    assert results.compared_us(row) == row["us"]  # and not its part gemm_us

    more = {**row, **expert_parallel.key(CASE, 17, 2)}
    assert len(results.merge([row], more)) == 2
    path = tmp_path / "gpu" / "expert-parallel.jsonl"
    results.save(path, [row, more])
    monkeypatch.setattr(results, "load_targets", lambda: ("gpu", []))
    assert bench.main(["--gate", "--results", str(tmp_path)]) == 0
    results.save(path, [row, {**expert_parallel.key(CASE, 17, 2), "binary": row["binary"], "time": "", "error": "off"}])
    assert bench.main(["--gate", "--results", str(tmp_path)]) == 1


def test_what_cannot_be_run_is_refused(capsys: pytest.CaptureFixture) -> None:
    for arguments, words in [
        (["--device", "cpu", "--ranks", "3"], "3 ranks: the layer's experts cannot be divided"),
        (["--device", "cpu", "--ranks", "0"], "0 ranks"),
        *([] if torch.cuda.is_available() else [([], "torch sees no GPU")]),
    ]:
        with pytest.raises(SystemExit):
            expert_parallel.main(arguments)
        assert words in capsys.readouterr().err
