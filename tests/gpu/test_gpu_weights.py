"""prepack and decode_packed on the GPU: the CPU ops' bytes."""

import humming_ext  # noqa: F401 - registers the ops
import numpy as np
import pytest
import torch
from both import compare, ops
from cases import EXPERTS, GATE_UP, WEIGHTS, legal
from oracle.formats import FORMATS
from oracle.rounding import e8m0_value
from support import WeightCase, Weights, assert_bits_equal, takes_operand

ORDERS = ("bf16", "e4m3", "s4")  # one operand of each order of packing


def compare_both_ways(weights: Weights) -> None:
    """Packing from a bitstream and from bytes, then decoding to codes and to values."""
    for bitstream in (True, False):
        compare("prepack", *weights.prepack_args(bitstream=bitstream))
    packed, row_scale, _ = ops.prepack(*weights.prepack_args())
    desc = weights.case.desc
    compare("decode_packed", packed, None, desc, codes=True)
    compare("decode_packed", packed, row_scale if weights.case.rebased else None, desc)


@pytest.mark.parametrize("case", (*WEIGHTS, *GATE_UP, *EXPERTS), ids=str)
def test_every_format_scale_and_row_order(case: WeightCase) -> None:
    compare_both_ways(case.make())


@pytest.mark.parametrize(
    ("fmt", "operand"), [(fmt, operand) for operand in ORDERS for fmt in FORMATS if takes_operand(fmt, operand)]
)
def test_odd_shapes(fmt: str, operand: str) -> None:
    for n, k in [(1, 1), (64, 3), (65, 64), (130, 65), (9, 128), (1, 192), (70, 200), (3, 257)]:
        compare_both_ways(WeightCase(fmt, operand, n=n, k=k).make())


def test_gate_and_up_of_any_number_of_rows() -> None:
    for n in (2, 14, 16, 18, 126, 130):
        for row_order in ("gate_up", "gate_up_interleaved"):
            compare_both_ways(
                WeightCase("int5", "bf16", "bf16", 16, n=n, k=100, gate_up=True, row_order=row_order).make()
            )


def test_secondary_scales() -> None:
    case = WeightCase("uint4", "bf16", "fp16", 32, "floating", n=72, k=200, experts=3)
    packed, _ = case.make().pack()
    for shape in [(3,), (3, 72)]:
        compare("decode_packed", packed, torch.rand(shape) + 0.5, case.desc)
    dense = WeightCase("e4m3", "e4m3", "fp32", 128, n=72, k=200)
    packed, _ = dense.make().pack()
    for shape in [(1,), (72,)]:
        compare("decode_packed", packed, torch.rand(shape) + 0.5, dense.desc)


E8M0 = [
    case
    for fmt in ("e2m1", "e3m2", "e4m3", "e5m2")
    for operand in ("fp16", "e4m3", "bf16")
    for case in legal(fmt, operand)
    if case.scale == "e8m0"
]


@pytest.mark.parametrize("case", E8M0, ids=str)
def test_scales_of_any_distance(case: WeightCase) -> None:
    """Rows whose e8m0 scales span the whole range: the same rounding and the same counts."""
    weights = WeightCase(case.fmt, case.operand, "e8m0", case.group, n=70, k=520).make()
    groups = weights.scale.shape[1]
    rng = np.random.default_rng(0)
    centre = rng.integers(0, 255, (70, 1))
    exponents = np.clip(centre + rng.integers(-30, 31, (70, groups)), 0, 254)
    exponents[0] = rng.integers(0, 255, groups)
    weights.scale = e8m0_value(exponents)
    compare_both_ways(weights)


def test_bad_values_are_counted_alike() -> None:
    for fmt, bad in [("e4m3", [0x7F, 0xFF]), ("e5m2", [0x7C, 0x7D, 0xFE])]:
        weights = WeightCase(fmt, "bf16", "bf16", 64, n=70, k=130).make()
        weights.codes[3, 5 : 5 + len(bad)] = bad
        weights.codes[69, 129] = bad[0]
        weights.scale[[0, 1, 2], 0] = [np.inf, -np.inf, np.nan]
        compare("prepack", *weights.prepack_args())
    weights = WeightCase("uint3", "bf16", "fp32", 32, "integer", n=70, k=130).make()
    weights.zero[4, 1:3] = [9, 255]
    weights.codes[7, 7:10] = [8, 100, 255]
    compare("prepack", *weights.prepack_args(bitstream=False))
    weights = WeightCase("uint4", "bf16", "fp16", 32, "floating", n=70, k=130).make()
    weights.offset[1, :3] = [np.inf, -np.inf, np.nan]
    compare("prepack", *weights.prepack_args())


@pytest.mark.parametrize(("n", "k", "fmt"), [(4_300_000, 64, "int1"), (300_000, 1024, "uint4"), (128, 500_000, "int8")])
def test_large_weights(n: int, k: int, fmt: str) -> None:
    """More strips and records than one launch has blocks; head and tail rows against the CPU."""
    case = WeightCase(fmt, n=n, k=k)
    row_bytes = -(-k * FORMATS[fmt].bits // 8)
    codes = torch.randint(0, 256, (n, row_bytes), dtype=torch.uint8, device="cuda")
    packed, _, stats = ops.prepack(codes, FORMATS[fmt].bits, None, None, case.desc)
    assert stats.tolist() == [0, 0]
    for first in (0, (n - 1) // 64 * 64):
        rows = codes[first : first + 64].cpu()
        part = WeightCase(fmt, n=len(rows), k=k)
        expected, _, _ = ops.prepack(rows, FORMATS[fmt].bits, None, None, part.desc)
        assert_bits_equal(packed[first // 64 : first // 64 + 1].cpu(), expected)
    decoded = ops.decode_packed(packed, None, case.desc, codes=True)
    sample = torch.randint(0, n, (50,))
    part = WeightCase(fmt, n=50, k=k)
    again, _, _ = ops.prepack(codes[sample.cuda()].cpu(), FORMATS[fmt].bits, None, None, part.desc)
    assert_bits_equal(decoded[sample.cuda()].cpu(), ops.decode_packed(again, None, part.desc, codes=True))
