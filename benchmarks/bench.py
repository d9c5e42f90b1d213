#!/usr/bin/env python3
"""Measures the ops and holds them against targets. Run from a source checkout, beside the installed package.

A row is verified against the oracle before it is timed; what is wrong gets no time, and the exit status is 1. Rows go
to RESULTS/<gpu>/<part>.jsonl; what these kernels were measured for already is left out, so an interrupted run goes on
where it stopped. humming-kernels is timed beside if it is installed; HUMMING_CACHE_DIR keeps what it compiles.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests"):  # for `benchmarks`, and the oracle
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import humming_ext  # noqa: E402
import torch  # noqa: E402

from benchmarks import results, retune  # noqa: E402
from benchmarks.cases import ACTIVATIONS, PARTS, Case  # noqa: E402
from benchmarks.gemm import GemmMatrix, MmaSyncMatrix  # noqa: E402
from benchmarks.layer import Layer  # noqa: E402
from benchmarks.moe import MoeMatrix  # noqa: E402
from benchmarks.problem import Problem, Weights, WrongResultError  # noqa: E402
from benchmarks.references import LIBRARY_NAMES, HummingKernels, UnavailableError  # noqa: E402
from benchmarks.timing import IDLE_SECONDS, IDLE_TOKENS, Ceilings, Timer, ratio, sample_in_turn  # noqa: E402

ROUNDS = 5  # alternations of our product and its references
LONG_US, LONG_ROUNDS = 500, 9  # calls that reach the GPU's power limit, whose times differ by 8 % between rounds
WEIGHTS: dict[str, type[Weights]] = {
    "gemm": GemmMatrix,
    "gemm_mma_sync": MmaSyncMatrix,
    "moe_gemm": MoeMatrix,
    "fused_moe": Layer,
}
TUNED = ROOT / "csrc" / "select" / "tuned"


def gpu_slug(name: str) -> str:
    """A short name for files: "NVIDIA H200" is h200, "NVIDIA A100-SXM4-80GB" a100."""
    match = re.search(r"[a-z]*\d+[a-z]*", name.lower())
    return match.group() if match else re.sub(r"\W+", "-", name.lower())


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def commit() -> str | None:
    """HUMMING_COMMIT, for a copy of the sources; else the commit of this checkout, "-dirty" if it has changes."""
    return os.environ.get("HUMMING_COMMIT") or _output(
        "git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"
    )


def stamp(device: torch.device, command: Sequence[str]) -> results.Row:
    """The fields that all rows of a run share: the machine, the software, the kernels, the command."""
    binary = hashlib.sha256(Path(humming_ext._C.__file__).read_bytes()).hexdigest()[:16]
    query = _output("nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader")
    driver, power, clock = query.splitlines()[0].split(", ") if query else (None, None, None)
    return {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": driver,
        "power_limit": power,
        "max_clock": clock,
        "commit": commit(),
        "binary": binary,
        "command": shlex.join(command),
    }


def measure(problem: Problem, ceilings: Ceilings, repeats: int) -> results.Row:
    """Verifies and times one problem, with its references in turn. Raises WrongResultError if it is not right."""
    matrix, work = problem.matrix, problem.work
    problem.verify(problem.calls, repeats)
    floor = work.floor_us(ceilings.bandwidth, ceilings.rate(work.operand))

    own = {"ours": problem.calls} | ({"gemm": problem.gemm_calls} if problem.gemm_calls else {})
    compared = list(own)[-1]  # what does as much as the references
    timers = {name: Timer(calls, matrix.device, floor) for name, calls in own.items()}
    for timer in timers.values():
        problem.poison()
        timer.replay()
        problem.verify_again("graph replay", timer.last)

    peer_name, library = HummingKernels.name, LIBRARY_NAMES[work.operand]
    notes: dict[str, str] = {}
    for name, peer in matrix.peers.items():
        notes |= {name: peer} if isinstance(peer, str) else peer.notes
    peer_error = None
    for name, make in problem.references().items():
        try:
            calls = make()
            problem.poison()
            calls[0]()
            if name == peer_name:
                peer_error = problem.error()
            timers[name] = Timer(calls, matrix.device, floor)
        except Exception as error:  # whatever stops a reference must not stop us
            notes[name] = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]

    idle = problem.tokens >= IDLE_TOKENS and matrix.device.type == "cuda"
    alone = {"ours": timers.pop("ours")} if compared != "ours" else {}
    rounds = LONG_ROUNDS if idle and floor >= LONG_US else ROUNDS
    samples = sample_in_turn(alone, 1, idle=idle) | sample_in_turn(timers, rounds, idle=idle)
    timers |= alone
    times = {name: [us for sample in turns for us in sample] for name, turns in samples.items()}
    ratios = {name: ratio(samples[name], samples[compared]) for name in timers if name not in alone}
    us = median(times["ours"])
    peer = matrix.peers[peer_name]
    return {
        "us": us,
        "us_min": min(times["ours"]),
        "us_max": max(times["ours"]),
        "gemm_us": median(times["gemm"]) if "gemm" in times else None,
        "tflops": work.flops / us / 1e6,
        "gbs": work.bytes / us / 1e3,
        "floor_us": floor,
        "floor_percent": 100 * floor / us,
        "peer": peer_name if peer_name in times else None,
        "peer_us": median(times[peer_name]) if peer_name in times else None,
        "ratio": ratios.get(peer_name),
        "peer_error": peer_error,
        "peer_pdl": peer.uses_pdl(len(problem.out)) if peer_name in times and not isinstance(peer, str) else None,
        "library": library if library in times else None,
        "library_us": median(times[library]) if library in times else None,
        "library_ratio": ratios.get(library),
        "others": {n: median(values) for n, values in times.items() if n not in (*own, peer_name, library)},
        "notes": notes,
        "instance": problem.instance(),
        "pdl": problem.uses_pdl,
        **problem.facts,
        "sets": len(matrix.weights),
        "set_bytes": matrix.set_bytes,
        "rounds": rounds,
        "replays": timers["ours"].replays,
        "idle_s": IDLE_SECONDS if idle else 0.0,
        "bandwidth_gbs": ceilings.bandwidth / 1e9,
        "library_tflops": ceilings.rate(work.operand) / 1e12,
    }


@dataclass
class Run:
    """One call of the command line."""

    options: argparse.Namespace
    device: torch.device
    stamp: results.Row
    deadline: float
    reported: set[tuple[str, str]] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        """Whether the time is spent."""
        return time.monotonic() > self.deadline

    def path(self, part: str) -> Path:
        """Where the rows of a part are."""
        return self.options.results / gpu_slug(self.stamp["gpu"]) / f"{part}.jsonl"

    def cases(self, part: str) -> Iterator[tuple[Case, list[int]]]:
        """The cases of a part that the filters leave, with their token counts."""
        options = self.options
        for case in PARTS[part]:
            tokens = [count for count in case.tokens if not options.tokens or count in options.tokens]
            if options.format and case.scheme.name not in options.format:
                continue
            if options.matrix and not any(text in case.matrix for text in options.matrix):
                continue
            if tokens and (not options.activation or case.activation in options.activation):
                yield case, tokens

    def report(self, notes: dict[str, str]) -> None:
        """Prints why references are missing, each reason once."""
        for note in notes.items():
            if note not in self.reported:
                print("  no {}: {}".format(*note), flush=True)
        self.reported.update(notes.items())

    def load(self, case: Case, tokens: Sequence[int]) -> Weights:
        """The weights of a case."""
        return WEIGHTS[case.op](case, self.device, tokens)


def run_part(run: Run, part: str, ceilings: Ceilings) -> tuple[int, int]:
    """Measures what is missing in a part and prints its table. Returns the wrong results and the rows not reached."""
    path, keeps = run.path(part), run.device.type == "cuda"
    rows = results.load(path) if keeps else []
    todo: list[tuple[Case, list[int]]] = []
    print(f"\n{part}\n{results.HEAD}")
    for case, counts in run.cases(part):
        kept = [] if run.options.force else results.measured(rows, case.key(0), run.stamp["binary"])
        for row in kept:
            if row["tokens"] in counts:
                print(f"{results.line(row)}  [before]")
        missing = [tokens for tokens in counts if tokens not in {row["tokens"] for row in kept}]
        todo += [(case, missing)] if missing else []
    total, wrong, reached = sum(len(missing) for _, missing in todo), 0, 0
    matrix: Weights | None = None
    for case, missing in todo:
        if matrix is not None and matrix.case.plain != case.plain:
            matrix = None  # before the next is there
        for tokens in missing:
            if run.is_over:
                return wrong, total - reached
            reached += 1
            if matrix is None:
                matrix = run.load(
                    case, sorted({n for other, counts in todo if other.plain == case.plain for n in counts})
                )
            matrix = matrix.of(case)
            row = {**case.key(tokens), **run.stamp, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
            try:
                row |= measure(matrix.problem(tokens), ceilings, run.options.repeats)
            except WrongResultError as error:
                row["error"] = str(error)
                wrong += 1
            except RuntimeError as error:
                if "no CUDA instance" not in str(error):
                    raise
                print(f"{case}: no instance in this build (preset {humming_ext.build_info()['preset']})", flush=True)
                reached += len(missing) - missing.index(tokens) - 1
                break
            if keeps:
                rows = results.merge(rows, row)
                results.save(path, rows)
            print(f"{results.line(row)}  [{reached}/{total}]", flush=True)
            run.report(row.get("notes", {}))
    return wrong, 0


def prepare_part(run: Run, part: str, ceilings: Ceilings) -> tuple[int, int]:
    """Lets humming-kernels compile what a part will call. Nothing is timed, so parts may be prepared side by side."""
    work = list(run.cases(part))
    for index, (case, tokens) in enumerate(work):
        if run.is_over:
            return 0, len(work) - index
        matrix = run.load(case, tokens)
        make = matrix.problem(min(tokens)).references().get(HummingKernels.name)
        start = time.monotonic()
        if make is None:
            print(f"{case}: {matrix.peers[HummingKernels.name]}", flush=True)
        else:
            make()[0]()  # compiles for all of the matrix's token counts
            print(f"{case}: {time.monotonic() - start:.1f} s", flush=True)
    return 0, 0


def retune_part(run: Run, part: str, ceilings: Ceilings) -> tuple[int, int]:
    """Times every instance for the cases of a part and writes the table of this GPU. Returns as `run_part` does."""
    path = TUNED / f"{gpu_slug(run.stamp['gpu'])}.csv"
    now, wrong = run.stamp["commit"] or "unknown", 0
    products = [product for case, tokens in run.cases(part) for product in case.products(tokens)]
    plain = [product for product in products if product == replace(product.plain, tokens=product.tokens)]
    work = [(case, case.tokens, count) for case in plain for count in case.tokens]
    case_loaded, matrix = None, None
    for index, (case, tokens, count) in enumerate(work):
        if run.is_over:
            return wrong, len(work) - index
        if case is not case_loaded:
            case_loaded, matrix = case, run.load(case, tokens)
        problem = matrix.problem(count)
        rows = retune.read(path)
        runnable = [plan.name for plan in retune.candidates(problem)]
        place = case.n, case.k, case.experts, problem.rows
        shape = [row for row in rows if row.place == place]
        if not run.options.force and any(row.instance in runnable and row.commit == now for row in shape):
            continue
        if not runnable:
            print(f"{case}: no instance in this build", flush=True)
            continue
        floor = problem.work.floor_us(ceilings.bandwidth, ceilings.rate(problem.work.operand))
        try:
            row = retune.retune(problem, floor, now, lambda text: print(text, flush=True))
        except WrongResultError as error:
            print(f"{case} tokens={count} WRONG: {error}", flush=True)
            wrong += 1
            continue
        retune.write(path, [*(old for old in rows if not retune.replaces(row, old, runnable)), row])
    return wrong, 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    schemes = sorted({case.scheme.name for cases in PARTS.values() for case in cases})
    add = parser.add_argument
    add("--part", action="append", choices=[*PARTS, "all"], default=[], help="what to measure; may be repeated")
    add("--op", action="append", choices=list(WEIGHTS), default=[], help="the parts of this op too; may be repeated")
    add("--format", action="append", choices=schemes, help="only weights of this kind; may be repeated")
    add("--activation", action="append", choices=list(ACTIVATIONS), help="only these activations; may be repeated")
    add("--matrix", action="append", help="only matrices with this in their name; may be repeated")
    add("--tokens", type=int, nargs="+", help="only these token counts")
    add("--list", action="store_true", help="list parts and cases, and stop")
    add("--seconds", type=float, default=float("inf"), help="stop after the row during which these are spent")
    add("--repeats", type=int, default=4, help="further runs that must give the same bits (default %(default)s)")
    add("--force", action="store_true", help="measure again what was measured with these kernels")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a smoke run, which writes nothing")
    add(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the rows (default %(default)s)"
    )
    add("--plot", action="store_true", help="write a PNG beside the rows of each part, and stop; needs matplotlib")
    add("--gate", action="store_true", help="hold the rows against targets.toml, and stop; status 1 if one is missed")
    add("--prepare", action="store_true", help="only let the peer compile what it will run; needs HUMMING_CACHE_DIR")
    add("--retune", action="store_true", help="time every kernel instance instead, and write csrc/select/tuned")
    return parser


def _plot_all(folder: Path) -> int:
    from benchmarks.plot import plot

    paths = sorted(folder.glob("*/*.jsonl"))
    for path in paths:
        plot(results.newest(results.load(path)), f"{path.parent.name} {path.stem}", path.with_suffix(".png"))
        print(path.with_suffix(".png"))
    return 0 if paths else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    options = parser.parse_args(arguments)
    chosen = {*options.part, *options.op}
    parts = [part for part, cases in PARTS.items() if chosen & {part, cases[0].op, "all"}]
    if options.gate:
        gpu, targets = results.load_targets()
        parts_rows = [results.newest(results.load(path)) for path in sorted((options.results / gpu).glob("*.jsonl"))]
        return 0 if results.gate([row for rows in parts_rows for row in rows], targets) else 1
    if options.plot:
        return _plot_all(options.results)
    device = torch.device(options.device)
    if options.list:
        run = Run(options, device, {}, 0.0)
        for part in parts or PARTS:
            for case, tokens in run.cases(part):
                print(f"{part}: {case}, tokens {' '.join(map(str, tokens))}")
        return 0
    if not parts:
        parser.error("--part, --op: say what to measure; --list shows it")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; --device cpu --part smoke tries the benchmark out")
    if options.retune and device.type == "cpu":
        parser.error("--retune: kernel instances run on GPUs only")

    shared = stamp(device, ["benchmarks/bench.py", *arguments])
    run = Run(options, device, shared, time.monotonic() + options.seconds)
    ceilings, wrong, left = Ceilings(device), 0, 0
    measure_part = prepare_part if options.prepare else retune_part if options.retune else run_part
    try:
        for part in parts:
            found, unreached = measure_part(run, part, ceilings)
            wrong, left = wrong + found, left + unreached
    except UnavailableError as error:
        parser.error(f"--retune: {error}")
    if left:
        print(f"\n{options.seconds:g} seconds are spent, {left} rows are left: the same command goes on from here")
    if wrong:
        print(f"\n{wrong} WRONG results")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
