"""Measures PackedWeight.pack of DeepSeek-V4-Flash's experts from pinned host memory, beside a copy of the same bytes.

    python -m benchmarks.packing

Rows go to RESULTS/<gpu>/packing.jsonl, one per layer: the time to pack both weights, expert by expert, which are held
against the oracle first; as `library` a plain copy to the GPU; and the memory that packing needs beside its result.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

import numpy as np
import torch
from humming_ext import PackedWeight

from .bench import ROOT, ROUNDS, gpu_slug, stamp
from .cases import MXFP4, PARTS, LayerCase, MoeCase
from .problem import SAMPLED_ROWS, WrongResultError, sample
from .results import Row, load, merge, save

# Found by way of bench, which knows where the oracle is.
from oracle.weights import dequantise, unpack_bitstream  # isort: skip

CASES: dict[str, list[LayerCase]] = {
    "cuda": PARTS["layer-deepseek"],
    "cpu": [case for case in PARTS["layer-smoke"] if case.scheme is MXFP4],
}


class Experts:
    """One matrix of every expert as a checkpoint has it, random, in host memory, pinned for a GPU.

    codes: uint8 [experts, n, k / 2], two e2m1 codes per byte. scale: e8m0 as uint8 [experts, n, ceil(k / 32)].
    """

    def __init__(self, case: MoeCase, device: torch.device) -> None:
        self.case, self.device = case, device
        torch.manual_seed(case.n + case.k)
        rows, pinned = (case.experts, case.n), device.type == "cuda"
        self.codes = torch.empty(*rows, case.k // 2, dtype=torch.uint8, pin_memory=pinned).random_(256)
        groups = -(-case.k // case.scheme.group)
        # 8 binades: within the window that e4m3 operands hold.
        self.scale = torch.empty(*rows, groups, dtype=torch.uint8, pin_memory=pinned).random_(116, 124)

    @property
    def parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is read."""
        return self.codes, self.scale

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return sum(part.nbytes for part in self.parts)

    def pack(self) -> PackedWeight:
        """The packed weight on the device."""
        case = self.case
        return PackedWeight.pack(*self.parts, spec=case.spec, k=case.k, code_bits=4, device=self.device)

    def verify(self, weight: PackedWeight) -> None:
        """Raises WrongResultError unless rows of the first and the last expert are the oracle's, bit for bit."""
        case = self.case
        rows = sample(case.n, SAMPLED_ROWS, np.random.default_rng(case.n))
        for expert in (0, case.experts - 1):
            scale2 = None if weight.scale2 is None else weight.scale2[expert].reshape(-1)
            own = PackedWeight(weight.packed[expert], scale2, list(weight.fields._replace(experts=0))).dequantize()
            codes, exponent = (part[expert].numpy()[rows] for part in self.parts)
            exact = dequantise(
                unpack_bitstream(codes, 4, case.k),
                case.scheme.format.name,
                scale=np.exp2(exponent.astype(np.float64) - 127),
                group=case.scheme.group,
            )
            if wrong := int((own.cpu().double().numpy()[rows] != exact).sum()):
                raise WrongResultError(f"expert {expert}: {wrong} of {exact.size} weights differ")


def measure(case: LayerCase, device: torch.device) -> Row:
    """Verifies, then times both matrices of a layer. Raises WrongResultError."""
    matrices = [Experts(part, device) for part in (case, case.down)]
    peak = max(_verified(experts) for experts in matrices)
    copies = [(part, torch.empty_like(part, device=device)) for experts in matrices for part in experts.parts]

    def pack() -> None:
        for experts in matrices:
            experts.pack()

    def copy() -> None:
        for source, target in copies:
            target.copy_(source, non_blocking=True)

    # Waiting and allocating are part of packing, so what is timed is the call and not a graph.
    own, plain = zip(*((_us(pack, device), _us(copy, device)) for _ in range(ROUNDS)), strict=True)
    us, nbytes = median(own), sum(experts.nbytes for experts in matrices)
    return {
        "us": us,
        "us_min": min(own),
        "us_max": max(own),
        "gbs": nbytes / us / 1e3,
        "library": "host-to-device copy",
        "library_us": median(plain),
        "library_ratio": median(theirs / ours for theirs, ours in zip(plain, own, strict=True)),
        "bytes": nbytes,
        "peak_experts": peak if device.type == "cuda" else None,
        "rounds": ROUNDS,
    }


def _verified(experts: Experts) -> float:
    """The device memory that packing takes beside its result at most, in experts as they were read; 0 on a CPU."""
    is_cuda = experts.device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    weight = experts.pack()
    extra = torch.cuda.max_memory_allocated() - before - weight.nbytes if is_cuda else 0
    experts.verify(weight)
    return extra * experts.case.experts / experts.nbytes


def _us(call: Callable[[], None], device: torch.device) -> float:
    """Microseconds until the device is done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return 1e6 * (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, 1 after a wrong result."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=CASES, default="cuda", help="cpu: a small smoke run, which writes nothing")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the rows (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; --device cpu tries the benchmark out")
    shared = stamp(device, ["python", "-m", "benchmarks.packing", *arguments])
    wrong = 0
    for case in CASES[options.device]:
        row = {**case.key(0), "op": "prepack", "routing": None, **shared}
        row["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            row |= measure(case, device)
            print(_line(row), flush=True)
        except WrongResultError as error:
            row["error"] = str(error)
            wrong += 1
            print(f"{case} WRONG: {error}", flush=True)
        if device.type == "cuda":
            path = options.results / gpu_slug(row["gpu"]) / "packing.jsonl"
            save(path, merge(load(path), row))
    return int(wrong > 0)


def _line(row: Row) -> str:
    memory = "" if row["peak_experts"] is None else f", {row['peak_experts']:.2f} experts of memory beside the result"
    name = f"{row['weight']} x {row['activation']}, {row['experts']} experts"
    copied = f"copied in {row['library_us'] / 1e3:.1f} ms, {row['library_ratio']:.2f} of the time"
    return f"{name}: {row['us'] / 1e3:.1f} ms, {row['gbs']:.1f} GB/s; {copied}{memory}"


if __name__ == "__main__":
    sys.exit(main())
