"""gemm against the oracle: exact first, then within the derived tolerance."""

from dataclasses import dataclass

import humming_ext  # noqa: F401 - registers the ops
import numpy as np
import pytest
import torch
from cases import GATE_UP, WEIGHTS
from oracle.formats import value_table
from oracle.matmul import gemm
from oracle.rounding import ROUND, fma32
from support import (
    TORCH,
    Activations,
    WeightCase,
    array,
    assert_as_accurate,
    assert_bits_equal,
    guarded,
    operand_rounded,
    tensor,
)

ops = torch.ops.humming

NATIVE = {"bf16": "bf16", "fp16": "fp16", "e4m3": "e4m3", "s8": "int8", "s4": "int4"}  # x of each operand
DENSE_GATE_UP = [case for case in GATE_UP if not case.experts]


def combined(scale2: np.ndarray | None, row_scale: torch.Tensor | None) -> torch.Tensor | None:
    """The scale2 to pass: the test's own times what prepack moved out of the scales."""
    if row_scale is None:
        return None if scale2 is None else torch.from_numpy(scale2.astype(np.float32))
    return row_scale if scale2 is None else torch.from_numpy((scale2 * row_scale.numpy()).astype(np.float32))


@pytest.mark.parametrize("case", [*WEIGHTS, *DENSE_GATE_UP], ids=str)
def test_identity_returns_the_weights(case: WeightCase) -> None:
    """Row k of the identity picks column k: the dequantised weight bit for bit, in logical order."""
    weights = case.make()
    packed, row_scale = weights.pack()
    kind = NATIVE[case.operand]
    if kind == "int4":
        identity = np.eye(case.k, dtype=np.uint8)
        x = torch.from_numpy(identity[:, 0::2] | identity[:, 1::2] << 4)
    else:
        x = torch.eye(case.k).to(TORCH[kind])
    x_scale = None if kind in ("bf16", "fp16") else torch.ones(1)
    out = ops.gemm(x, x_scale, packed, row_scale, None, case.desc, out_dtype=torch.float32)
    # A sum that starts at +0 turns a weight of -0 into +0.
    assert_bits_equal(out.T.contiguous(), torch.from_numpy(weights.decoded()) + 0.0)


@dataclass(frozen=True)
class GemmCase:
    weight: WeightCase
    x: str
    x_scale: str = "none"
    m: int = 5
    out: str = "bf16"
    scale2: str = "none"  # none, tensor, channel
    bias: str = "none"  # none or a type

    def __str__(self) -> str:
        return f"{self.weight}-x_{self.x}-{self.x_scale}-m{self.m}-{self.out}-scale2_{self.scale2}-bias_{self.bias}"


INTEGER_SUMS = [
    GemmCase(
        WeightCase(fmt, operand, scale, group, zero, n, k, power_of_two_scales=True), x, x_scale, m, out, scale2, bias
    )
    for fmt, operand, scale, group, zero, n, k, x, x_scale, m, out, scale2, bias in [
        ("int4", "bf16", "fp32", 32, "none", 80, 192, "bf16", "none", 5, "fp32", "none", "none"),
        ("uint4", "bf16", "bf16", 16, "integer", 72, 80, "bf16", "none", 33, "bf16", "channel", "fp32"),
        ("uint8", "bf16", "fp16", 128, "integer", 64, 288, "bf16", "none", 7, "fp32", "tensor", "bf16"),
        ("e2m1", "bf16", "e8m0", 32, "none", 40, 128, "bf16", "none", 3, "fp32", "none", "fp16"),
        ("int3", "bf16", "e4m3", 64, "none", 64, 360, "e4m3", "token", 9, "fp32", "tensor", "fp32"),
        ("int8", "bf16", "bf16", 64, "none", 80, 192, "int8", "e8m0-g64", 5, "fp32", "none", "none"),
        ("uint2", "bf16", "fp32", 128, "integer", 80, 200, "int4", "g32", 4, "fp32", "channel", "none"),
        ("e3m2", "bf16", "none", 0, "none", 24, 64, "e5m2", "tensor", 2, "fp32", "none", "none"),
        ("int6", "fp16", "fp16", 128, "none", 80, 192, "fp16", "none", 5, "fp16", "channel", "none"),
        ("e2m3", "fp16", "none", 0, "none", 80, 192, "fp16", "none", 1, "fp32", "none", "none"),
        ("int5", "e4m3", "none", 0, "none", 80, 192, "e4m3", "token", 5, "fp32", "channel", "fp32"),
        ("uint4", "e4m3", "bf16", 128, "integer", 80, 360, "e4m3", "g128", 5, "fp32", "none", "none"),
        ("int4", "s8", "none", 0, "none", 80, 192, "int8", "column", 5, "fp32", "channel", "none"),
        ("int8", "s8", "fp32", 128, "none", 80, 360, "int8", "g128", 5, "fp32", "tensor", "fp16"),
        ("uint7", "s8", "bf16", 128, "integer", 80, 192, "int4", "token", 6, "bf16", "none", "none"),
        ("int3", "s4", "none", 0, "none", 200, 200, "int4", "tensor", 5, "fp32", "channel", "fp32"),
        ("uint3", "s4", "fp16", 128, "integer", 80, 360, "int4", "g128", 5, "fp32", "none", "none"),
    ]
]


@pytest.mark.parametrize("case", INTEGER_SUMS, ids=str)
def test_small_integers_give_exact_sums(case: GemmCase) -> None:
    weights = case.weight.make()
    packed, row_scale = weights.pack()
    n, k, rng = case.weight.n, case.weight.k, weights.rng
    scale2 = {"none": None, "tensor": np.array([0.5]), "channel": np.exp2(rng.integers(-1, 2, n))}[case.scale2]
    bias = None if case.bias == "none" else rng.integers(-8, 9, n)
    x = Activations.make(rng, case.x, case.m, k, case.x_scale, small=True)
    out = ops.gemm(
        *(x.x, x.x_scale, packed, combined(scale2, row_scale)),
        *(None if bias is None else tensor(bias, case.bias), case.weight.desc),
        out_dtype=TORCH[case.out],
    )
    exact = gemm(x.values, weights.values(scale2), bias=bias)
    assert np.array_equal(ROUND["fp32"](exact), exact), "the case itself is not exact in fp32"
    np.testing.assert_array_equal(array(out), ROUND[case.out](exact))


def random_product(case: GemmCase) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """(ours, exact in float64, plain torch with weights of the operand's precision)."""
    weights = case.weight.make()
    packed, row_scale = weights.pack()
    n, k, rng = case.weight.n, case.weight.k, weights.rng
    x = Activations.make(rng, case.x, case.m, k, case.x_scale)
    values = weights.values()
    # scale2 brings the sums to about one, so that no output type overflows.
    unit = 1 / (np.sqrt(k) * (values.std() + 1e-9) * (x.values.std() + 1e-9)) if x.values.size else 1.0
    shape = {"tensor": 1, "channel": n}.get(case.scale2)
    scale2 = None if shape is None else ROUND["fp32"](rng.uniform(0.5, 1, shape) * unit)
    bias = None if case.bias == "none" else ROUND[case.bias](rng.standard_normal(n))
    out = ops.gemm(
        *(x.x, x.x_scale, packed, combined(scale2, row_scale)),
        *(None if bias is None else tensor(bias, case.bias), case.weight.desc),
        out_dtype=TORCH[case.out],
    )
    exact = gemm(x.values, weights.values(scale2), bias=bias)
    plain_weights = torch.from_numpy(operand_rounded(values, case.weight.operand)).float()
    plain = torch.from_numpy(x.values).float() @ plain_weights.T
    plain = plain if scale2 is None else plain * torch.from_numpy(scale2).float()
    plain = plain if bias is None else plain + torch.from_numpy(bias).float()
    return out, exact, plain.to(TORCH[case.out])


def _random_cases() -> list[GemmCase]:
    cases = []
    for turn, weight in enumerate(WEIGHTS):
        x = NATIVE[weight.operand]
        scales = ["none"] if x in ("bf16", "fp16") else ["token", "tensor", "column", "g128"]
        cases.append(
            GemmCase(
                weight,
                x,
                scales[turn % len(scales)],
                m=[5, 1, 16, 33][turn % 4],
                out=["bf16", "fp16"][turn % 2],
                scale2=["channel", "tensor"][turn % 2],
                bias=["none", "bf16", "fp16", "fp32"][turn // 2 % 4],
            )
        )
    return cases


WIDENED = [
    GemmCase(WeightCase(fmt, "bf16", scale, group, zero, 72, k), x, x_scale, scale2="channel")
    for turn, (x, x_scale) in enumerate(
        (x, x_scale)
        for x in ("e4m3", "e5m2", "int8", "int4")
        for x_scale in ("tensor", "token", "column", "g32", "g64", "g128", "e8m0-g32", "e8m0-g64", "e8m0-g128")
    )
    for fmt, scale, group, zero, k in [
        [("uint4", "bf16", 32, "floating", 160), ("e2m1", "e4m3", 16, "none", 192), ("int8", "none", 0, "none", 360)][
            turn % 3
        ]
    ]
]


@pytest.mark.parametrize("case", [*_random_cases(), *WIDENED], ids=str)
def test_random_products_are_as_accurate_as_torch(case: GemmCase) -> None:
    assert_as_accurate(*random_product(case))


@pytest.mark.parametrize("m", [0, 1, 2, 3, 7, 15, 16, 17, 31, 64, 65, 95, 96, 97, 200])
@pytest.mark.parametrize(
    "weight",
    [
        WeightCase("int4", "bf16", "bf16", 128, n=72, k=256),
        WeightCase("e2m1", "e4m3", "e8m0", 32, n=72, k=256),
        WeightCase("int8", "s8", n=72, k=256),
    ],
    ids=str,
)
def test_any_number_of_tokens(weight: WeightCase, m: int) -> None:
    x = NATIVE[weight.operand]
    out, exact, plain = random_product(GemmCase(weight, x, "none" if x == "bf16" else "token", m=m, scale2="channel"))
    assert out.shape == (m, weight.n)
    assert_as_accurate(out, exact, plain)


@pytest.mark.parametrize("k", [32, 64, 80, 128, 160, 192, 288, 320, 360, 720])
@pytest.mark.parametrize("n", [8, 63, 64, 65, 80, 128, 200, 360])
def test_any_shape(n: int, k: int) -> None:
    weight = WeightCase("uint4", "bf16", "bf16", 32, "integer", n=n, k=k)
    assert_as_accurate(*random_product(GemmCase(weight, "bf16", scale2="channel", bias="fp32")))


@pytest.mark.parametrize("case", DENSE_GATE_UP, ids=str)
def test_gate_up_weights_keep_the_logical_order(case: WeightCase) -> None:
    assert_as_accurate(*random_product(GemmCase(case, "bf16", scale2="channel", bias="bf16")))


@pytest.mark.parametrize("k", [320, 2048])
@pytest.mark.parametrize(
    ("fmt", "operand", "scale", "group", "x", "x_scale"),
    [
        ("int8", "s8", "none", 0, "int8", "column"),
        ("int4", "s8", "none", 0, "int4", "tensor"),
        ("int8", "s8", "fp32", 128, "int8", "column"),
        ("uint7", "s8", "bf16", 128, "int8", "g128"),
        ("int4", "s4", "none", 0, "int4", "column"),
        ("uint3", "s4", "fp16", 128, "int4", "g128"),
    ],
)
def test_integer_products_are_exact_to_the_epilogue(
    fmt: str, operand: str, scale: str, group: int, x: str, x_scale: str, k: int
) -> None:
    """Integer sums are exact; the fp32 steps after them are documented one by one, so the result has one value."""
    weight = WeightCase(fmt, operand, scale, group, n=72, k=k)
    weights = weight.make()
    packed, _ = weights.pack()
    given = Activations.make(weights.rng, x, 9, k, x_scale)
    scale2 = weights.rng.uniform(0.5, 2, 72).astype(np.float32)
    bias = weights.rng.standard_normal(72).astype(np.float32)
    out = ops.gemm(
        *(given.x, given.x_scale, packed, torch.from_numpy(scale2), torch.from_numpy(bias), weight.desc),
        out_dtype=torch.float32,
    )

    numbers = given.numbers
    codes = value_table(fmt)[weights.codes]
    row_scales = given.x_scale.numpy().reshape(given.x_scale.shape[0], -1)
    if group or given.group:
        total = np.zeros((9, 72), np.float32)
        for g, first in enumerate(range(0, k, 128)):
            partial = (numbers[:, first : first + 128] @ codes[:, first : first + 128].T).astype(np.float32)
            factor = np.float32(1) if weights.scale is None else weights.scale[:, g].astype(np.float32)
            if given.group:
                factor = factor * row_scales[:, g : g + 1]
            total = fma32(partial, factor, total)
    else:
        total = (numbers @ codes.T).astype(np.float32)
    if not given.group:
        total = total * row_scales
    assert_bits_equal(out, torch.from_numpy(total * scale2 + bias))


def test_the_largest_integer_sums_do_not_overflow() -> None:
    k = 131071
    weight = WeightCase("int8", "s8", n=2, k=k)
    codes = torch.zeros((2, k), dtype=torch.uint8)  # -128
    codes[1] = 255  # 127
    packed = ops.prepack(codes, 8, None, None, weight.desc)[0]
    x = torch.tensor([[-128], [127]], dtype=torch.int8).expand(2, k).contiguous()
    out = ops.gemm(x, torch.ones(1), packed, None, None, weight.desc, out_dtype=torch.float32)
    exact = np.array([[128 * 128, -128 * 127], [-128 * 127, 127 * 127]], np.float64) * k
    np.testing.assert_array_equal(array(out), ROUND["fp32"](exact))


@pytest.mark.parametrize("x_dtype", ["bf16", "e4m3", "int8"])
def test_the_default_output_type(x_dtype: str) -> None:
    weight = WeightCase("int4", "bf16", n=8, k=64)
    packed, _ = weight.make().pack()
    x = Activations.make(np.random.default_rng(0), x_dtype, 2, 64, "none" if x_dtype == "bf16" else "token")
    assert ops.gemm(x.x, x.x_scale, packed, None, None, weight.desc).dtype == torch.bfloat16
    fp16 = WeightCase("int4", "fp16", n=8, k=64)
    packed, _ = fp16.make().pack()
    assert ops.gemm(torch.zeros(2, 64).half(), None, packed, None, None, fp16.desc).dtype == torch.float16


@pytest.mark.parametrize("operand", NATIVE)
def test_rows_may_be_strided_and_nothing_else_is_touched(operand: str) -> None:
    """x rows with a pitch and NaN between them, out rows with a pitch and guard bytes between them."""
    case = WeightCase("int3", operand, n=72, k=200)
    packed, _ = case.make().pack()
    kind = NATIVE[operand]
    x = Activations.make(np.random.default_rng(3), kind, 5, 200, "none" if kind in ("bf16", "fp16") else "column")
    expected = ops.gemm(x.x, x.x_scale, packed, None, None, case.desc, out_dtype=torch.float32)
    columns = x.x.shape[1]
    with (
        guarded((5, columns), x.x.dtype, pitch=columns + 56) as strided,
        guarded((5, 72), torch.float32, pitch=104) as out,
        guarded((0,), torch.uint8) as workspace,
    ):
        strided.copy_(x.x)
        ops.gemm.out(strided, x.x_scale, packed, None, None, case.desc, out=out, workspace=workspace)
        assert_bits_equal(out.contiguous(), expected)


def test_padding_rows_of_the_weight_do_not_matter() -> None:
    """Rows of the strip past n may have any scale, NaN included."""
    case = WeightCase("int4", "bf16", "bf16", 128, n=40, k=64)
    packed, _ = case.make().pack()
    x = Activations.make(np.random.default_rng(0), "bf16", 3, 64)
    expected = ops.gemm(x.x, None, packed, None, None, case.desc)
    poisoned = packed.clone()
    scales = poisoned[0, 64 * 64 // 2 :][: 64 * 2].view(torch.bfloat16).view(4, 8, 2)  # warp, g, row half
    rows = torch.arange(64).view(4, 2, 8).permute(0, 2, 1)
    scales[rows >= 40] = float("nan")
    assert_bits_equal(ops.gemm(x.x, None, poisoned, None, None, case.desc), expected)


@pytest.mark.parametrize("operand", NATIVE)
def test_runs_and_thread_counts_give_the_same_bits(operand: str) -> None:
    case = WeightCase("int3", operand, "bf16", 128, n=520, k=512)
    packed, _ = case.make().pack()
    kind = NATIVE[operand]
    x = Activations.make(np.random.default_rng(3), kind, 67, 512, "none" if kind in ("bf16", "fp16") else "column")
    run = lambda: ops.gemm(x.x, x.x_scale, packed, None, None, case.desc)  # noqa: E731
    first = run()
    assert_bits_equal(run(), first)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert_bits_equal(run(), first, f"{count} threads")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("operand", NATIVE)
def test_a_row_does_not_depend_on_the_batch(operand: str) -> None:
    case = WeightCase("int3", operand, "bf16", 128, n=72, k=320)
    packed, _ = case.make().pack()
    kind = NATIVE[operand]
    x = Activations.make(np.random.default_rng(3), kind, 103, 320, "none" if kind in ("bf16", "fp16") else "column")
    run = lambda rows: ops.gemm(  # noqa: E731
        x.x[rows], None if x.x_scale is None else x.x_scale[rows], packed, None, None, case.desc
    )
    whole = run(slice(None))
    for rows in (slice(0, 1), slice(5, 12), slice(90, 103)):
        assert_bits_equal(run(rows), whole[rows].contiguous())
