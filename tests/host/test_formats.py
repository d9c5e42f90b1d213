"""The format table against the oracle: names, ids, every value of every code, and what each operand type can hold."""

import math
from types import ModuleType

import numpy as np
import pytest
from oracle.formats import FORMATS, finite_codes, value_table


def test_the_table_has_exactly_these_formats(host: ModuleType) -> None:
    rows = {row["name"]: row for row in host.formats()}
    assert rows.keys() == FORMATS.keys()
    for name, fmt in FORMATS.items():
        for field in ("id", "kind", "bits", "exponent_bits", "mantissa_bits"):
            assert rows[name][field] == getattr(fmt, field), (name, field)


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_has_its_value(host: ModuleType, name: str) -> None:
    fmt, table, finite = FORMATS[name], value_table(name), set(finite_codes(name).tolist())
    for code in range(1 << fmt.bits):
        assert host.is_finite_code(fmt.id, code) == (code in finite)
        if code in finite:
            value = host.code_value(fmt.id, code)
            assert value == table[code] and math.copysign(1, value) == math.copysign(1, table[code]), code


@pytest.mark.parametrize("name", FORMATS)
def test_operands_hold_every_value(host: ModuleType, name: str) -> None:
    """A format has exactly the operand types that represent all its values (uint: all differences to a zero).

    Tables have bf16 and fp16, which round them.
    """
    fmt = FORMATS[name]
    values = value_table(name)[finite_codes(name)]
    if fmt.kind == "uint":
        values = (values[:, None] - np.arange(2**fmt.bits + 1)).reshape(-1)
    integer = np.all(values == np.rint(values))
    expected = {1, 2}
    if np.isin(values, value_table("e4m3")).all():
        expected.add(3)
    if integer and values.min() >= -128 and values.max() <= 127:
        expected.add(4)
    if integer and values.min() >= -8 and values.max() <= 7:
        expected.add(5)
    row = next(row for row in host.formats() if row["name"] == name)
    assert set(row["operands"]) == expected
