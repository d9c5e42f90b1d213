"""Times: graph replay over rotating calls, the machine's ceilings, and the floor that follows from them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from humming_ext import Operand

from .references import library_calls

Call = Callable[[], object]

IDLE_TOKENS = 256  # from here on a GPU throttles when it is timed back to back: 15 % at 256 tokens
IDLE_SECONDS = 0.4
REPLAYS = 20
_REPLAY_US = 1000.0  # at least this long, so that what lies between two replays does not count
_MAX_GRAPHS = 8
_WARM_UPS = 3


@dataclass(frozen=True)
class Work:
    """What a problem must move and multiply."""

    bytes: int  # packed weights and scales once, activations read, outputs written; no padding
    flops: int
    operand: Operand

    def floor_us(self, bandwidth: float, rate: float) -> float:
        """The larger of the times that memory at `bandwidth` (bytes/s) and the product at `rate` (flop/s) take."""
        return 1e6 * max(self.bytes / bandwidth, self.flops / rate)


class Timer:
    """Times calls that do the same work on different weights, in rotation.

    On CUDA the calls are captured into graphs, which together rotate through all of them at least once. A replay runs
    `calls_per_replay` of them. On other devices calls are simply made: a smoke mode, whose times mean nothing.
    """

    def __init__(self, calls: Sequence[Call], device: torch.device, estimate_us: float) -> None:
        wanted = math.ceil(_REPLAY_US / max(estimate_us, 2.0)) if device.type == "cuda" else 1
        self.calls_per_replay = max(2, wanted, math.ceil(len(calls) / _MAX_GRAPHS))
        num_graphs = math.ceil(len(calls) / self.calls_per_replay)
        rotation = [calls[i % len(calls)] for i in range(num_graphs * self.calls_per_replay)]
        parts = [rotation[i * self.calls_per_replay :][: self.calls_per_replay] for i in range(num_graphs)]
        self.last = (len(rotation) - 1) % len(calls)  # the call that `replay` ends with
        self._calls = calls  # graphs do not keep the tensors that they read
        self._device, self._is_cuda = device, device.type == "cuda"
        self.replays = REPLAYS if self._is_cuda else 2
        self._replays = _capture(parts) if self._is_cuda else [run_all(part) for part in parts]

    def replay(self) -> None:
        """Runs every call of the rotation once, untimed, and waits."""
        for replay in self._replays:
            replay()
        if self._is_cuda:
            torch.cuda.synchronize()

    def sample(self, replays: int | None = None) -> list[float]:
        """Microseconds per call, one number for each of `replays` replays; warm-up replays run before them."""
        replays = self.replays if replays is None else replays
        # All are queued at once: the GPU never waits for the host, and an event between two replays ends one and
        # starts the next.
        for i in range(_WARM_UPS):
            self._replays[i % len(self._replays)]()
        marks = [mark(self._device)]
        for i in range(replays):
            self._replays[i % len(self._replays)]()
            marks.append(mark(self._device))
        if self._is_cuda:
            torch.cuda.synchronize()
        return [span / self.calls_per_replay for span in spans(marks)]


def mark(device: torch.device) -> Any:
    """This point of time, on CUDA of the current stream."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def spans(marks: Sequence[Any]) -> list[float]:
    """Microseconds from each mark to the next; the device is done with all."""
    return [
        (end - start) * 1e6 if isinstance(start, float) else start.elapsed_time(end) * 1e3
        for start, end in pairwise(marks)
    ]


def run_all(calls: Sequence[Call]) -> Call:
    """One call that makes all of them in turn."""

    def run() -> None:
        for call in calls:
            call()

    return run


def _capture(parts: Sequence[Sequence[Call]]) -> list[Call]:
    """A graph for each part. What is set up by a first call (compilation, library workspaces) happens before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in parts[0][:2]:
            call()
    torch.cuda.synchronize()
    graphs = []
    for part in parts:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in part:
                call()
        graphs.append(graph)
    torch.cuda.synchronize()
    return [graph.replay for graph in graphs]


def sample_in_turn(timers: Mapping[str, Timer], rounds: int, *, idle: bool) -> dict[str, list[list[float]]]:
    """`rounds` samples of every timer, the timers in turn; with `idle` the GPU cools down before each sample."""
    samples: dict[str, list[list[float]]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            if idle:
                time.sleep(IDLE_SECONDS)
            samples[name].append(timer.sample())
    return samples


def ratio(others: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> float:
    """Their time over ours: the median over the rounds, each the ratio of its medians. Above 1 we are faster."""
    return median(median(theirs) / median(own) for theirs, own in zip(others, ours, strict=True))


class Ceilings:
    """What this machine can do, measured when first asked for: the denominators of every floor."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rates: dict[Operand, float] = {}
        # On a CPU only the arithmetic is of interest.
        self._read_bytes, self._size, self._tokens = (
            (1 << 31, 8192, (1024, 4096)) if device.type == "cuda" else (1 << 20, 64, (16,))
        )

    @cached_property
    def bandwidth(self) -> float:
        """Bytes per second of a read-only sweep, `torch.sum` over int64."""
        data = torch.randint(1 << 62, (self._read_bytes // 8,), dtype=torch.int64, device=self._device)
        timer = Timer([lambda: torch.sum(data)], self._device, 500.0)
        return data.nbytes / median(timer.sample()) * 1e6

    def rate(self, operand: Operand) -> float:
        """The best flop/s that the library reaches with this operand type on large square weights."""
        if operand not in self._rates:
            self._rates[operand] = max(self._rate(operand, tokens) for tokens in self._tokens)
        return self._rates[operand]

    def _rate(self, operand: Operand, tokens: int) -> float:
        flops = 2 * tokens * self._size**2
        timer = Timer(library_calls(operand, tokens, self._size, self._size, self._device), self._device, flops / 1e9)
        return flops / median(sample_in_turn({"": timer}, 1, idle=self._device.type == "cuda")[""][0]) * 1e6
