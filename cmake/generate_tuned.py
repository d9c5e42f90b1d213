"""Turns the measurements of csrc/select/tuned/ into a C++ table whose rows name instances by their index.

A row `n,k,experts,tokens,instance,us,commit` says: of the instances that can run `tokens` rows on the n x k weights of
so many experts (0: on one dense weight), this one was the fastest, in `us` microseconds, at that commit. Rows of
instances that the preset has not are left out, so that a renamed instance does not stop the build that measures it
again; a test finds such rows.
"""

import argparse
import csv
import pathlib
import sys

from generate_instances import PRESETS, TEST, read_families, select_instances, tomllib, write_if_changed

FAMILIES = ("gemm_sm80", "gemm_sm90", "moe_gemm_sm80", "moe_gemm_sm90")
HEADER = ["n", "k", "experts", "tokens", "instance", "us", "commit"]


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a file. Raises ValueError naming the line that is no measurement."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != HEADER:
            raise ValueError(f"{path}: the header is {reader.fieldnames}, not {HEADER}")
        rows = list(reader)
    for line, row in enumerate(rows, 2):
        try:
            good = min(int(row["n"]), int(row["k"]), int(row["tokens"])) > 0 and float(row["us"]) > 0
            good = good and int(row["experts"]) >= 0
        except (TypeError, ValueError):
            good = False
        if not good or not row["instance"]:
            raise ValueError(
                f"{path}:{line}: {row} needs positive n, k, tokens and us, no negative experts, and an instance"
            )
    return rows


def table_source(rows: list[dict[str, str]], names: dict[str, list[str]]) -> str:
    """The tables of all families, each in the order of its instances `names`, which hold a name once per arch."""
    lines = ["// Generated from csrc/select/tuned/.", '#include "select/tuned.h"', "", "namespace humming {"]
    for family, instances in names.items():
        known = [(index, row) for index, name in enumerate(instances) for row in rows if row["instance"] == name]
        lines += ["", f"Table<TunedRow> tuned_{family}() {{"]
        if known:
            lines.append("  static const TunedRow table[] = {")
            for index, row in known:
                key = ", ".join(row[column] for column in ("n", "k", "experts", "tokens"))
                lines.append(f"      {{{index}, {key}, {float(row['us'])}f}},")
            lines += ["  };", f"  return {{table, {len(known)}}};", "}"]
        else:
            lines += ["  return {nullptr, 0};", "}"]
    return "\n".join([*lines, "", "}  // namespace humming", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=pathlib.Path, nargs="+", required=True, help="a file for each GPU")
    parser.add_argument("--manifest", type=pathlib.Path, required=True)
    parser.add_argument("--preset", choices=(*PRESETS, TEST), required=True)
    parser.add_argument("--archs", required=True, help="semicolon-separated; empty: no CUDA")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    manifest = tomllib.loads(args.manifest.read_text())
    instances = select_instances(manifest, read_families(manifest), args.preset, args.archs.split(";"))
    try:
        names = {family: [i.name for i in instances if i.family.name == family] for family in FAMILIES}
        source = table_source([row for path in args.rows for row in read_rows(path)], names)
    except ValueError as error:
        sys.exit(str(error))
    write_if_changed(args.out / "select" / "tuned_table.cpp", source)
    return 0


if __name__ == "__main__":
    sys.exit(main())
