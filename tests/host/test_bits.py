"""The host twins of the GPU's bit operations, and the small float conversions, against exact references."""

from types import ModuleType

import numpy as np
import pytest
from oracle import rounding
from oracle.formats import value_table

# Signalling NaN among "every code" and "random bits".
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast")

RNG = np.random.default_rng(1)
WORDS = RNG.integers(0, 2**32, (3, 4096), dtype=np.uint32)
ALL_HALVES = np.arange(2**16, dtype=np.uint32)


def widen(codes: np.ndarray, name: str) -> np.ndarray:
    """float64 values of 16-bit codes."""
    codes = np.asarray(codes, np.uint16)
    if name == "f16":
        return codes.view(np.float16).astype(np.float64)
    return (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


ROUND = {"bf16": rounding.round_bf16, "f16": rounding.round_fp16}
FLOAT_TABLES = {"e4m3": value_table("e4m3"), "e5m2": value_table("e5m2")}


def assert_same_numbers(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal, signs of zero included; any NaN equals any NaN."""
    np.testing.assert_array_equal(actual, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual)[numbers], np.signbit(expected)[numbers])


def test_lop3_is_every_boolean_function(host: ModuleType) -> None:
    a, b, c = WORDS[:, :64]
    for table in range(256):
        expected = np.zeros_like(a)
        for bit in range(32):
            index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
            expected |= (table >> index & 1).astype(np.uint32) << np.uint32(bit)
        np.testing.assert_array_equal(host.lop3(table, a, b, c), expected, err_msg=f"table {table:#x}")
    np.testing.assert_array_equal(host.and_or(a, b, c), a & b | c)
    np.testing.assert_array_equal(host.and_xor(a, b, c), a & b ^ c)


def test_prmt_picks_bytes_and_signs(host: ModuleType) -> None:
    a, b, selector = WORDS
    source = np.concatenate([a[:, None].view(np.uint8), b[:, None].view(np.uint8)], axis=1)
    expected = np.empty((len(a), 4), np.uint8)
    for i in range(4):
        nibble = selector >> np.uint32(4 * i) & 15
        byte = source[np.arange(len(a)), nibble & 7]
        expected[:, i] = np.where(nibble & 8, np.where(byte & 0x80, 0xFF, 0), byte)
    np.testing.assert_array_equal(host.prmt(a, b, selector), expected.view(np.uint32)[:, 0])
    for nibble in range(16):  # every choice at every place
        selectors = np.array([nibble << (4 * i) for i in range(4)], np.uint32)
        byte = int(source[0, nibble & 7])
        picked = (0xFF if byte & 0x80 else 0) if nibble & 8 else byte
        for i, word in enumerate(host.prmt(a[0], b[0], selectors)):
            assert word >> (8 * i) & 0xFF == picked


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_fma_rounds_once(host: ModuleType, name: str) -> None:
    # All codes as one factor, and triples near cancellation, where a second rounding would show.
    b, c = RNG.integers(0, 2**16, (2, 2**16), dtype=np.uint32)
    near = RNG.integers(0, 2**16, (2, 2**16), dtype=np.uint32)
    with np.errstate(all="ignore"):
        product = ROUND[name](widen(near[0], name) * widen(near[1], name))
    minus_product = _narrow(-product, name) ^ RNG.integers(0, 4, 2**16, dtype=np.uint32)
    triples = np.concatenate([np.stack([ALL_HALVES, b, c]), np.stack([*near, minus_product])], axis=1)
    swapped = triples[:, ::-1]
    result = getattr(host, f"fma_{name}x2")(*(low | high << 16 for low, high in zip(triples, swapped, strict=True)))
    with np.errstate(all="ignore"):
        expected = ROUND[name](rounding.fma_to_odd(*(widen(t, name) for t in triples)))
    assert_same_numbers(widen(result & 0xFFFF, name), expected)
    assert_same_numbers(widen(result >> 16, name), expected[::-1])


def _narrow(values: np.ndarray, name: str) -> np.ndarray:
    """Codes of values that are exact in the 16-bit type."""
    if name == "f16":
        with np.errstate(all="ignore"):
            return values.astype(np.float16).view(np.uint16).astype(np.uint32)
    return values.astype(np.float32).view(np.uint32) >> 16


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_products_and_sums_of_all_codes(host: ModuleType, name: str) -> None:
    other = RNG.integers(0, 2**16, 2**16, dtype=np.uint32)
    x, y = widen(ALL_HALVES, name), widen(other, name)
    with np.errstate(all="ignore"):
        assert_same_numbers(widen(getattr(host, f"mul_{name}x2")(ALL_HALVES, other) & 0xFFFF, name), ROUND[name](x * y))
        expected = ROUND[name](rounding.fma_to_odd(x, np.ones_like(x), y))
        assert_same_numbers(widen(getattr(host, f"add_{name}x2")(ALL_HALVES, other) & 0xFFFF, name), expected)


def test_e4m3x2_of_every_half(host: ModuleType) -> None:
    expected = rounding.encode_e4m3(widen(ALL_HALVES, "f16"))
    for shift in (0, 1):
        result = host.e4m3x2_from_f16x2(ALL_HALVES << (16 * shift)) >> (8 * shift) & 0xFF
        nan = np.isnan(widen(ALL_HALVES, "f16"))
        np.testing.assert_array_equal(result[~nan], expected[~nan])
        assert np.all(result[nan] & 0x7F == 0x7F)


def test_f16x2_of_every_pair_of_e4m3(host: ModuleType) -> None:
    result = host.f16x2_from_e4m3x2(ALL_HALVES)
    for shift in (0, 1):
        values = widen(result >> (16 * shift) & 0xFFFF, "f16")
        assert_same_numbers(values, FLOAT_TABLES["e4m3"][ALL_HALVES >> (8 * shift) & 0xFF])


def test_float_of_every_f16(host: ModuleType) -> None:
    assert_same_numbers(host.float_from_f16(ALL_HALVES.astype(np.uint16)), widen(ALL_HALVES, "f16"))


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_widening_of_every_16_bit_code(host: ModuleType, name: str) -> None:
    codes = ALL_HALVES.astype(np.uint16)
    assert_same_numbers(getattr(host, f"{name}_to_float")(codes), widen(codes, name.replace("p", "")))


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_widening_of_every_fp8_code(host: ModuleType, name: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    assert_same_numbers(getattr(host, f"{name}_to_float")(codes), FLOAT_TABLES[name])


def test_widening_of_every_e8m0_code(host: ModuleType) -> None:
    codes = np.arange(256, dtype=np.uint8)
    assert_same_numbers(host.e8m0_to_float(codes), rounding.e8m0_value(codes))


# Every half value, every midpoint between neighbours of every target type, their neighbours in fp32, and random bits.
with np.errstate(invalid="ignore"):
    _EDGES = np.concatenate([widen(ALL_HALVES, "f16"), widen(ALL_HALVES, "bf16"), *FLOAT_TABLES.values()])
_EDGES = np.unique(_EDGES[np.isfinite(_EDGES)]).astype(np.float32)
_MIDDLES = (_EDGES[1:] / 2 + _EDGES[:-1] / 2).astype(np.float32)
FLOATS = np.concatenate(
    [
        *(np.nextafter(v, np.float32(d)) for v in (_EDGES, _MIDDLES) for d in (-np.inf, np.inf)),
        *(_EDGES, _MIDDLES, np.array([0.0, -0.0, np.inf, -np.inf], np.float32)),
        RNG.integers(0, 2**32, 50000, dtype=np.uint32).view(np.float32),
    ]
)


@pytest.mark.parametrize("name", ["bf16", "fp16", "e4m3", "e5m2"])
def test_narrowing_rounds_to_nearest_even(host: ModuleType, name: str) -> None:
    codes = getattr(host, f"float_to_{name}")(FLOATS)
    if name in FLOAT_TABLES:
        encode = {"e4m3": rounding.encode_e4m3, "e5m2": rounding.encode_e5m2}[name]
        assert_same_numbers(FLOAT_TABLES[name][codes], FLOAT_TABLES[name][encode(FLOATS)])
    else:
        assert_same_numbers(widen(codes, name.replace("p", "")), rounding.ROUND[name](FLOATS))


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_pairs_of_floats_round_to_nearest_even(host: ModuleType, name: str) -> None:
    result = getattr(host, f"{name}x2_from_floats")(FLOATS, FLOATS[::-1])
    expected = ROUND[name](FLOATS)
    assert_same_numbers(widen(result & 0xFFFF, name), expected)
    assert_same_numbers(widen(result >> 16, name), expected[::-1])


def test_e8m0_rounds_up(host: ModuleType) -> None:
    scales = np.abs(FLOATS)
    scales = scales[np.isfinite(scales) & (scales <= 2.0**127)]
    scales = np.concatenate([scales[scales > 0], np.float32([2.0**-127, 2.0**-128, 2.0**-149, 2.0**-126 * 1.5])])
    np.testing.assert_array_equal(host.float_to_e8m0_ceil(scales), rounding.encode_e8m0_ceil(scales))
