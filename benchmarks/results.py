"""Rows of results as JSON lines, the table of a part, and the gate that holds rows against targets.toml."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

Row = dict[str, Any]

KEY = ("op", "model", "part", "n", "k", "experts", "tokens", "weight", "activation", "routing", "quantisation")
NEVER_SLOWER = 0.98  # median ratio to the peer, over alternated runs
SKEW_COSTS = 1.15  # at most, in times of the floor, which counts active experts, against balanced routing
TARGETS = Path(__file__).resolve().parent / "targets.toml"


def key_of(row: Row) -> tuple[Any, ...]:
    """What a row measured; a file has one row per key."""
    return tuple(row.get(name) for name in KEY)


def load(path: Path) -> list[Row]:
    """The rows of a file, none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def merge(rows: Iterable[Row], row: Row) -> list[Row]:
    """`rows` with `row` in the place of the one with its key."""
    return [*(other for other in rows if key_of(other) != key_of(row)), row]


def save(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows in the order of their keys. An interrupted write leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    ordered = sorted(rows, key=lambda row: tuple((value is not None, value) for value in key_of(row)))
    temporary.write_text("".join(json.dumps(row) + "\n" for row in ordered))
    os.replace(temporary, path)


def measured(rows: Iterable[Row], key: Row, binary: str) -> list[Row]:
    """The rows with these kernels and `key`, whatever its token count, that are not wrong; by token count."""
    same = [row for row in rows if row["binary"] == binary and row.get("error") is None]
    same = [row for row in same if key_of(row) == key_of({**key, "tokens": row["tokens"]})]
    return sorted(same, key=lambda row: row["tokens"])


HEAD = (
    f"{'weight x activation':<22} {'n x k':>11} {'tokens':>6} {'us':>9} {'TFLOP/s':>8} {'GB/s':>6} {'floor':>6} "
    f"{'peer us':>9} {'ratio':>5}"
)


def variant(row: Row) -> str:
    """How tokens come to experts, nothing for a dense product."""
    quantisation = f", quantisation {row['quantisation']}" if row.get("quantisation") else ""
    return f"{row['routing']}{quantisation}" if row.get("routing") else ""


def compared_us(row: Row) -> float:
    """The time that references and targets are compared with: of moe_gemm on its own, where it has one."""
    return (row["op"] == "moe_gemm" and row.get("gemm_us")) or row["us"]


def line(row: Row) -> str:
    """A row of the table under HEAD; the floor is in percent of the time, 100 is as fast as can be."""
    start = f"{row['weight'] + ' x ' + row['activation']:<22} {row['n']:>5}x{row['k']:<5} {row['tokens']:>6} "
    if row.get("error") is not None:
        return f"{start} WRONG: {row['error']}  {variant(row)}".rstrip()
    peer = f"{row['peer_us']:>9.2f} {row['ratio']:>5.2f}" if row["peer_us"] else f"{'-':>9} {'-':>5}"
    text = f"{start}{row['us']:>9.2f} {row['tflops']:>8.1f} {row['gbs']:>6.0f} {row['floor_percent']:>5.0f}% {peer}"
    if not row.get("routing"):
        return text
    alone = f"moe_gemm {row['gemm_us']:.2f} us, " if row["gemm_us"] else ""
    return f"{text}  {alone}{row['active_experts']:.1f} experts, {variant(row)}"


@dataclass(frozen=True)
class Target:
    """One limit for one problem. `kind`: us (at most), tflops, of_library, of_peer (at least), of_floor (see `judge`).

    With experts, the problem has balanced routing; for moe_gemm its tokens are quantised and aligned before.
    """

    work: str
    n: int
    k: int
    weight: str
    activation: str
    tokens: int
    kind: str
    limit: float
    plus_us: float = 0.0
    op: str = "gemm"

    def fits(self, row: Row) -> bool:
        """Whether the row measured this target's problem."""
        names = ("op", "n", "k", "weight", "activation", "tokens")
        is_plain = row["routing"] in (None, "balanced") and row.get("quantisation") != "timed"
        return is_plain and all(row[name] == getattr(self, name) for name in names)


@dataclass(frozen=True)
class Verdict:
    """How a target stands. `miss` is in percent of the limit, above 0 missed; None without a measurement."""

    target: Target
    limit: str
    measured: str
    miss: float | None

    @property
    def is_met(self) -> bool:
        return self.miss is not None and self.miss <= 0

    def __str__(self) -> str:
        state = "met" if self.is_met else "no row" if self.miss is None else f"{self.miss:+.1f}%"
        target, shape = self.target, f"{self.target.n}x{self.target.k}"
        problem = f"{target.work:<40} {shape:>10} {target.tokens:>6}"
        return f"{problem}  {self.limit:>22}  {self.measured:>12}  {state:>8}"


_LIMITS = ("us", "tflops", "of_library", "of_peer", "of_floor")
_RATIOS = {
    "tflops": ("tflops", "TFLOP/s"),
    "of_library": ("library_ratio", "x library"),
    "of_peer": ("ratio", "x peer"),
}


def load_targets(path: Path = TARGETS) -> tuple[str, list[Target]]:
    """(the GPU, a target for each token count of each entry)."""
    data = tomllib.loads(path.read_text())
    targets = []
    for entry in data["target"]:
        (kind,) = (name for name in _LIMITS if name in entry)
        limits = entry[kind] if isinstance(entry[kind], list) else [entry[kind]] * len(entry["tokens"])
        problem = {name: entry[name] for name in ("work", "weight", "activation")}
        options = {name: entry[name] for name in ("op", "plus_us") if name in entry}
        for n, k in entry.get("matrices") or [(entry["n"], entry["k"])]:
            targets += [
                Target(**problem, **options, n=n, k=k, tokens=tokens, kind=kind, limit=limit)
                for tokens, limit in zip(entry["tokens"], limits, strict=True)
            ]
    return data["gpu"], targets


def judge(target: Target, rows: Sequence[Row]) -> Verdict:
    """Holds a target against the row that measured it. A wrong result and a missing reference are no measurement."""
    row = next((row for row in rows if target.fits(row) and row.get("error") is None), None)
    kind, limit = target.kind, target.limit
    if kind in ("us", "of_floor"):
        if row is not None and kind == "of_floor":
            limit = max(limit * row["floor_us"], row["floor_us"] + target.plus_us)
        text = f"<= {limit:.2f} us" if row is not None or kind == "us" else f"<= {limit} x floor"
        if row is None:
            return Verdict(target, text, "-", None)
        us = compared_us(row)
        return Verdict(target, text, f"{us:.2f} us", 100 * (us / limit - 1))
    field, unit = _RATIOS[kind]
    text = f">= {limit:g} {unit}"
    value = None if row is None else row[field]
    if value is None:
        return Verdict(target, text, "-", None)
    return Verdict(target, text, f"{value:.4g} {unit}", 100 * (limit / value - 1))


def newest(rows: Sequence[Row]) -> list[Row]:
    """Of a part, the rows of the kernels that were measured last: older ones prove nothing about them."""
    if not rows:
        return []
    binary = max(rows, key=lambda row: row["time"])["binary"]
    return [row for row in rows if row["binary"] == binary]


def skew_costs(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Each skewed row with what its skew costs: its time over its floor, over the same of the balanced row."""
    rows = [row for row in rows if row.get("error") is None]
    balanced = {key_of(row): row for row in rows if row["routing"] == "balanced"}
    pairs = [(row, balanced.get(key_of({**row, "routing": "balanced"}))) for row in rows if row["routing"] == "skewed"]
    relative = lambda row: compared_us(row) / row["floor_us"]  # noqa: E731
    return [(row, relative(row) / relative(other)) for row, other in pairs if other is not None]


def gate(rows: Sequence[Row], targets: Iterable[Target]) -> bool:
    """Prints targets, and rows that are wrong, slower than the peer, or too slow when skewed.

    rows: the newest of every part. Returns whether there is nothing to fix.
    """
    commits = Counter(row.get("commit") or "unknown" for row in rows)
    print("\n".join(f"{count} rows of commit {name}" for name, count in commits.items()))
    verdicts = [judge(target, rows) for target in targets]
    print(f"{'target':<40} {'n x k':>10} {'tokens':>6}  {'limit':>22}  {'measured':>12}  {'miss':>8}")
    for verdict in verdicts:
        print(verdict)
    wrong = [row for row in rows if row.get("error") is not None]
    compared = [row for row in rows if row.get("ratio") is not None]
    slower = [row for row in compared if row["ratio"] < NEVER_SLOWER]
    unmet = sum(not verdict.is_met for verdict in verdicts)
    print(f"\n{unmet} of {len(verdicts)} targets not met; {len(wrong)} wrong results;")
    print(f"slower than the peer (ratio below {NEVER_SLOWER}): {len(slower)} of {len(compared)} rows")
    costs = skew_costs(rows)
    skewed = [(row, cost) for row, cost in costs if cost > SKEW_COSTS]
    print(f"skewed routing costs more than a factor of {SKEW_COSTS}: {len(skewed)} of {len(costs)} rows")
    for row in [*wrong, *slower]:
        print(f"  {line(row)}")
    for row, cost in skewed:
        print(f"  {line(row)}: {cost:.2f}")
    return not (unmet or wrong or slower or skewed)
