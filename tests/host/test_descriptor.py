"""The weight descriptor: exactly the documented combinations are legal, and each rejection names its field."""

import itertools
from types import ModuleType

import pytest
from oracle.formats import FORMATS
from support import OPERANDS, SCALE_TYPES, ZERO_KINDS, WeightCase


@pytest.mark.parametrize("operand", OPERANDS)
def test_exactly_the_documented_combinations_are_legal(host: ModuleType, operand: str) -> None:
    wrong = []
    for fmt, scale, group, zero in itertools.product(FORMATS, SCALE_TYPES, (0, 16, 32, 64, 128), ZERO_KINDS):
        case = WeightCase(fmt, operand, scale, group, zero)
        try:
            host.desc_facts(case.desc)
            accepted = True
        except RuntimeError:
            accepted = False
        if accepted != case.is_legal:
            wrong.append((str(case), "accepted" if accepted else "rejected"))
    assert not wrong


GOOD = WeightCase("int4", scale="bf16", group=128, n=128, k=256).desc
VERSION, FORMAT, OPERAND, N, K, EXPERTS, SCALE_TYPE, GROUP, ZERO, GATE_UP = range(10)
S8 = WeightCase("int8", "s8", n=128, k=256).desc


@pytest.mark.parametrize(
    ("base", "field", "value", "message"),
    [
        (GOOD, VERSION, 0, "layout version 0"),
        (GOOD, VERSION, 2, "layout version 2"),
        (GOOD, FORMAT, 0, "format 0"),
        (GOOD, FORMAT, 9, "format 9"),
        (GOOD, FORMAT, 2**40, "format 1099511627776"),
        (GOOD, OPERAND, 0, "operand = 0"),
        (GOOD, OPERAND, 6, "operand = 6"),
        (GOOD, N, 0, "n = 0"),
        (GOOD, N, -1, "n = -1"),
        (GOOD, N, 2**31, "n = 2147483648"),
        (GOOD, K, 0, "k = 0"),
        (GOOD, K, 2**31, "k = 2147483648"),
        (GOOD, EXPERTS, -1, "experts = -1"),
        (GOOD, EXPERTS, 2**31, "experts = 2147483648"),
        (GOOD, SCALE_TYPE, 6, "scale_type = 6"),
        (GOOD, GROUP, 48, "group = 48"),
        (GOOD, GROUP, 256, "group = 256"),
        (GOOD, GROUP, 0, "group = 0"),
        (GOOD, ZERO, 3, "zero = 3"),
        (GOOD, ZERO, 1, "zero is set for format int4"),
        (GOOD, GATE_UP, 2, "gate_up = 2"),
        (S8, K, 131072, "k = 131072"),
        (S8, ZERO, 2, "zero"),
        (S8, FORMAT, FORMATS["e4m3"].id, "operand s8"),
    ],
)
def test_a_bad_field_is_named(host: ModuleType, base: list[int], field: int, value: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"desc: .*{message}"):
        host.desc_facts([value if i == field else old for i, old in enumerate(base)])


def test_an_odd_gate_up_weight_is_rejected(host: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="n = 81 is odd"):
        host.desc_facts(WeightCase("int4", n=81, gate_up=True).desc)


@pytest.mark.parametrize("count", [0, 9, 11])
def test_the_number_of_integers_is_checked(host: ModuleType, count: int) -> None:
    with pytest.raises(RuntimeError, match=f"desc: .*got {count}"):
        host.desc_facts([*GOOD, 0][:count])


def test_sizes_that_pass_63_bits_are_rejected(host: ModuleType) -> None:
    case = WeightCase("int8", n=2**31 - 1, k=2**31 - 1, experts=2**31 - 1)
    with pytest.raises(RuntimeError, match="too large"):
        host.desc_facts(case.desc)
    host.desc_facts(WeightCase("int8", n=2**30, k=2**29).desc)  # large but countable
