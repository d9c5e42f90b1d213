"""The oracle against its own hand-written tables and against torch, which shares nothing with it."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from oracle import rounding
from oracle.formats import FORMATS, TABLES, WRITTEN_MAGNITUDES, value_table
from oracle.weights import pack_bitstream, unpack_bitstream

# Numbers around every boundary of the 16-bit and 8-bit floats: ties, subnormals, overflow, and random ones.
_RNG = np.random.default_rng(0)
PROBES = np.concatenate(
    [
        _RNG.standard_normal(20000) * np.exp2(_RNG.integers(-40, 20, 20000)),
        np.ldexp(_RNG.integers(-4096, 4096, 20000) / 8.0, _RNG.integers(-24, 8, 20000)),
        [0.0, -0.0, 448, 464, 480, 57344, 61440, 65504, 65519, 65520, 2.0**-9, 2.0**-10, 2.0**-16, 2.0**-17],
    ]
).astype(np.float32)


@pytest.mark.parametrize("name", WRITTEN_MAGNITUDES)
def test_definition_equals_the_written_table(name: str) -> None:
    magnitudes = np.array(WRITTEN_MAGNITUDES[name], np.float64)
    np.testing.assert_array_equal(value_table(name), np.concatenate([magnitudes, -magnitudes]))


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_fp8_tables_equal_torch(name: str, dtype: torch.dtype) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(dtype).double().numpy()
    np.testing.assert_array_equal(value_table(name), values)


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.kind == "int" and f.bits > 1])
def test_symmetric_integers_cover_their_range(name: str) -> None:
    bits = FORMATS[name].bits
    np.testing.assert_array_equal(value_table(name), np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)))


def test_nf4_are_quantiles_of_the_normal_distribution() -> None:
    """Seven below 0 and eight above, equally likely to either side, as a share of the largest; float32 has them."""
    outermost = 0.9677083
    below, above = (torch.linspace(outermost, 0.5, count + 1, dtype=torch.float64)[:-1] for count in (7, 8))
    quantiles = torch.special.ndtri(torch.cat([1 - below, above.new_tensor([0.5]), above.flip(0)])).numpy()
    np.testing.assert_allclose(value_table("nf4"), quantiles / quantiles[-1], rtol=0, atol=2**-23)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_numbers_of_float32(name: str) -> None:
    np.testing.assert_array_equal(value_table(name), value_table(name).astype(np.float32))


@pytest.mark.parametrize(
    ("rounded", "dtype"), [(rounding.round_bf16, torch.bfloat16), (rounding.round_fp16, torch.float16)]
)
def test_rounding_equals_torch(rounded, dtype: torch.dtype) -> None:
    np.testing.assert_array_equal(rounded(PROBES), torch.from_numpy(PROBES).to(dtype).double().numpy())


@pytest.mark.parametrize(
    ("encode", "dtype", "limit"),
    [(rounding.encode_e4m3, torch.float8_e4m3fn, 448), (rounding.encode_e5m2, torch.float8_e5m2, 57344)],
)
def test_fp8_encoding_equals_torch_inside_the_range(encode, dtype: torch.dtype, limit: float) -> None:
    inside = PROBES[np.abs(PROBES) <= limit]
    np.testing.assert_array_equal(encode(inside), torch.from_numpy(inside).to(dtype).view(torch.uint8).numpy())
    np.testing.assert_array_equal(encode([1e30, -1e30, np.inf]), encode([limit, -limit, limit]))
    assert encode(np.nan) == 0x7F


def test_e8m0_ceiling() -> None:
    scales = np.array([1.0, 1.0001, 0.5, 0.75, 2.0**-127, 2.0**-149, 3e38], np.float32)
    np.testing.assert_array_equal(rounding.encode_e8m0_ceil(scales), [127, 128, 126, 127, 0, 0, 254])
    np.testing.assert_array_equal(rounding.e8m0_value([0, 127, 254]), [2.0**-127, 1.0, 2.0**127])


def test_fma32_rounds_once() -> None:
    # 1 + 2^-11 + 2^-24 lies on a tie of float32; the addend decides it.
    a, c = np.float32(1 + 2**-12), np.float32(2**-60)
    assert rounding.fma32(a, a, c) == np.float32(1 + 2**-11 + 2**-23)
    assert rounding.fma32(a, a, -c) == np.float32(1 + 2**-11)
    # Against exact rationals, near cancellation: the rounded result is at least as near as its two neighbours.
    a, b = np.exp2(_RNG.integers(-6, 6, (2, 3000))).astype(np.float32) * _RNG.standard_normal((2, 3000)).astype(
        np.float32
    )
    c = (-a * b * _RNG.choice(np.float32([1, 1 + 2**-20, 0.5, 2**-24, 0]), 3000)).astype(np.float32)
    for result, x, y, z in zip(rounding.fma32(a, b, c), a, b, c, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(Fraction(float(result)) - exact)
        for neighbour in (np.nextafter(result, np.float32(-np.inf)), np.nextafter(result, np.float32(np.inf))):
            assert error <= abs(Fraction(float(neighbour)) - exact)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bitstream_round_trip(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 77)).astype(np.uint8)
    stream = pack_bitstream(codes, bits)
    assert stream.shape == (3, -(-77 * bits // 8))
    np.testing.assert_array_equal(unpack_bitstream(stream, bits, 77), codes)
    whole = sum(int(code) << (bits * k) for k, code in enumerate(codes[0]))
    assert int.from_bytes(stream[0].tobytes(), "little") == whole


def test_int4_round_trip() -> None:
    values = np.arange(-8, 8, dtype=np.int8)
    packed = rounding.pack_int4(values)
    assert packed[0] == 0x98  # -8 in the low nibble, -7 in the high one
    np.testing.assert_array_equal(rounding.unpack_int4(packed), values)
