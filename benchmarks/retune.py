"""Which kernel instance is the fastest for a shape: the tables in csrc/select/tuned, which selection reads."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from .gemm import GemmProblem
from .moe import MoeProblem
from .problem import WrongResultError
from .timing import IDLE_TOKENS, Timer, sample_in_turn

_QUICK_REPLAYS = 5
_NEAR = 1.2  # instances within this of the quickest are timed with care


@dataclass(frozen=True)
class Tuned:
    """A row of the table: for this shape and token count `instance` was the fastest of those that can run."""

    n: int
    k: int
    experts: int  # 0: dense
    tokens: int  # rows, of all experts together
    instance: str
    us: float
    commit: str

    @property
    def place(self) -> tuple[int, ...]:
        """What it is about."""
        return self.n, self.k, self.experts, self.tokens


def read(path: Path) -> list[Tuned]:
    """The rows of a table, none if it does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            Tuned(
                *(int(row[extent]) for extent in ("n", "k", "experts", "tokens")),
                *(row["instance"], float(row["us"]), row["commit"]),
            )
            for row in csv.DictReader(file)
        ]


def write(path: Path, rows: Iterable[Tuned]) -> None:
    """Writes a table, sorted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(Tuned.__dataclass_fields__), lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in sorted(rows, key=lambda row: (*row.place, row.instance)))


def candidates(problem: GemmProblem | MoeProblem) -> list:
    """The plans of the instances to choose from: those that can run it and are for its format, as tables hold them."""
    return [plan for plan in problem.plans() if plan.rejection is None and not plan.name.startswith("gemm_any_")]


def replaces(new: Tuned, old: Tuned, runnable: Iterable[str]) -> bool:
    """Whether a new row answers the old one's question: its shape, and an instance that was among the candidates."""
    return new.place == old.place and old.instance in set(runnable)


def retune(problem: GemmProblem | MoeProblem, estimate_us: float, commit: str, report: Callable[[str], None]) -> Tuned:
    """Times every instance that can run and returns the fastest. `report` is told how far the chosen one is from it.

    Raises UnavailableError if this build does not list its instances, WrongResultError if none gives the right result.
    """
    plans = candidates(problem)
    device = problem.matrix.device
    timers: dict[str, Timer] = {}
    for plan in plans:
        calls = problem.instance_calls(plan.name)
        try:
            problem.verify(calls, repeats=1)
        except WrongResultError as error:
            report(f"  {plan.name} gives a wrong result: {error}")
        else:
            timers[plan.name] = Timer(calls, device, estimate_us)
    if not timers:
        raise WrongResultError(f"none of the {len(plans)} instances that can run gives the right result")
    quick = {name: median(timer.sample(_QUICK_REPLAYS)) for name, timer in timers.items()}
    near = {name: timers[name] for name, us in quick.items() if us <= _NEAR * min(quick.values())}
    samples = sample_in_turn(near, 1, idle=problem.tokens >= IDLE_TOKENS)
    times = {name: median(us for sample in rounds for us in sample) for name, rounds in samples.items()}
    best = min(times, key=times.__getitem__)
    chosen = next((plan.name for plan in plans if plan.chosen), None)
    case = problem.matrix.case
    text = f"{case} tokens={problem.tokens}: {best} {times[best]:.2f} us of {len(timers)}"
    if chosen in quick and chosen != best:
        text += f"; chosen was {chosen}, {100 * (times.get(chosen, quick[chosen]) / times[best] - 1):.1f}% slower"
    elif chosen == best:
        text += ", and chosen"
    report(text)
    for name, us in sorted(times.items(), key=lambda item: item[1])[1:]:
        report(f"  {us:.2f} us {name}")
    return Tuned(case.n, case.k, case.experts, problem.rows, best, round(times[best], 3), commit)
