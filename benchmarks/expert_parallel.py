"""Measures ExpertParallelMoE: DeepSeek-V4-Flash's layer, its experts divided over all GPUs, one process on each.

    python -m benchmarks.expert_parallel

Rows go to RESULTS/<gpu>/expert-parallel.jsonl, one per activation and token count; `tokens` are those of each rank,
`experts` those of all. Results are first held against the oracle, and against fused_moe with all experts in one place.

Ranks wait for each other before every call, and the one that takes longest counts. Its time is split into dispatch_us,
from the call to the arrival of the tokens, their quantisation included; gemm_us, fused_moe of the rank's experts; and
combine_us, in which it may wait for others. A call reads on the host how many tokens come and is in no CUDA graph:
times contain the launches. Calls rotate through routings, as bench.py's do, and so through experts, but not through
copies of the weights: a rank's experts are many times what a cache holds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from humming_ext.distributed import AllToAll, ExpertParallelMoE, Tokens
from torch import Tensor

from .bench import ROOT, gpu_slug, stamp
from .cases import MXFP4, PARTS, LayerCase
from .layer import Layer, LayerProblem
from .problem import WrongResultError
from .results import Row, load, merge, save
from .timing import IDLE_SECONDS, IDLE_TOKENS, mark, spans

# That of the tests, found by way of bench.
from expert_parallel import shard  # isort: skip

CASES: dict[str, list[LayerCase]] = {
    "cuda": [replace(case, tokens=(1, 16, 64, 256, 1024, 4096)) for case in PARTS["layer-deepseek"]],
    "cpu": [case for case in PARTS["layer-smoke"] if case.scheme is MXFP4],
}
CALLS = 24  # timed
WARM_UPS = 3
STEPS = ("dispatch_us", "gemm_us", "combine_us")
# Of a row's size, against one process. Roundings to bf16 add up to about 2^-8; where another kernel rounds the largest
# element of an inner row otherwise, the row is quantised otherwise, up to 2^-5. Another token's row differs by all.
_ROW_ERROR = 2.0**-4


class MarkedAllToAll(AllToAll):
    """Marks the time at the end of `dispatch` and at the beginning of `combine`."""

    def __init__(self, experts_per_rank: int, device: torch.device) -> None:
        super().__init__(experts_per_rank)
        self._device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Appends this point of time to `marks`."""
        self.marks.append(mark(self._device))

    def dispatch(self, tokens: Tokens) -> tuple[Tokens, Any]:
        result = super().dispatch(tokens)
        self.mark()
        return result

    def combine(self, results: Tensor, route: Any, add: Tensor | None) -> Tensor:
        self.mark()
        return super().combine(results, route, add)


class RanksProblem(LayerProblem):
    """The tokens of all ranks as a problem of one process, and `rank_calls`, each the layer of this rank's tokens.

    The same on every rank: weights, tokens and routings come from seeds.
    """

    def __init__(self, matrix: Layer, tokens: int) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(tokens)
        super().__init__(matrix, tokens * self.ranks)
        mine = slice(self.rank * tokens, (self.rank + 1) * tokens)
        experts = shard(matrix.weights[0], self.rank, self.ranks, matrix.device)
        self.dispatcher = MarkedAllToAll(matrix.case.experts // self.ranks, matrix.device)
        layer = ExpertParallelMoE(experts, self.dispatcher)
        x = self.x16[mine]
        self.rank_calls = [partial(layer, x, weights[mine], ids[mine]) for weights, ids in self._routings]

    def verify_ranks(self) -> None:
        """Raises WrongResultError, on every rank or none, if not all ranks have right results, the same twice."""
        results = [self._of_all_ranks(call()) for call in 2 * self.rank_calls]
        error = None
        try:
            self.verify([partial(self.out.copy_, result) for result in results], len(self.rank_calls))
            self._compare_with_one_process(results)
        except WrongResultError as found:
            error = str(found)
        if errors := [text for text in self._gathered(error) if text is not None]:
            raise WrongResultError(errors[0])

    def times(self) -> np.ndarray:
        """Microseconds [ranks, CALLS, STEPS]."""
        device, marks = self.matrix.device, []
        if self.tokens >= IDLE_TOKENS and device.type == "cuda":
            time.sleep(IDLE_SECONDS)
        for i in range(WARM_UPS + CALLS):
            dist.barrier()
            if device.type == "cuda":
                torch.cuda.synchronize()
            self.dispatcher.marks = []
            self.dispatcher.mark()
            self.rank_calls[i % len(self.rank_calls)]()
            self.dispatcher.mark()
            marks.append(self.dispatcher.marks)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return np.array(self._gathered([spans(part) for part in marks[WARM_UPS:]]))

    def _compare_with_one_process(self, results: Sequence[Tensor]) -> None:
        """All tokens, of which the oracle sees a sample: whether each got its own result."""
        for call, result in zip(self.calls[: self.num_products], results, strict=False):
            call()
            size = self.out.float().norm(dim=1)
            differs = ~((result.float() - self.out.float()).norm(dim=1) <= _ROW_ERROR * size)
            if wrong := int(differs.sum()):
                first = divmod(int(differs.nonzero()[0]), self.tokens // self.ranks)
                place = "token {1} of rank {0}".format(*first)
                raise WrongResultError(f"{wrong} of {len(differs)} tokens differ from one process's, first {place}")

    def _of_all_ranks(self, result: Tensor) -> Tensor:
        """[tokens of all ranks, outer]."""
        out = torch.empty_like(self.out)
        dist.all_gather(list(out.view(torch.uint8).chunk(self.ranks)), result.view(torch.uint8))
        return out

    def _gathered(self, value: Any) -> list[Any]:
        values = [None] * self.ranks
        dist.all_gather_object(values, value)
        return values


def summary(times: np.ndarray) -> Row:
    """The fields of a row from microseconds [ranks, calls, STEPS]: medians over calls, of each its slowest rank's."""
    whole = times.sum(2)
    slowest = times[whole.argmax(0), np.arange(times.shape[1])]
    us = whole.max(0)
    steps = zip(STEPS, np.median(slowest, axis=0).tolist(), strict=True)
    return {"us": float(np.median(us)), "us_min": float(us.min()), "us_max": float(us.max()), **dict(steps)}


def measure(matrix: Layer, tokens: int) -> Row:
    """Verifies, then times the layer with so many tokens on every rank. Raises WrongResultError on every rank."""
    problem = RanksProblem(matrix, tokens)
    problem.verify_ranks()
    facts = {name: problem.facts[name] for name in ("top_k", "active_experts", "draws")}
    return {**summary(problem.times()), **facts, "calls": CALLS}


def key(case: LayerCase, tokens: int, ranks: int) -> Row:
    """The fields of a row that say what was measured."""
    return {**case.key(tokens), "op": "expert_parallel_moe", "part": f"EP{ranks} layer", "gpus": ranks}


def run_rank(
    rank: int, ranks: int, options: argparse.Namespace, command: Sequence[str], store: str, wrong: Any
) -> None:
    """What the process of a rank does. Rank 0 prints and writes the rows, and puts how many are wrong into a queue."""
    is_cuda = options.device == "cuda"
    device = torch.device("cuda", rank) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if is_cuda else "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        shared, count = stamp(device, command) if rank == 0 else {}, 0
        for case in CASES[options.device]:
            matrix = Layer(case, device, [max(case.tokens) * ranks])
            for tokens in case.tokens:
                row = {**key(case, tokens, ranks), **shared}
                row["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
                try:
                    row |= measure(matrix, tokens)
                except WrongResultError as error:
                    row["error"] = str(error)
                    count += 1
                if rank == 0:
                    print(_line(row), flush=True)
                if rank == 0 and is_cuda:
                    path = options.results / gpu_slug(row["gpu"]) / "expert-parallel.jsonl"
                    save(path, merge(load(path), row))
            del matrix  # before the next is there
        if rank == 0:
            wrong.put(count)
    finally:
        dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, 1 after a wrong result."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.expert_parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=CASES, default="cuda", help="cpu: a small smoke run on gloo, which writes nothing")
    add("--ranks", type=int, help="processes, by default one for each GPU that torch sees, and 2 on a CPU")
    add(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the rows (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    gpus = torch.cuda.device_count()
    if options.device == "cuda" and not gpus:
        parser.error("--device cuda: torch sees no GPU; --device cpu tries the benchmark out")
    ranks = (gpus if options.device == "cuda" else 2) if options.ranks is None else options.ranks
    if ranks < 1 or any(case.experts % ranks for case in CASES[options.device]):
        parser.error(f"{ranks} ranks: the layer's experts cannot be divided over them evenly; choose --ranks")
    if options.device == "cuda" and ranks > gpus:
        parser.error(f"--ranks {ranks}: torch sees {gpus} GPUs")
    command = ["python", "-m", "benchmarks.expert_parallel", *arguments]
    wrong = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        rest = (ranks, options, command, str(Path(folder) / "store"), wrong)
        torch.multiprocessing.spawn(run_rank, rest, nprocs=ranks)
    return int(wrong.get() > 0)


def _line(row: Row) -> str:
    name = f"{row['weight']} x {row['activation']}, {row['gpus']} ranks, {row['tokens']} tokens each"
    if "error" in row:
        return f"{name} WRONG: {row['error']}"
    return f"{name}: {row['us']:.1f} us; " + ", ".join(f"{step[:-3]} {row[step]:.1f}" for step in STEPS)


if __name__ == "__main__":
    sys.exit(main())
