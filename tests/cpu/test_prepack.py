"""prepack and decode_packed against the oracle: the bytes, the values, what is counted and what is padded."""

import hashlib

import humming_ext  # noqa: F401 - registers the ops
import numpy as np
import pytest
import torch
from cases import EVERY_SCALE, EXPERTS, GATE_UP, WEIGHTS
from oracle.formats import FORMATS, finite_codes, value_table
from oracle.packing import pack
from oracle.rounding import e8m0_value
from support import WeightCase, Weights, array, assert_bits_equal, guarded, rebase_window, tensor

ops = torch.ops.humming

# Scales, zero points, padding and row orders of layout version 4 in one number; see also tests/host/test_layout.py.
GOLDEN = "54a6b187338b339878329496daab95adb9e31ce047188daf197c1fc90414b241"


def entry_bytes(values: np.ndarray | None, dtype: str) -> np.ndarray | None:
    """uint8 [..., entry bytes] of scales or offsets."""
    if values is None:
        return None
    raw = tensor(values, dtype)
    return raw.view(torch.uint8).reshape(*raw.shape, raw.element_size()).numpy()


def rebased(scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(stored scales, row scale): a row's largest scale moves out, so that 1.0 is the largest stored one."""
    largest = scale.max(axis=-1, keepdims=True)
    return scale / largest, largest[..., 0].astype(np.float32)


def expected_bytes(weights: Weights) -> np.ndarray:
    """The packed tensor by the oracle."""
    case = weights.case
    scale = entry_bytes(rebased(weights.scale)[0] if case.rebased else weights.scale, case.scale)
    zero = weights.zero[..., None] if weights.zero is not None else entry_bytes(weights.offset, case.scale)
    options = {"group": case.group, "gate_up": case.gate_up, "scale_pad": 127 if case.scale == "e8m0" else 0}

    def one(index) -> np.ndarray:
        pick = lambda area: None if area is None else area[index]  # noqa: E731
        return pack(weights.codes[index], case.fmt, case.operand, scale=pick(scale), zero=pick(zero), **options)

    return np.stack([one(expert) for expert in range(case.experts)]) if case.experts else one(...)


@pytest.mark.parametrize("case", (*WEIGHTS, *GATE_UP, *EXPERTS), ids=str)
def test_packed_bytes_equal_the_oracles(case: WeightCase) -> None:
    weights = case.make()
    packed, row_scale, stats = ops.prepack(*weights.prepack_args())
    assert list(packed.shape) == ops.packed_shape(case.desc)
    assert_bits_equal(packed, torch.from_numpy(expected_bytes(weights)), "packed")
    moved = rebased(weights.scale)[1] if case.rebased else np.zeros(0, np.float32)
    assert_bits_equal(row_scale, torch.from_numpy(moved), "row_scale")
    assert stats.tolist() == [0, 0]


@pytest.mark.parametrize("case", (*WEIGHTS, *GATE_UP, *EXPERTS), ids=str)
def test_decoding_returns_codes_and_values(case: WeightCase) -> None:
    weights = case.make()
    packed, row_scale = weights.pack()
    codes = ops.decode_packed(packed, None, case.desc, codes=True)
    assert_bits_equal(codes, torch.from_numpy(weights.codes), "codes")
    values = ops.decode_packed(packed, row_scale, case.desc)
    assert_bits_equal(values, torch.from_numpy(weights.decoded()), "values")


@pytest.mark.parametrize("case", (*WEIGHTS[::9], *GATE_UP, *EXPERTS), ids=str)
def test_decoding_applies_the_secondary_scale(case: WeightCase) -> None:
    weights = case.make()
    packed, row_scale = weights.pack()
    lead = (case.experts,) if case.experts else ()
    rng = np.random.default_rng(5)
    for shape in [(1,), lead, (*lead, case.n)] if lead else [(1,), (case.n,)]:
        if np.prod(shape) == 1 and case.experts > 1:
            continue  # one scale for all experts is no documented shape
        scale2 = rng.uniform(0.5, 2, shape).astype(np.float32)
        if row_scale is not None:
            scale2 = (scale2.reshape(*shape, 1) if shape == lead else scale2) * row_scale.numpy()
        expected = weights.decoded(scale2 / (1 if row_scale is None else row_scale.numpy()))
        actual = ops.decode_packed(packed, torch.from_numpy(np.ascontiguousarray(scale2)), case.desc)
        assert_bits_equal(actual, torch.from_numpy(expected), f"scale2 {shape}")


@pytest.mark.parametrize("case", (*WEIGHTS[::7], *GATE_UP[:2], *EXPERTS), ids=str)
def test_bitstreams_and_bytes_pack_alike(case: WeightCase) -> None:
    weights = case.make()
    from_stream = ops.prepack(*weights.prepack_args())
    from_bytes = ops.prepack(*weights.prepack_args(bitstream=False))
    for a, b in zip(from_stream, from_bytes, strict=True):
        assert_bits_equal(a, b)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("k", [1, 7, 63, 65, 127, 129])
def test_any_width_of_k(fmt: str, k: int) -> None:
    case = WeightCase(fmt, n=9, k=k)
    weights = case.make()
    packed, _ = weights.pack()
    assert_bits_equal(packed, torch.from_numpy(expected_bytes(weights)), "packed")
    assert_bits_equal(ops.decode_packed(packed, None, case.desc, codes=True), torch.from_numpy(weights.codes), "codes")


def test_e8m0_scales_may_come_as_bytes() -> None:
    weights = WeightCase("e2m1", "bf16", "e8m0", 32).make()
    codes, bits, scale, zero, desc, order = weights.prepack_args()
    assert_bits_equal(
        ops.prepack(codes, bits, scale.view(torch.uint8), zero, desc, order)[0],
        ops.prepack(codes, bits, scale, zero, desc, order)[0],
    )


REBASED = [
    WeightCase(fmt, operand, "e8m0", group, n=8, k=512)
    for fmt, operand, group in [
        ("e2m1", "e4m3", 32),
        ("e2m3", "e4m3", 16),
        ("e4m3", "e4m3", 128),
        ("e3m2", "e4m3", 64),
        ("e2m1", "fp16", 32),
        ("e4m3", "fp16", 32),
        ("e5m2", "fp16", 64),
    ]
]


@pytest.mark.parametrize("case", REBASED, ids=str)
def test_rebased_scales_are_exact_inside_the_window_and_counted_below(case: WeightCase) -> None:
    """Row r has one group r + window - 4 binades below the others: exact up to the window, then rounded and counted."""
    weights = case.make()
    window = rebase_window(case)
    exponent = np.full(weights.scale.shape, 127)
    below = np.arange(case.n) + max(window - 4, 0)
    exponent[:, 1] -= below
    weights.scale = e8m0_value(exponent)
    packed, row_scale, stats = ops.prepack(*weights.prepack_args())
    values = array(ops.decode_packed(packed, row_scale, case.desc))
    exact = weights.values()
    np.testing.assert_array_equal(values[below <= window], exact[below <= window])

    # Below the window the value becomes the nearest one that the format has at the window's edge.
    changed = 0
    for row in np.flatnonzero(below > window):
        unit = 2.0**-window
        table = np.unique(value_table(case.fmt)[finite_codes(case.fmt)]) * unit
        columns = slice(case.group, 2 * case.group)
        nearest = np.abs(table[None, :] - exact[row, columns, None]).min(axis=1)
        np.testing.assert_array_equal(np.abs(values[row, columns] - exact[row, columns]), nearest)
        changed += bool(nearest.any())
        rest = np.delete(np.arange(case.k), np.r_[columns])
        np.testing.assert_array_equal(values[row, rest], exact[row, rest])
    assert stats.tolist() == [changed, 0] and changed > 0


@pytest.mark.parametrize("operand", ["fp16", "e4m3"])
@pytest.mark.parametrize("exponents", [(0, 3), (251, 254), (0, 0)])
def test_rebasing_at_the_ends_of_the_exponent_range(operand: str, exponents: tuple[int, int]) -> None:
    case = WeightCase("e2m1", operand, "e8m0", 64, n=8, k=128)
    weights = case.make()
    weights.scale = np.tile(e8m0_value(np.array(exponents)), (8, 1))
    packed, row_scale = weights.pack()
    assert torch.isfinite(row_scale).all() and (row_scale > 0).all()
    relative = array(ops.decode_packed(packed, None, case.desc)) * array(row_scale)[:, None]
    np.testing.assert_array_equal(relative, weights.values())


def test_what_is_not_finite_or_out_of_range_is_counted() -> None:
    def invalid(weights: Weights, *, bitstream: bool = True) -> int:
        rounded, count = ops.prepack(*weights.prepack_args(bitstream=bitstream))[2].tolist()
        assert rounded == 0
        return count

    weights = WeightCase("e4m3", "bf16", "bf16", 64, n=16, k=128).make()
    weights.codes[3, 5], weights.codes[15, 127] = 0x7F, 0xFF
    assert invalid(weights) == 2
    weights.scale[0, 0], weights.scale[7, 1] = np.nan, np.inf
    assert invalid(weights) == 4

    weights = WeightCase("e5m2", n=16, k=128).make()
    weights.codes[0, :4] = [0x7C, 0x7D, 0xFC, 0xFF]
    assert invalid(weights) == 4

    weights = WeightCase("uint3", "bf16", "bf16", 64, "integer", n=16, k=128).make()
    weights.zero[1, 1] = 9
    assert invalid(weights) == 1
    weights.codes[2, 2] = 8
    assert invalid(weights, bitstream=False) == 2

    weights = WeightCase("uint4", "bf16", "fp32", 64, "floating", n=16, k=128).make()
    weights.offset[4, 0] = np.inf
    assert invalid(weights) == 1

    weights = WeightCase("e2m1", "bf16", "e8m0", 64, n=16, k=128).make()
    codes, bits, scale, zero, desc, order = weights.prepack_args()
    scale.view(torch.uint8)[3, 1] = 255
    assert (
        ops.prepack(codes, bits, scale, zero, desc, order)[2][1] == 1
    )  # beside 2^128, the row's other group may round


@pytest.mark.parametrize("case", (WEIGHTS[3], GATE_UP[1], EXPERTS[0]), ids=str)
def test_nothing_outside_the_outputs_is_written(case: WeightCase) -> None:
    weights = case.make()
    expected = ops.prepack(*weights.prepack_args())
    with (
        guarded(tuple(expected[0].shape), torch.uint8) as packed,
        guarded(tuple(expected[1].shape), torch.float32) as row_scale,
        guarded((2,), torch.int64) as stats,
    ):
        ops.prepack.out(*weights.prepack_args(), packed=packed, row_scale=row_scale, stats=stats)
        for actual, wanted in zip((packed, row_scale, stats), expected, strict=True):
            assert_bits_equal(actual, wanted)
    decoded = ops.decode_packed(expected[0], None, case.desc)
    with guarded(tuple(decoded.shape), torch.float32) as out:
        ops.decode_packed.out(expected[0], None, case.desc, out=out)
        assert_bits_equal(out, decoded)


def test_golden_hash_of_this_layout_version() -> None:
    digest = hashlib.sha256()
    for case in (*EVERY_SCALE[::2], *GATE_UP, *EXPERTS):
        weights = case.make()
        # Contents that depend on no random generator: codes, scales and zeros count up.
        finite = finite_codes(case.fmt)
        weights.codes = finite[np.arange(weights.codes.size).reshape(weights.codes.shape) % len(finite)]
        if weights.scale is not None:
            weights.scale = np.exp2(np.arange(weights.scale.size).reshape(weights.scale.shape) % 7 - 3)
        if weights.zero is not None:
            weights.zero = (np.arange(weights.zero.size).reshape(weights.zero.shape) % 2).astype(np.uint8)
        if weights.offset is not None:
            weights.offset = np.arange(weights.offset.size).reshape(weights.offset.shape) % 5 - 2.0
        packed, row_scale, _ = ops.prepack(*weights.prepack_args())
        digest.update(packed.numpy().tobytes() + row_scale.numpy().tobytes())
    assert digest.hexdigest() == GOLDEN
