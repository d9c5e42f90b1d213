"""quantize_activation: the same bytes as the documented sequence of roundings."""

import humming_ext  # noqa: F401 - registers the ops
import numpy as np
import pytest
import torch
from oracle.activations import GATED, PLAIN, QMAX, activate, quantise, quantised_values
from oracle.rounding import ROUND, e8m0_value
from oracle.weights import per_column
from support import TORCH, array, assert_bits_equal, guarded, tensor

ops = torch.ops.humming

KINDS = ("e4m3", "e5m2", "int8", "int4")
GROUPS = (0, 32, 64, 128)


def random_rows(rng: np.random.Generator, rows: int, k: int, dtype: str) -> np.ndarray:
    """float64 [rows, k], exact in `dtype`, of very different magnitude by row, with zeros and a row of zeros."""
    x = rng.standard_normal((rows, k)) * np.exp2(rng.integers(-8, 8, (rows, 1)))
    x[rng.random((rows, k)) < 0.05] = 0
    if rows > 2:
        x[2] = 0
    return ROUND[dtype](x)


def as_tensors(q: np.ndarray, scale: np.ndarray, kind: str, e8m0: bool) -> tuple[torch.Tensor, torch.Tensor]:
    q_tensor = torch.from_numpy(q)
    q_tensor = q_tensor if kind in ("int8", "int4") else q_tensor.view(TORCH[kind])
    scale_tensor = torch.from_numpy(np.ascontiguousarray(scale))
    return q_tensor, scale_tensor.view(torch.float8_e8m0fnu) if e8m0 else scale_tensor


@pytest.mark.parametrize("x_dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(
    ("group", "e8m0"), [*((group, False) for group in GROUPS), *((group, True) for group in GROUPS if group)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_equal_the_oracles(kind: str, group: int, e8m0: bool, x_dtype: str) -> None:
    for rows, k in [(7, 320), (1, 200), (3, 24), (4, 130)]:
        x = random_rows(np.random.default_rng([group, rows, k]), rows, k, x_dtype)
        expected = as_tensors(*quantise(x, kind, group, e8m0=e8m0), kind, e8m0)
        out, scale = ops.quantize_activation(
            tensor(x, x_dtype), TORCH[kind], group, scale_dtype=torch.float8_e8m0fnu if e8m0 else None
        )
        assert_bits_equal(scale, expected[1], "scale")
        assert_bits_equal(out.contiguous(), expected[0], "out")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_by_expert(kind: str) -> None:
    """Each row to its positions; what no pair names is left alone, as is what lies outside."""
    x = tensor(random_rows(np.random.default_rng(2), 5, 64, "bf16"), "bf16")
    ids = torch.tensor([[3, 0], [-1, 2], [0, 3], [-1, -1], [2, 0]], dtype=torch.int32)
    pairs, positions, _, _, offsets = ops.moe_align(ids, 4, 8, None)
    for group in (0, 32):
        expected = ops.quantize_activation(x, TORCH[kind], group)
        results = ops.quantize_activation(x, TORCH[kind], group, positions=positions)
        used = int(offsets[-1])
        for result, plain in zip(results, expected, strict=True):
            assert len(result) == 10 and used == 7
            assert_bits_equal(result[:used].contiguous(), plain.view(torch.uint8)[pairs[:used] // 2].view(plain.dtype))
    outside = torch.tensor([0, -5, 99, 1, 2**30], dtype=torch.int32)
    out, scale = torch.zeros(5, 64, dtype=torch.int8), torch.zeros(5, 1)
    ops.quantize_activation.out(x, 0, positions=outside, out=out, scale=scale)
    assert out[:2].any(1).all() and not out[2:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_static_scale(kind: str) -> None:
    x = random_rows(np.random.default_rng(1), 9, 96, "bf16")
    static = np.float32(0.37)
    out, scale = ops.quantize_activation(tensor(x, "bf16"), TORCH[kind], 0, static_scale=torch.tensor([static]))
    expected, _ = quantise(x, kind, 0, static_scale=static)
    assert_bits_equal(out.contiguous(), as_tensors(expected, np.zeros(1), kind, False)[0])
    assert_bits_equal(scale, torch.full((1, 1), static))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x_dtype", ["bf16", "fp16", "fp32"])
def test_every_16_bit_value_and_ties(kind: str, x_dtype: str) -> None:
    """With a static scale of one, the rounding alone: every bf16 or fp16 number, and fp32 neighbours of the ties."""
    if x_dtype == "fp32":
        ties = np.arange(-4096, 4096) / 16.0
        values = np.concatenate([ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf)]).astype(np.float32)
        x = torch.from_numpy(values.reshape(-1, 64))
    else:
        x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(TORCH[x_dtype]).view(-1, 64)
    out, _ = ops.quantize_activation(x, TORCH[kind], 0, static_scale=torch.ones(1))
    with np.errstate(invalid="ignore"):
        expected, _ = quantise(x.float().numpy(), kind, 0, static_scale=1.0)
    actual = quantised_values(out.contiguous().view(torch.int8 if kind == "int8" else torch.uint8).numpy(), kind)
    np.testing.assert_array_equal(actual, quantised_values(expected, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [0, 32])
def test_nan_and_infinity_stay_in_their_group(kind: str, group: int) -> None:
    x = random_rows(np.random.default_rng(2), 6, 64, "fp32")
    x[0, 3], x[1, 40], x[3, 5], x[3, 6] = np.nan, np.inf, -np.inf, np.nan
    with np.errstate(invalid="ignore"):
        expected_q, expected_scale = quantise(x, kind, group)
    out, scale = ops.quantize_activation(tensor(x, "fp32"), TORCH[kind], group)
    np.testing.assert_array_equal(scale.numpy(), expected_scale)
    raw = out.contiguous().view(torch.int8 if kind == "int8" else torch.uint8).numpy()
    np.testing.assert_array_equal(quantised_values(raw, kind), quantised_values(expected_q, kind))


def test_tiny_values() -> None:
    """Groups whose scale is subnormal, or underflows to zero: finite results, zeros where nothing is nearer."""
    x = torch.tensor([[1e-44, 0, 0, 0], [1e-39, -1e-39, 5e-40, 0], [1e-37, 0, -1e-37, 1e-38]])
    for kind in KINDS:
        out, scale = ops.quantize_activation(x, TORCH[kind], 0)
        assert torch.isfinite(scale).all() and (scale > 0).all()
        raw = out.contiguous().view(torch.int8 if kind == "int8" else torch.uint8).numpy()
        restored = quantised_values(raw, kind) * array(scale)
        step = {"e4m3": 2.0**-3, "e5m2": 2.0**-2, "int8": 1 / 127, "int4": 1 / 7}[kind]
        amax = np.abs(x.numpy()).max(axis=1, keepdims=True)
        error = np.abs(restored - x.numpy())
        assert (error[1:] <= step * amax[1:]).all() and (error[0] <= amax[0]).all()


@pytest.mark.parametrize("name", ["none", *GATED, *PLAIN])
@pytest.mark.parametrize("group", [0, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_activations(kind: str, group: int, name: str) -> None:
    """Own exp and erf differ from exact ones by a few ulp: the scale to 1e-6, the codes by at most one step."""
    rng = np.random.default_rng(3)
    k, gated = 192, name in GATED
    x = ROUND["bf16"](rng.standard_normal((5, 2 * k if gated else k)) * 4)
    y = activate(x, name).astype(np.float32)
    expected_q, expected_scale = quantise(y, kind, group)
    out, scale = ops.quantize_activation(tensor(x, "bf16"), TORCH[kind], group, activation=name)
    assert tuple(out.shape) == expected_q.shape
    np.testing.assert_allclose(scale.numpy(), expected_scale, rtol=2e-6)
    raw = out.contiguous().view(torch.int8 if kind == "int8" else torch.uint8).numpy()
    actual, expected = quantised_values(raw, kind), quantised_values(expected_q, kind)
    step = {"e4m3": np.maximum(np.abs(expected) / 8, 2.0**-9), "e5m2": np.maximum(np.abs(expected) / 4, 2.0**-16)}
    assert (np.abs(actual - expected) <= step.get(kind, 1) * 1.001).all()
    assert np.mean(actual != expected) < 0.01, "too many codes differ to be roundings of the last bit"


@pytest.mark.parametrize(
    ("name", "args"),
    [("silu", (1.5,)), ("silu", (0.0, 1.2, 0.5)), ("swigluoai", (2.0,)), ("swigluoai", (3.0, 1.0, 0.0))],
)
def test_activation_arguments(name: str, args: tuple[float, ...]) -> None:
    x = ROUND["fp16"](np.random.default_rng(4).standard_normal((4, 128)) * 4)
    q, scale = ops.quantize_activation(tensor(x, "fp16"), torch.int8, 32, activation=name, activation_args=list(args))
    y = activate(x, name, args)
    restored = q.contiguous().numpy() * per_column(array(scale), 64, 32)
    assert (np.abs(restored - y) <= per_column(array(scale), 64, 32) * 0.501).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_row_pitch_is_a_multiple_of_128_bytes(kind: str) -> None:
    out, _ = ops.quantize_activation(torch.randn(3, 360), TORCH[kind], 0)
    assert out.stride() == (256 if kind == "int4" else 384, 1)
    assert tuple(out.shape) == (3, 180 if kind == "int4" else 360)
    assert out.data_ptr() % 16 == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", GROUPS)
def test_no_rows(kind: str, group: int) -> None:
    out, scale = ops.quantize_activation(torch.empty(0, 200), TORCH[kind], group)
    assert tuple(out.shape) == (0, 100 if kind == "int4" else 200)
    assert tuple(scale.shape) == (0, -(-200 // group) if group else 1)


def test_strided_rows_and_nothing_else_is_touched() -> None:
    x = torch.randn(5, 72, dtype=torch.bfloat16)
    expected_out, expected_scale = ops.quantize_activation(x, torch.int8, 32)
    with (
        guarded((5, 72), torch.bfloat16, pitch=100) as strided,
        guarded((5, 72), torch.int8, pitch=128) as out,
        guarded((5, 3), torch.float32) as scale,
    ):
        strided.copy_(x)
        ops.quantize_activation.out(strided, 32, out=out, scale=scale)
        assert_bits_equal(out.contiguous(), expected_out.contiguous())
        assert_bits_equal(scale, expected_scale)


def test_e8m0_scales_round_up() -> None:
    x = torch.tensor([[448.0] * 32, [449.0] * 32, [447.0] * 32, [0.0] * 32])
    _, scale = ops.quantize_activation(x, torch.float8_e4m3fn, 32, scale_dtype=torch.float8_e8m0fnu)
    np.testing.assert_array_equal(e8m0_value(scale.view(torch.uint8).numpy())[:, 0], [1, 2, 1, 1])
    assert QMAX["e4m3"] == 448


def test_runs_and_thread_counts_give_the_same_bits() -> None:
    x = torch.randn(301, 512, dtype=torch.bfloat16)
    run = lambda: ops.quantize_activation(x, torch.float8_e4m3fn, 128, activation="silu")  # noqa: E731
    first = run()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for a, b in zip(run(), first, strict=True):
                assert_bits_equal(a.contiguous(), b.contiguous(), f"{count} threads")
    finally:
        torch.set_num_threads(threads)
