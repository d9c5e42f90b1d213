"""The problems that GPU tests hold kernels against: the same numbers as the oracle's, and the CPU product passes."""

import humming_ext  # noqa: F401 - registers the ops
import numpy as np
import products
import pytest
import torch
from oracle.matmul import gemm, scaled_rows
from oracle.rounding import unpack_int4
from oracle.weights import dequantise
from products import PAIRS, Maker, Problem, case_of, make_problem
from support import array

ops = torch.ops.humming


def run(problem: Problem, out: torch.Tensor) -> None:
    ops.gemm.out(*problem.args, out=out, workspace=problem.workspace())


@pytest.mark.parametrize("simple", [True, False])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_weights_are_those_of_the_oracle(pair: tuple, simple: bool) -> None:
    case = case_of(pair, 24, 208)
    weight = Maker("cpu", 1).weight(case, simple=simple)
    scale, zero = (None if tensor is None else array(tensor) for tensor in (weight.scale, weight.zero))
    named = {"offset" if case.zero == "floating" else "zero": zero}
    expected = dequantise(weight.codes.numpy(), case.fmt, scale=scale, group=case.group, **named)
    np.testing.assert_array_equal(array(weight.values), expected)


@pytest.mark.parametrize("bias", [None, "bf16", "fp16", "fp32"])
@pytest.mark.parametrize(
    ("operand", "x_kind", "x_scale", "x_group", "scale2"),
    [
        ("s8", "int8", "groups", 0, "channel"),
        ("s8", "int8", "groups", 128, "channel"),
        ("s8", "int4", "token", 0, "tensor"),
        ("s4", "int4", "tensor", 0, "none"),
        ("bf16", "int4", "e8m0", 32, "channel"),
        ("bf16", "int8", "e8m0", 64, "tensor"),
        ("bf16", "e5m2", "groups", 64, "channel"),
        ("bf16", "bf16", "groups", 0, "none"),
    ],
)
def test_products_are_those_of_the_oracle(
    operand: str, x_kind: str, x_scale: str, x_group: int, scale2: str, bias: str | None
) -> None:
    case = case_of(("int4", operand, "none", 0, "none"), 24, 208)
    tokens = {"x_kind": x_kind, "x_scale": x_scale, "x_group": x_group}
    problem = make_problem(case, 5, "cpu", **tokens, scale2=scale2, bias=bias)
    weights = array(ops.decode_packed(problem.packed, None, case.desc))
    numbers = unpack_int4(problem.x.numpy()) if x_kind == "int4" else array(problem.x)
    x = scaled_rows(numbers, None if problem.x_scale is None else array(problem.x_scale), x_group)
    factors = 1 if problem.scale2 is None else array(problem.scale2)[:, None]
    expected = gemm(x, weights * factors, bias=None if bias is None else array(problem.bias))
    np.testing.assert_allclose(array(problem.exact), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_cpu_product_passes(pair: tuple) -> None:
    products.check_identity(run, pair, "cpu")
    products.check_integers(run, pair, 72, 80, 9, "cpu")
    for n, k, gate_up in [(72, 360, False), (208, 192, True)]:
        problem = make_problem(case_of(pair, n, k, gate_up=gate_up), 20, "cpu")
        for m, pitched in [(1, True), (17, False)]:
            products.check_random(run, problem.rows(m, pitched=pitched))
    problem = problem.rows(5, pitched=True)
    usual = products.product(run, problem)
    for scalar in (False, True):
        for dtype, pitch in products.output_types(scalar=scalar):
            products.assert_one_number_rounded(products.product(run, problem, dtype, pitch=pitch), usual, str(dtype))


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[1] in ("e4m3", "s8", "s4")], ids=str)
def test_the_cpu_product_passes_with_scales_per_token_and_group(pair: tuple) -> None:
    for k in (128, 360):
        products.check_random(run, make_problem(case_of(pair, 72, k), 20, "cpu", x_group=128).rows(9, pitched=True))


def test_a_wrong_element_is_found() -> None:
    pair = PAIRS[0]

    def skips_the_last_row(problem: Problem, out: torch.Tensor) -> None:
        run(problem.rows(len(problem.x) - 1, pitched=True), out[:-1])

    def writes_beside_a_row(problem: Problem, out: torch.Tensor) -> None:
        run(problem, out)
        out.as_strided((1,), (1,), out.storage_offset() + out.shape[1]).zero_()

    problem = make_problem(case_of(pair, 72, 80), 20, "cpu").rows(9, pitched=True)
    for wrong in (skips_the_last_row, writes_beside_a_row):
        with pytest.raises(AssertionError, match=r"outside|wrong set"):
            products.check_random(wrong, problem)
        with pytest.raises(AssertionError, match=r"outside|differ"):
            products.check_integers(wrong, pair, 72, 80, 9, "cpu")
