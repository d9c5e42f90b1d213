"""What the support table says of a format and an activation is what happens on the CPU.

The table is the README's, as the installed package carries it; `make lint` holds it against the formats.
"""

import importlib.metadata
import itertools

import humming_ext as he
import moe_layers
import moe_products
import products
import pytest
import torch
from cases import legal
from fuzz import run
from moe_layers import LayerCase
from moe_products import Epilogue, lay_out, make_mixture
from moe_routings import Routing
from oracle.formats import FORMATS
from products import case_of, make_problem
from support import OPERANDS, TORCH, WeightCase

ops = torch.ops.humming
pytestmark = pytest.mark.usefixtures("one_thread")

# Activation -> the column that says how it is taken, and the operands that take it without widening.
ACTIVATIONS = {
    "bf16": ("bf16, fp16", ["bf16"]),
    "fp16": ("bf16, fp16", ["fp16"]),
    "e4m3": ("fp8 e4m3", ["e4m3"]),
    "int8": ("int8", ["s8"]),
    "int4": ("int4", ["s4", "s8"]),
    "e5m2": (None, []),  # always widened
}


def read_table(first_column: str) -> dict[str, dict[str, str]]:
    """The rows of a table of the README, by every name in their first cell."""
    lines = importlib.metadata.metadata("humming_ext").get_payload().splitlines()
    lines = itertools.dropwhile(lambda line: not line.startswith(f"| {first_column} |"), lines)
    lines = itertools.takewhile(lambda line: line.startswith("|"), lines)
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {name: dict(zip(head, row, strict=True)) for row in rows for name in row[0].replace("`", "").split(", ")}


TABLE = read_table("weight")


def named_operands(fmt: str, activation: str) -> list[str]:
    """The operands that the table names for a pair: bf16 where it says widened."""
    column, own = ACTIVATIONS[activation]
    cell = "widened" if column is None else TABLE[fmt][column]
    return {"native": own, "native, as s8": ["s8"], "widened": ["bf16"]}[cell]


PAIRS = list(itertools.product(FORMATS, ACTIVATIONS))
NAMED = {fmt: {operand for name in ACTIVATIONS for operand in named_operands(fmt, name)} for fmt in FORMATS}
every_pair = pytest.mark.parametrize(("fmt", "activation"), PAIRS)


def test_every_op_runs_every_format_on_the_cpu() -> None:
    assert TABLE.keys() == FORMATS.keys()
    assert {row["CPU"] for row in TABLE.values()} == {"all ops"}
    table = read_table("op")
    assert {row["CPU"] for row in table.values()} == {"yes"}
    assert all(hasattr(ops, op) for op in table)


@every_pair
def test_the_plan_is_the_tables(fmt: str, activation: str) -> None:
    spec, dtype = he.QuantSpec(he.WeightFormat[fmt]), TORCH[activation]
    operand = named_operands(fmt, activation)[-1]  # s4 is for older GPUs
    if operand in ACTIVATIONS[activation][1]:
        assert spec.for_activation(dtype).operand.name == operand
    else:
        with pytest.raises(ValueError, match="widen=True"):
            spec.for_activation(dtype)
    planned = spec.for_activation(dtype, widen=True)
    assert planned.operand.name == operand
    assert f"operand {operand}" in he.explain(planned.desc(64, 128), dtype)


@every_pair
def test_named_pairs_are_right_with_every_scale(fmt: str, activation: str) -> None:
    for operand in named_operands(fmt, activation):
        for case in legal(fmt, operand):
            pair = (fmt, operand, case.scale, case.group, case.zero)
            problem = make_problem(case_of(pair, 24, 136), 3, "cpu", simple=True, x_kind=activation)
            products.check_exact(run, problem)
        problem = make_problem(case_of(pair, 72, 200), 33, "cpu", x_kind=activation)
        products.check_random(run, problem)


@every_pair
def test_named_pairs_are_right_with_experts(fmt: str, activation: str) -> None:
    for operand in named_operands(fmt, activation):
        case = legal(fmt, operand)[-1]
        pair, routing = (fmt, operand, case.scale, case.group, case.zero), Routing("mapped", 21, 3, 4)
        for layout in moe_products.LAYOUTS:
            mixture = make_mixture(pair, 48, 136, routing, Epilogue(), "cpu", simple=True, x_kind=activation)
            moe_products.check_exact(run, lay_out(mixture, layout))
            mixture = make_mixture(pair, 48, 136, routing, Epilogue("silu"), "cpu", gate_up=True, x_kind=activation)
            moe_products.check_random(run, lay_out(mixture, layout))


@pytest.mark.parametrize(("fmt", "operand"), [(fmt, operand) for fmt in FORMATS for operand in sorted(NAMED[fmt])])
def test_named_operands_make_layers(fmt: str, operand: str) -> None:
    case = LayerCase("layer", WeightCase(fmt, operand), hidden=136, inner=72, experts=4, top_k=2)
    problem = moe_layers.make_problem(case, Routing("mapped", 9, 2, 4))
    problem.check(problem.run())


@pytest.mark.parametrize(("fmt", "operand"), list(itertools.product(FORMATS, OPERANDS)))
def test_other_operands_are_refused(fmt: str, operand: str) -> None:
    desc = WeightCase(fmt, operand).desc
    if operand in NAMED[fmt]:
        ops.packed_shape(desc)
        return
    with pytest.raises(RuntimeError, match=rf"desc: operand {operand} does not hold every value of {fmt}; pack for"):
        ops.packed_shape(desc)
