"""Weights rounded to codes: against float64 and the oracle's tables, for every format and kind of scale."""

import humming_ext as he
import numpy as np
import pytest
import torch
from humming_ext._reference import code_values
from humming_ext.checkpoints import CheckpointWeight
from oracle.formats import FORMATS, finite_codes, value_table
from oracle.weights import dequantise
from support import array

CHANNEL = {"scale_dtype": torch.float32}
GROUPS = {"group": 32, "scale_dtype": torch.bfloat16}


def spec_of(name: str, zero: str = "none", **scales) -> he.QuantSpec:
    return he.QuantSpec(he.WeightFormat[name], zero=he.ZeroKind[zero], **scales)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def numbers(q: dict, spec: he.QuantSpec, n: int, k: int) -> tuple[np.ndarray, ...]:
    """float64 [n, k] each: scale, zero and offset of every weight."""
    height, width = spec.block_rows or n, spec.group or k
    rows, columns = np.arange(n) // height, np.arange(k) // width
    scale = np.ones((n, k)) if q["scale"] is None else array(q["scale"])[rows][:, columns]
    if q["scale2"] is not None:
        scale = scale * float(q["scale2"])
    zero = np.zeros((n, k)) if q["zero"] is None else array(q["zero"])[rows][:, columns]
    integer = spec.zero == he.ZeroKind.integer
    return scale, zero if integer else 0 * zero, 0 * zero if integer else zero


def assert_nearest(q: dict, weight: torch.Tensor, spec: he.QuantSpec) -> None:
    """No other code is nearer; of two that are as near, the even one."""
    scale, zero, offset = numbers(q, spec, *weight.shape)
    table, codes = value_table(spec.format.name), q["codes"].numpy()
    legal = finite_codes(spec.format.name).astype(int)
    legal = legal[(table[legal] != 0) | ~np.signbit(table[legal])]  # one zero
    scaled = (array(weight) - offset) / np.where(scale > 0, scale, 1) + zero
    distance = np.abs(scaled[..., None] - table[legal])
    nearest = distance.min(-1, keepdims=True)
    tied = distance == nearest
    choice = np.where(tied & ((legal % 2 == 0) | (tied.sum(-1, keepdims=True) == 1)), legal, 256).min(-1)
    wrong = np.argwhere(choice != codes)
    assert not len(wrong), f"{len(wrong)} codes, first at {wrong[0]}: {codes[tuple(wrong[0])]}"


@pytest.mark.parametrize("name", FORMATS)
def test_values_of_codes_are_the_oracles(name: str) -> None:
    np.testing.assert_array_equal(code_values(he.WeightFormat[name]).numpy(), value_table(name))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_codes_are_the_nearest(name: str, clip: bool) -> None:
    weight = random(6, 80)
    for zero in ("integer", "floating") if FORMATS[name].kind == "uint" else ("none",):
        spec = spec_of(name, zero, **GROUPS)
        q = he.quantize(weight, spec, clip=clip)
        assert q["codes"].dtype == torch.uint8 and q["scale"].shape == (6, 3)
        assert_nearest(q, weight, spec)


SCALES = {
    "none": {},
    "tensor": {"block_rows": 0, **CHANNEL},
    "channel": CHANNEL,
    "blocks with remainders": {"group": 32, "block_rows": 4, **CHANNEL},
    "fp16 groups": {"group": 16, "scale_dtype": torch.float16},
    "e8m0 groups": {"group": 32, "scale_dtype": torch.float8_e8m0fnu},
    "e4m3 groups": {"group": 16, "scale_dtype": torch.float8_e4m3fn},
}


@pytest.mark.parametrize("name", ["int1", "int4", "e2m1", "e4m3"])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("clip", [False, True])
def test_every_granularity_packs_and_reads_back(name: str, scales: str, clip: bool) -> None:
    weight = random(6, 72)
    spec = spec_of(name, **SCALES[scales])
    q = he.quantize(weight, spec, clip=clip)
    assert_nearest(q, weight, spec)
    scale, zero, offset = numbers(q, spec, 6, 72)
    expected = torch.from_numpy((value_table(name)[q["codes"].numpy()] - zero) * scale + offset)
    packed = he.PackedWeight.pack(**q, spec=spec)
    torch.testing.assert_close(packed.dequantize().double(), expected, rtol=2**-22, atol=0)


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].kind != "table"])
def test_ties_go_to_the_even_code(name: str) -> None:
    """Weights halfway between two values, and their neighbours in float32, with scales of 1.

    float32 has no number halfway between two values of a table.
    """
    values = np.unique(value_table(name)[finite_codes(name)])
    ties = torch.from_numpy((values[1:] + values[:-1]) / 2).float()
    # Not those of 0: float64 rounds their distance from 1.
    below, above = (torch.where(ties == 0, end * 2**-20, ties.nextafter(torch.tensor(end))) for end in (-1e6, 1e6))
    weight = torch.stack([ties, below, above])
    spec = spec_of(name)
    assert_nearest(he.quantize(weight, spec), weight, spec)
    codes = he.quantize(weight, spec)["codes"]
    assert bool((codes[0] % 2 == 0).all())
    np.testing.assert_array_equal(value_table(name)[codes[1]], values[:-1])
    np.testing.assert_array_equal(value_table(name)[codes[2]], values[1:])


@pytest.mark.parametrize(
    ("name", "zero", "scale"),
    [
        ("int1", "none", 4.0 / 2),
        ("int4", "none", 4.0 / 7.5),
        ("int8", "none", 4.0 / 127.5),
        ("e2m1", "none", 4.0 / 6),
        ("e4m3", "none", 4.0 / 448),
        ("e5m2", "none", 4.0 / 57344),
        ("nf4", "none", 4.0),
        ("uint4", "integer", 6.0 / 15),
        ("uint4", "floating", 6.0 / 15),
    ],
)
def test_scales_are_as_documented(name: str, zero: str, scale: float) -> None:
    weight = torch.linspace(-4, 2, 64)[None]
    q = he.quantize(weight, spec_of(name, zero, group=64, scale_dtype=torch.float32))
    assert q["scale"].item() == np.float32(scale)
    if zero != "none":
        assert q["zero"].item() == {"integer": 10, "floating": -4.0}[zero]


def test_e8m0_scales_are_rounded_up() -> None:
    weight = torch.tensor([6.0, 6.01, 3.0, 0.0]).repeat_interleave(32)[None]
    spec = spec_of("e2m1", group=32, scale_dtype=torch.float8_e8m0fnu)
    q = he.quantize(weight, spec)
    assert q["scale"].double()[0].tolist() == [1, 2, 0.5, 2.0**-127]
    assert_nearest(q, weight, spec)


def test_e4m3_scales_fill_their_range() -> None:
    weight = random(4, 64)
    q = he.quantize(weight, spec_of("e2m1", group=16, scale_dtype=torch.float8_e4m3fn))
    assert q["scale"].float().max() == 448
    assert float(q["scale2"]) == pytest.approx(float(weight.abs().max()) / 6 / 448)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("clip", [False, True])
def test_zero_rows_are_exact(name: str, clip: bool) -> None:
    weight = random(4, 64)
    weight[1:3] = 0
    for zero in ("integer", "floating") if FORMATS[name].kind == "uint" else ("none",):
        spec = spec_of(name, zero, **GROUPS)
        values = he.PackedWeight.pack(**he.quantize(weight, spec, clip=clip), spec=spec).dequantize()
        assert bool((values[1:3] == 0).all()) and bool((values[[0, 3]] != 0).any())


@pytest.mark.parametrize("name", ["int2", "int4", "e2m1", "uint3"])
def test_clipping_lowers_the_error_of_every_group(name: str) -> None:
    weight = random(32, 128)
    for zero in ("integer", "floating") if name == "uint3" else ("none",):
        spec = spec_of(name, zero, group=64, scale_dtype=torch.bfloat16)
        errors = []
        for clip in (False, True):
            q = he.quantize(weight, spec, clip=clip)
            zeros = {"integer": "zero", "floating": "offset"}.get(zero)
            given = {zeros: array(q["zero"])} if zeros else {}
            values = dequantise(q["codes"].numpy(), name, scale=array(q["scale"]), group=64, **given)
            errors.append(np.square(values - array(weight)).reshape(32, 2, 64).sum(-1))
        assert (errors[1] <= errors[0]).all() and errors[1].sum() < 0.95 * errors[0].sum()


def test_experts_and_gate_up_are_quantised_apart() -> None:
    weight = random(3, 10, 64)
    weight[1] *= 100
    spec = spec_of("e2m1", group=16, scale_dtype=torch.float8_e4m3fn)
    together = he.PackedWeight.pack(**he.quantize(weight, spec), spec=spec).dequantize()
    for expert in range(3):
        one = he.PackedWeight.pack(**he.quantize(weight[expert], spec), spec=spec)
        assert torch.equal(together[expert], one.dequantize())
    halves = spec_of("int4", group=32, block_rows=4, scale_dtype=torch.float32)
    both = he.QuantSpec(he.WeightFormat.int4, group=32, block_rows=4, scale_dtype=torch.float32, gate_up=True)
    values = he.PackedWeight.pack(**he.quantize(weight[0], both), spec=both).dequantize()
    for rows in (slice(0, 5), slice(5, 10)):
        part = he.PackedWeight.pack(**he.quantize(weight[0, rows], halves), spec=halves)
        assert torch.equal(values[rows], part.dequantize())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_taken(dtype: torch.dtype) -> None:
    weight = random(4, 64).to(dtype)
    spec = spec_of("int4", **GROUPS)
    assert torch.equal(he.quantize(weight, spec)["codes"], he.quantize(weight.float(), spec)["codes"])


@pytest.mark.parametrize(
    ("weight", "spec", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), spec_of("int4", **CHANNEL), "weight: 1 values are not finite"),
        (torch.tensor([[1.0, float("inf")]]), spec_of("e4m3"), "weight: 1 values are not finite"),
        (torch.ones(2, 2, dtype=torch.int8), spec_of("int4"), r"weight: torch.int8 \[2, 2\]"),
        (torch.ones(2, 2, dtype=torch.float64), spec_of("int4"), r"weight: torch.float64 \[2, 2\]"),
        (torch.ones(2), spec_of("int4"), r"weight: torch.float32 \[2\]"),
        (torch.ones(2, 0), spec_of("int4"), r"weight: shape \[2, 0\]"),
        (-torch.ones(2, 2), spec_of("uint4", **CHANNEL), "weight: uint4 without zero points.*spec.zero"),
        (torch.full((2, 32), 1e9), spec_of("int4", group=32, scale_dtype=torch.float16), "weight: needs a scale of"),
        (torch.ones(2, 32), spec_of("int4", "integer", **GROUPS), "zero"),
    ],
)
def test_what_cannot_be_quantised_is_named(weight: torch.Tensor, spec: he.QuantSpec, message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        he.quantize(weight, spec)


def test_a_checkpoint_weight_may_hold_the_result() -> None:
    weight, spec = random(4, 64), spec_of("uint4", "integer", **GROUPS)
    stored = CheckpointWeight("w", spec, **he.quantize(weight, spec))
    assert float((stored.pack().dequantize() - weight).abs().max()) < 0.01
