"""quantize_activation on the GPU: the CPU op's bytes, NaN and scales included."""

import humming_ext  # noqa: F401 - registers the ops
import pytest
import torch
from both import compare, ops
from oracle.activations import GATED, PLAIN
from support import TORCH, assert_bits_equal

KINDS = ("e4m3", "e5m2", "int8", "int4")
ACTIVATIONS = ("none", *GATED, *PLAIN)
E8M0 = torch.float8_e8m0fnu


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_pattern(x_dtype: torch.dtype, kind: str) -> None:
    """Each alone in a row (two to a row for int4), in groups, and under static scales of any size."""
    patterns = every_pattern(x_dtype)
    compare("quantize_activation", patterns.view(-1, 2) if kind == "int4" else patterns.view(-1, 1), TORCH[kind], 0)
    mixed = patterns[torch.randperm(2**16, generator=torch.Generator().manual_seed(0))]
    for group in (0, 32):
        compare("quantize_activation", mixed.view(-1, 64), TORCH[kind], group)
    compare("quantize_activation", mixed.view(-1, 64), TORCH[kind], 32, scale_dtype=E8M0)
    for static in (1.0, 0.37, 1e-40, 3e38):
        compare("quantize_activation", patterns.view(-1, 64), TORCH[kind], 0, static_scale=torch.tensor([static]))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_pattern_through_the_activations(x_dtype: torch.dtype, name: str) -> None:
    patterns = every_pattern(x_dtype).view(-1, 64)
    if name in GATED:
        ups = [torch.full_like(patterns, up) for up in (1.0, -0.37, 60000.0, 0.0, float("nan"))]
        inputs = [torch.cat([patterns, up], dim=1) for up in ups]
        inputs.append(torch.cat([torch.full_like(patterns, 1.7), patterns], dim=1))
    else:
        inputs = [patterns]
    for x in inputs:
        compare("quantize_activation", x, torch.float8_e4m3fn, 0, activation=name, static_scale=torch.ones(1))
        compare("quantize_activation", x, torch.int8, 32, activation=name)


@pytest.mark.parametrize("args", [[7.0], [0.0, 1.3, 0.5], [2.0, 1.702, 1.0]])
@pytest.mark.parametrize("name", ["silu", "swigluoai"])
def test_activation_arguments(name: str, args: list[float]) -> None:
    x = torch.randn(50, 400, generator=torch.Generator().manual_seed(0)) * 6
    compare("quantize_activation", x, torch.float8_e5m2, 128, activation=name, activation_args=args)


@pytest.mark.parametrize("kind", KINDS)
def test_random_fp32_patterns(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(2**31), 2**31, (2**17, 8), dtype=torch.int64, generator=generator).to(torch.int32)
    x = patterns.view(torch.float32)
    compare("quantize_activation", x, TORCH[kind], 0)
    compare("quantize_activation", x.view(-1, 64), TORCH[kind], 32)
    for name in ("gelu_no_mul", "gelu_tanh_no_mul", "silu_no_mul"):
        moderate = torch.randn(2**13, 64, generator=generator) * 8
        compare("quantize_activation", moderate, TORCH[kind], 64, activation=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [2, 8, 32, 100, 128, 130, 4096, 4104, 16392, 100000])
def test_shapes(k: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(k)
    for m in (0, 1, 2, 300 if k < 5000 else 3):
        x = torch.randn(m, k, generator=generator).bfloat16()
        if m:
            x[-1] = 0
        for group in (0, 32, 64, 128):
            compare("quantize_activation", x, TORCH[kind], group)
        compare("quantize_activation", x, TORCH[kind], 128, scale_dtype=E8M0)
        compare("quantize_activation", x, TORCH[kind], 0, static_scale=torch.tensor([0.01]))
        if k % 4 == 0:
            compare("quantize_activation", x, TORCH[kind], 64, activation="silu")


@pytest.mark.parametrize("k", [8, 192, 2040, 2048, 2056, 2880, 4096, 16384, 16392])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_many_rows(x_dtype: torch.dtype, k: int) -> None:
    """One to eight warps hold a row; the last block has fewer rows than it could."""
    x = torch.randn(531, k, generator=torch.Generator().manual_seed(k)).to(x_dtype)
    x[0], x[1, -1], x[2, 0], x[3] = 0, float("nan"), -float("inf"), 1e-7
    for kind in ("e4m3", "int4"):
        for group in (0, 32, 64, 128):
            compare("quantize_activation", x, TORCH[kind], group)
        compare("quantize_activation", x, TORCH[kind], 128, scale_dtype=E8M0)
        compare("quantize_activation", x, TORCH[kind], 0, static_scale=torch.tensor([0.01]))
    strided = torch.cat([x, x], 1)[:, :k]
    compare("quantize_activation", strided, torch.float8_e5m2, 0)


@pytest.mark.parametrize(
    ("rows", "top_k"), [(33, 3), (33, 40), (531, 3), (531, 40)]
)  # a warp holds 32 places at a time
def test_rows_by_expert(rows: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 2056, generator=generator).bfloat16()
    positions = torch.randperm(top_k * rows, generator=generator).int()
    for kind in KINDS:
        for group in (0, 128):
            compare("quantize_activation", x, TORCH[kind], group, positions=positions)


@pytest.mark.parametrize("k", [1, 7, 31])
def test_odd_widths(k: int) -> None:
    x = torch.randn(5, k)
    for kind in ("e4m3", "e5m2", "int8"):
        for group in (0, 32):
            compare("quantize_activation", x, TORCH[kind], group)
            compare("quantize_activation", torch.randn(5, 2 * k), TORCH[kind], group, activation="gelu")


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_rows_that_are_not_aligned(x_dtype: torch.dtype, offset: int) -> None:
    wide = torch.randn(40, 301).to(x_dtype)
    for columns in (64, 130, 298):
        compare("quantize_activation", wide[:, offset : offset + columns], torch.int8, 32)
        compare("quantize_activation", wide[:, offset : offset + columns], torch.uint8, 0)
        compare("quantize_activation", wide[:, offset : offset + columns], torch.float8_e4m3fn, 128, activation="silu")


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_without_a_pitch(kind: str) -> None:
    x = torch.randn(33, 72).bfloat16()
    out, scale = ops.quantize_activation(x, TORCH[kind], 32)
    tight = torch.empty(out.shape, dtype=out.dtype, device="cuda")
    scale_gpu = torch.empty_like(scale, device="cuda")
    ops.quantize_activation.out(x.cuda(), 32, out=tight, scale=scale_gpu)
    assert_bits_equal(tight.cpu(), out.contiguous())
    assert_bits_equal(scale_gpu.cpu(), scale)


def test_more_than_2_31_elements() -> None:
    x = torch.randn(270_000, 8192, device="cuda", dtype=torch.bfloat16)
    out, scale = ops.quantize_activation(x, torch.float8_e4m3fn, 0)
    for rows in (slice(0, 3), slice(262_143, 262_146), slice(-3, None)):
        expected, expected_scale = ops.quantize_activation(x[rows].cpu(), torch.float8_e4m3fn, 0)
        assert_bits_equal(out[rows].cpu().contiguous(), expected.contiguous())
        assert_bits_equal(scale[rows].cpu(), expected_scale)
