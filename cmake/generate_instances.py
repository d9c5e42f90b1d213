"""Turns csrc/instances/manifest.toml into C++: the Columns structs, the table and one or more .cu files per arch.

Runs when CMake configures. Files are rewritten only if their text changed, so that an edit of the manifest recompiles
only what it touches. `instances.json`, written beside them, tells the build report what each file holds.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import sys

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PRESETS = ("ci", "serving", "full")
TEST = "test"  # `ci`, and all rows of the families that name `test_archs`, compiled for those too; never shipped
ARCHS = ("80", "86", "89", "90a")
ROW_KEYS = {"family", "archs", "preset", "why", "measured", "allow"}
# nvcc's fixed cost is about 2.7 s per file, an instance costs 0.3 s and more: enough per file to hide the first, few
# enough files to keep two jobs busy.
MAX_INSTANCES_PER_FILE = 24


@dataclasses.dataclass(frozen=True)
class Family:
    name: str
    header: str
    params: str
    columns: dict[str, str]  # column -> "bool", "int" or an enum's name
    tile: dict[str, dict] = dataclasses.field(default_factory=dict)  # tile -> some of the columns with their values
    test_archs: tuple[str, ...] = ()  # that run the kernels, for tests, beside the archs they are written for

    @property
    def camel(self) -> str:
        return camel(self.name)


@dataclasses.dataclass(frozen=True)
class Instance:
    family: Family
    values: tuple
    arch: str
    row: dict

    @property
    def name(self) -> str:
        """Says the row: a true bool is its column, an enumerator itself, an int its column and value."""
        parts = [self.family.name]
        for (column, kind), value in zip(self.family.columns.items(), self.values, strict=True):
            if kind == "bool":
                parts += [column] if value else []
            else:
                parts.append(f"{column}{value}" if kind == "int" else value)
        return "_".join(parts)

    @property
    def config(self) -> str:
        return camel(self.name)

    @property
    def launcher(self) -> str:
        return f"launch_{self.name}_sm{self.arch}"

    @property
    def arch_number(self) -> int:
        return int(self.arch.rstrip("a"))

    def literals(self) -> list[str]:
        return [cpp_literal(kind, value) for kind, value in zip(self.family.columns.values(), self.values, strict=True)]


def camel(name: str) -> str:
    return "".join(part[0].upper() + part[1:] for part in name.split("_"))


def cpp_literal(kind: str, value) -> str:
    if kind == "bool":
        return "true" if value else "false"
    return str(value) if kind == "int" else f"{kind}::{value}"


def read_families(manifest: dict) -> dict[str, Family]:
    return {name: Family(name, **fields) for name, fields in manifest["family"].items()}


def check_value(kind: str, value, where: str) -> None:
    expected = {"bool": bool, "int": int}.get(kind, str)
    if type(value) is not expected:
        raise ValueError(f"{where} = {value!r}: expected {expected.__name__} (column type {kind})")


def expand_row(index: int, row: dict, families: dict[str, Family]) -> list[Instance]:
    """The instances of one row: the product of its lists, for each of its archs."""
    where = f"manifest row {index} ({row.get('family')})"
    family = families.get(row.get("family"))
    if family is None:
        raise ValueError(f"{where}: unknown family; the manifest declares {sorted(families)}")
    if "tile" in row:
        unknown = sorted(set(row["tile"]) - set(family.tile))
        if unknown:
            raise ValueError(f"{where}: tiles {unknown} are unknown; the family has {sorted(family.tile)}")
        rest = {key: value for key, value in row.items() if key != "tile"}
        return [i for tile in row["tile"] for i in expand_row(index, rest | family.tile[tile], families)]
    expected = set(family.columns) | ROW_KEYS
    if set(row) - {"allow"} != expected - {"allow"}:
        raise ValueError(f"{where}: keys {sorted(set(row) ^ (expected - {'allow'}))} are missing or unknown")
    if row["preset"] not in PRESETS:
        raise ValueError(f"{where}: preset = {row['preset']!r} is none of {PRESETS}")
    if not row["archs"] or not set(row["archs"]) <= set(ARCHS):
        raise ValueError(f"{where}: archs = {row['archs']} is no subset of {ARCHS}")
    choices = [row[column] if isinstance(row[column], list) else [row[column]] for column in family.columns]
    for (column, kind), values in zip(family.columns.items(), choices, strict=True):
        for value in values:
            check_value(kind, value, f"{where}: {column}")
    return [Instance(family, values, arch, row) for arch in row["archs"] for values in itertools.product(*choices)]


def select_instances(manifest: dict, families: dict[str, Family], preset: str, archs: list[str]) -> list[Instance]:
    """All instances of the preset for the archs; the whole manifest is checked whatever the preset."""
    instances = [i for index, row in enumerate(manifest["row"]) for i in expand_row(index, row, families)]
    keys = [(i.name, i.arch) for i in instances]
    duplicates = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    if duplicates:
        raise ValueError(f"the manifest lists these instances twice: {duplicates}")
    if preset == TEST:
        chosen = [i for i in instances if i.row["preset"] == PRESETS[0] or i.family.test_archs]
        for i in {i.name: i for i in chosen}.values():
            row = i.row | {"allow": "compiled for tests alone"}
            chosen += [dataclasses.replace(i, arch=arch, row=row) for arch in i.family.test_archs]
    else:
        chosen = [i for i in instances if i.row["preset"] in PRESETS[: PRESETS.index(preset) + 1]]
    return [i for i in chosen if i.arch in archs]


def split_evenly(instances: list[Instance]) -> list[list[Instance]]:
    num_files = -(-len(instances) // MAX_INSTANCES_PER_FILE)
    bounds = [len(instances) * i // num_files for i in range(num_files + 1)] if num_files else []
    return [instances[begin:end] for begin, end in itertools.pairwise(bounds)]


def generated_header(families: dict[str, Family]) -> str:
    lines = [
        "// Generated from csrc/instances/manifest.toml; included by instances/instances.h only.",
        "#pragma once",
        "",
    ]
    lines += [f'#include "{header}"' for header in sorted({family.params for family in families.values()})]
    lines += ["", "namespace humming {"]
    for family in families.values():
        lines += ["", f"struct {family.camel}Columns {{", f"  using Params = {family.camel}Params;"]
        lines += [f"  {kind} {column};" for column, kind in family.columns.items()]
        lines += ["};", "template <>", f"Table<Instance<{family.camel}Columns>> instances<{family.camel}Columns>();"]
    return "\n".join([*lines, "", "}  // namespace humming", ""])


def table_source(
    families: dict[str, Family], instances: list[Instance], preset: str, archs: list[str], launchers: bool
) -> str:
    lines = ["// Generated from csrc/instances/manifest.toml.", '#include "instances/instances.h"', ""]
    lines += [
        "namespace humming {",
        f'const char kPreset[] = "{preset}";',
        f'const char kCudaArchs[] = "{";".join(archs)}";',
        "",
    ]
    for i in instances if launchers else []:
        lines.append(f"void {i.launcher}(const {i.family.camel}Params& params, CUstream_st* stream);")
    for family in families.values():
        rows = [i for i in instances if i.family is family]
        kind = f"Instance<{family.camel}Columns>"
        lines += ["", "template <>", f"Table<{kind}> instances<{family.camel}Columns>() {{"]
        if rows:
            lines.append(f"  static const {kind} table[] = {{")
            for i in rows:
                entry = f'{{"{family.name}", "{i.name}", {i.arch_number}}}'
                launcher = i.launcher if launchers else "nullptr"
                lines.append(f"      {{{entry}, {{{', '.join(i.literals())}}}, {launcher}}},")
            lines += ["  };", f"  return {{table, {len(rows)}}};", "}"]
        else:
            lines += ["  return {nullptr, 0};", "}"]
    lines += ["", "Table<KernelEntry> all_instances() {"]
    if instances:
        lines.append("  static const KernelEntry table[] = {")
        lines += [f'      {{"{i.family.name}", "{i.name}", {i.arch_number}}},' for i in instances]
        lines += ["  };", f"  return {{table, {len(instances)}}};", "}"]
    else:
        lines += ["  return {nullptr, 0};", "}"]
    return "\n".join([*lines, "", "}  // namespace humming", ""])


def kernel_source(instances: list[Instance]) -> str:
    lines = ["// Generated from csrc/instances/manifest.toml."]
    lines += [f'#include "{header}"' for header in sorted({i.family.header for i in instances})]
    lines += ["", "namespace humming {", f"namespace sm{instances[0].arch} {{"]
    for i in instances:
        lines += [f"struct {i.config} {{", f"  static constexpr int kArch = {i.arch_number};"]
        for (column, kind), literal in zip(i.family.columns.items(), i.literals(), strict=True):
            lines.append(f"  static constexpr {kind} k{camel(column)} = {literal};")
        lines.append("};")
    lines += [f"}}  // namespace sm{instances[0].arch}", ""]
    for i in instances:
        lines += [
            f"void {i.launcher}(const {i.family.camel}Params& params, CUstream_st* stream) {{",
            f"  launch_{i.family.name}<sm{i.arch}::{i.config}>(params, stream);",
            "}",
        ]
    return "\n".join([*lines, "", "}  // namespace humming", ""])


def write_if_changed(path: pathlib.Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifest", type=pathlib.Path, required=True)
    parser.add_argument("--preset", choices=(*PRESETS, TEST), required=True)
    parser.add_argument("--archs", required=True, help="semicolon-separated; empty: no CUDA")
    parser.add_argument("--table-only", action="store_true", help="no kernels and no launchers: for tests of selection")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()

    archs = [arch for arch in args.archs.split(";") if arch]
    if not set(archs) <= set(ARCHS):
        sys.exit(f"HUMMING_CUDA_ARCHS = {args.archs!r}: choose from {';'.join(ARCHS)}")
    manifest = tomllib.loads(args.manifest.read_text())
    try:
        families = read_families(manifest)
        instances = select_instances(manifest, families, args.preset, archs)
    except ValueError as error:
        sys.exit(f"{args.manifest}: {error}")

    files = {}  # name -> instances
    for arch in archs if not args.table_only else []:
        for index, part in enumerate(split_evenly([i for i in instances if i.arch == arch])):
            files[f"instances_sm{arch}_{index}.cu"] = part
    out = args.out / "instances"
    for stale in out.glob("instances_sm*.cu"):
        if stale.name not in files:
            stale.unlink()
    for name, part in files.items():
        write_if_changed(out / name, kernel_source(part))
    write_if_changed(out / "instances_generated.h", generated_header(families))
    table = table_source(families, instances, args.preset, archs, launchers=not args.table_only)
    write_if_changed(out / "instances_table.cpp", table)
    report = [
        {"name": i.name, "arch": i.arch, "config": i.config, "file": name, "allow": i.row.get("allow", "")}
        for name, part in files.items()
        for i in part
    ]
    write_if_changed(out / "instances.json", json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
