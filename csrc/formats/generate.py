"""Turns formats.toml into the C++ format table and the Python enum. Run by CMake; nothing it writes is committed.

python generate.py --toml formats.toml --header OUT/formats/formats_generated.h --python OUT/_formats.py
"""

import argparse
import pathlib
import struct

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

KINDS = {"int": "symmetric_int", "uint": "unsigned_int", "float": "floating", "table": "table"}

PYTHON_HEAD = '''"""Weight formats. Generated from csrc/formats/formats.toml."""

import enum


class WeightFormat(enum.IntEnum):
    """A weight code format; the value is the number stored in weight descriptors and files."""

    kind: str  #: "int" (symmetric), "uint" (zero point or float offset), "float" or "table"
    bits: int  #: bits of one code
    exponent_bits: int  #: float formats only, else 0
    mantissa_bits: int  #: float formats only, else 0
    operands: tuple[str, ...]  #: tensor-core operand types that hold every value exactly, besides bf16 and fp16
    values: tuple[float, ...]  #: tables only, else empty: the value of every code, numbers of float32

    def __new__(
        cls,
        value: int,
        kind: str = "",
        bits: int = 0,
        exponent_bits: int = 0,
        mantissa_bits: int = 0,
        operands: tuple[str, ...] = (),
        values: tuple[float, ...] = (),
    ) -> "WeightFormat":
        member = int.__new__(cls, value)
        member._value_ = value
        member.kind = kind
        member.bits = bits
        member.exponent_bits = exponent_bits
        member.mantissa_bits = mantissa_bits
        member.operands = operands
        member.values = values
        return member

'''


def load(path: pathlib.Path) -> list[dict]:
    """Rows of the table, checked for what the C++ code takes for granted."""
    rows = tomllib.loads(path.read_text())["format"]
    for key in ("name", "id"):
        values = [row[key] for row in rows]
        if len(set(values)) != len(values):
            raise ValueError(f"{path.name}: duplicate {key} in {values}")
    for row in rows:
        if row["kind"] == "float" and row["bits"] != 1 + row["exponent"] + row["mantissa"]:
            raise ValueError(f"{path.name}: {row['name']}: bits is not 1 + exponent + mantissa")
        if row.get("exponent", 0) > 5:
            raise ValueError(f"{path.name}: {row['name']}: fp16, which takes every format, has 5 exponent bits")
        if not 1 <= row["bits"] <= 8:
            raise ValueError(f"{path.name}: {row['name']}: bits must be 1 to 8")
        if row["kind"] == "table" and (row["bits"] > 4 or len(row["values"]) != 1 << row["bits"]):
            raise ValueError(f"{path.name}: {row['name']}: a table has a value for every code, and at most 16")
        if any(struct.unpack("f", struct.pack("f", value)) != (value,) for value in row.get("values", ())):
            raise ValueError(f"{path.name}: {row['name']}: a value is no number of float32")
    return rows


def header(rows: list[dict]) -> str:
    """The C++ enum and trait table."""
    enum = ", ".join(f"{row['name']} = {row['id']}" for row in rows)
    lines = [
        "// Generated from csrc/formats/formats.toml; included by formats/format.h only.",
        "#pragma once",
        "",
        "namespace humming {",
        "",
        f"enum class Format : int {{ {enum} }};",
        "",
        "inline constexpr FormatTraits kFormats[] = {",
    ]
    for row in rows:
        operands = " | ".join(["kOperands16"] + [f"operand_bit(Operand::{name})" for name in row["operands"]])
        values = ", ".join(f"{value!r}f" for value in row.get("values", ()))
        lines.append(
            f'    {{"{row["name"]}", {row["id"]}, Kind::{KINDS[row["kind"]]}, {row["bits"]}, {row.get("exponent", 0)}, '
            f"{row.get('mantissa', 0)}, Specials::{row.get('specials', 'none')}, {operands}, {{{values}}}}},"
        )
    return "\n".join([*lines, "};", "", "}  // namespace humming", ""])


def python(rows: list[dict]) -> str:
    """The Python enum."""
    members = (
        f'    {row["name"]} = {row["id"]}, "{row["kind"]}", {row["bits"]}, {row.get("exponent", 0)}, '
        f"{row.get('mantissa', 0)}, {tuple(row['operands'])!r}, {tuple(row.get('values', ()))!r}\n"
        for row in rows
    )
    return PYTHON_HEAD + "".join(members)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--toml", type=pathlib.Path, required=True)
    parser.add_argument("--header", type=pathlib.Path)
    parser.add_argument("--python", type=pathlib.Path)
    args = parser.parse_args()
    rows = load(args.toml)
    for path, text in ((args.header, header(rows)), (args.python, python(rows))):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    main()
