"""Lists of cases that several test files share."""

import itertools

from oracle.formats import FORMATS
from support import OPERANDS, SCALE_TYPES, ZERO_KINDS, WeightCase, takes_operand

SHAPES = [(80, 192), (200, 80), (64, 360), (136, 288), (40, 128), (72, 64)]  # (n, k)


def legal(fmt: str, operand: str) -> list[WeightCase]:
    """Every legal combination of scales and zero points of a format and an operand."""
    combinations = itertools.product(SCALE_TYPES, (0, 16, 32, 64, 128), ZERO_KINDS)
    cases = (WeightCase(fmt, operand, *combination) for combination in combinations)
    return [case for case in cases if case.is_legal]


def _with_shapes(cases: list[WeightCase]) -> list[WeightCase]:
    shapes = itertools.cycle(SHAPES)
    return [WeightCase(c.fmt, c.operand, c.scale, c.group, c.zero, *next(shapes)) for c in cases]


def _rotate() -> list[WeightCase]:
    """Every format with every operand that takes it, its scales drawn in turn."""
    cases = []
    for turn, (operand, fmt) in enumerate(itertools.product(OPERANDS, FORMATS)):
        if takes_operand(fmt, operand):
            choices = legal(fmt, operand)
            cases.append(choices[turn * 5 % len(choices)])
    return cases


# Every format x operand, then every scale and zero kind on one format of each kind.
EVERY_FORMAT = _with_shapes(_rotate())
EVERY_SCALE = _with_shapes(
    [
        *(case for fmt in ("uint4", "e2m1", "e3m2", "int3") for case in legal(fmt, "bf16")),
        *(case for fmt in ("uint8", "e2m1", "e5m2") for case in legal(fmt, "fp16")),
        *(case for fmt in ("int4", "uint4", "e2m1", "e4m3") for case in legal(fmt, "e4m3")),
        *(case for operand in ("s8", "s4") for fmt in ("int1", "int4", "uint3") for case in legal(fmt, operand)),
    ]
)
WEIGHTS = list(dict.fromkeys([*EVERY_FORMAT, *EVERY_SCALE]))
GATE_UP = [
    WeightCase("int4", "bf16", "bf16", 32, n=n, k=k, experts=experts, gate_up=True, row_order=row_order)
    for n, k, experts in [(80, 192, 0), (200, 80, 3), (128, 128, 0), (16, 64, 2)]
    for row_order in ("gate_up", "gate_up_interleaved")
]
EXPERTS = [
    WeightCase("e2m1", "e4m3", "e8m0", 32, n=72, k=160, experts=3),
    WeightCase("uint4", "bf16", "fp32", 64, "floating", n=40, k=128, experts=1),
    WeightCase("uint3", "s4", "bf16", 128, "integer", n=64, k=192, experts=4),
    WeightCase("int8", "s8", n=24, k=320, experts=2),
]
