"""Every dequantiser's host twin: every code in every position gives the oracle's number, bit for bit."""

from types import ModuleType

import numpy as np
import pytest
from oracle.formats import FORMATS, finite_codes, value_table
from oracle.packing import VALUES_PER_REGISTER, lane_bits, stored_codes
from oracle.rounding import unpack_int4
from support import OPERANDS, takes_operand

PAIRS = [  # tables of values have no sequences
    (name, operand)
    for operand in OPERANDS
    for name, fmt in FORMATS.items()
    if fmt.kind != "table" and takes_operand(name, operand)
]


def patches_of_every_code(name: str, operand: str) -> np.ndarray:
    """uint8 [patches, registers, values]: over all patches each position meets each finite code, neighbours mixed."""
    finite = finite_codes(name)
    values = VALUES_PER_REGISTER[operand]
    position = np.arange(32).reshape(32 // values, values)
    rolled = finite[(np.arange(len(finite))[:, None, None] + 7 * position) % len(finite)]
    mixed = np.random.default_rng(0).choice(finite, (64, *position.shape))
    return np.concatenate([rolled, mixed])


def lane_words(codes: np.ndarray, name: str, operand: str) -> np.ndarray:
    """uint32 [patches, bits]: the lane's words, placed by the oracle."""
    fmt = FORMATS[name]
    _, registers, values = codes.shape
    n, v, b = np.meshgrid(np.arange(registers), np.arange(values), np.arange(fmt.bits), indexing="ij")
    flags = np.zeros((len(codes), 32 * fmt.bits), np.uint8)
    flags[:, lane_bits(name, operand, n, v, b)] = stored_codes(codes, name, operand)[..., None] >> b & 1
    return np.packbits(flags, axis=1, bitorder="little").view(np.uint32)


def operand_values(registers: np.ndarray, operand: str) -> np.ndarray:
    """float64 [patches, registers, values] of operand registers."""
    raw = np.ascontiguousarray(registers)[..., None].view(np.uint8)
    if operand == "bf16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if operand == "fp16":
        return raw.view(np.float16).astype(np.float64)
    if operand == "e4m3":
        return value_table("e4m3")[raw]
    return (raw.view(np.int8) if operand == "s8" else unpack_int4(raw)).astype(np.float64)


def assert_registers(registers: np.ndarray, operand: str, numbers: np.ndarray, exponent: int) -> None:
    """The registers hold numbers * 2^-exponent exactly."""
    np.testing.assert_array_equal(operand_values(registers, operand) * 2.0**exponent, numbers)


@pytest.mark.parametrize(("name", "operand"), PAIRS)
def test_every_code_in_every_position(host: ModuleType, name: str, operand: str) -> None:
    codes = patches_of_every_code(name, operand)
    registers, exponent = host.dequantise(FORMATS[name].id, OPERANDS[operand], lane_words(codes, name, operand))
    assert_registers(registers, operand, value_table(name)[codes], exponent)
    if operand in ("bf16", "fp16"):
        assert exponent == 0


@pytest.mark.parametrize(("name", "operand"), [pair for pair in PAIRS if FORMATS[pair[0]].kind == "uint"])
def test_every_zero_point(host: ModuleType, name: str, operand: str) -> None:
    codes = patches_of_every_code(name, operand)
    words = lane_words(codes, name, operand)
    for zero in range(min(2 ** FORMATS[name].bits, 255) + 1):
        registers, exponent = host.dequantise(FORMATS[name].id, OPERANDS[operand], words, zero)
        assert_registers(registers, operand, value_table(name)[codes] - zero, exponent)


@pytest.mark.parametrize(
    ("name", "operand"),
    [pair for pair in PAIRS if pair[1] in ("bf16", "fp16") or pair in (("int4", "e4m3"), ("uint4", "e4m3"))],
)
def test_every_raw_code(host: ModuleType, name: str, operand: str) -> None:
    """Moved codes with the tokens' power of two, less the centre's share, are the number, whatever the zero point."""
    fmt = FORMATS[name]
    codes = patches_of_every_code(name, operand)
    words = lane_words(codes, name, operand)
    numbers = value_table(name)[codes]
    multiplied = operand
    if operand == "e4m3":  # widened: of every register values 0 and 2, for a step of four registers, then 1 and 3
        multiplied = "fp16"
        numbers = numbers.reshape(-1, 2, 4, 2, 2).transpose(0, 1, 4, 2, 3).reshape(-1, 16, 2)
    zeros = range(min(2**fmt.bits, 255) + 1) if fmt.kind == "uint" else [None]
    for zero in zeros:
        registers, exponent, token_exponents, ones, row_factors, centre = host.dequantise_raw(
            fmt.id, OPERANDS[operand], words, zero
        )
        tokens = 2.0 ** np.array(token_exponents)[:, None]
        one = operand_values(np.array(ones, np.uint32)[None], multiplied)[0]
        sums = operand_values(registers, multiplied) * tokens - centre * one * tokens
        sums *= np.array(row_factors)[:, None]
        np.testing.assert_array_equal(sums * 2.0**exponent, numbers - (zero or 0))
        if multiplied == "fp16":
            assert set(token_exponents) == {0}
        np.testing.assert_array_equal(token_exponents[0::2], token_exponents[1::2])  # both rows meet the same tokens


FLOATS = [name for name in FORMATS if FORMATS[name].kind == "float"]
FOLDED = [name for name in FLOATS if takes_operand(name, "e4m3")]


@pytest.mark.parametrize(
    ("name", "operand"), [*((name, "e4m3") for name in FOLDED), *((name, "bf16") for name in FLOATS)]
)
def test_every_folded_scale(host: ModuleType, name: str, operand: str) -> None:
    """e8m0 scales inside the operand: exact for every stored scale, where a bf16 number can be that small."""
    codes = patches_of_every_code(name, operand)
    words = lane_words(codes, name, operand)
    window, _ = host.rebase_range(FORMATS[name].id, OPERANDS[operand])
    for stored in range(max(127 - window, 24), 128):
        registers, exponent = host.dequantise_folded(FORMATS[name].id, OPERANDS[operand], words, stored)
        assert_registers(registers, operand, value_table(name)[codes] * 2.0 ** (stored - 127), exponent)


@pytest.mark.parametrize(
    ("name", "operand"), [*((name, "fp16") for name in FLOATS), *((name, "e4m3") for name in FOLDED)]
)
def test_windows_are_as_wide_as_exactness_allows(host: ModuleType, name: str, operand: str) -> None:
    window, shift = host.rebase_range(FORMATS[name].id, OPERANDS[operand])
    values = np.abs(value_table(name)[finite_codes(name)])
    largest = {"fp16": 65504.0, "e4m3": 448.0}[operand]
    smallest = {"fp16": 2.0**-24, "e4m3": 2.0**-9}[operand]
    if (name, operand) == ("e2m1", "e4m3"):
        smallest = 2.0**-6  # its table adds to exponent fields, so it needs normal numbers
    assert values.max() * 2.0 ** (window - shift) <= largest < values.max() * 2.0 ** (window + 1 - shift)
    assert values[values > 0].min() * 2.0**-shift == smallest
    if operand == "fp16":
        for d in range(window + 1):
            scaled = values * 2.0 ** (d - shift)
            np.testing.assert_array_equal(scaled.astype(np.float16).astype(np.float64), scaled)


@pytest.mark.parametrize("name", FLOATS)
def test_rounding_down_by_binades(host: ModuleType, name: str) -> None:
    """Codes of groups below the window: nearest value of the format, ties to the even code, sign kept."""
    fmt, table, finite = FORMATS[name], value_table(name), finite_codes(name)
    half = 1 << (fmt.bits - 1)
    magnitudes = np.array([code for code in finite if code < half])
    for code in finite.tolist():
        for down in range(0, 2**fmt.exponent_bits + fmt.mantissa_bits + 3):
            result = host.rebase_code(fmt.id, code, down)
            assert result & half == code & half
            wanted = abs(table[code]) * 2.0**-down
            distance = np.abs(table[magnitudes] - wanted)
            nearest = magnitudes[distance == distance.min()]
            assert (result & (half - 1)) == (nearest[0] if len(nearest) == 1 else nearest[nearest % 2 == 0][0]), (
                code,
                down,
            )


@pytest.mark.parametrize("name", FOLDED)
def test_rebasing_keeps_the_scale_of_every_row(host: ModuleType, name: str) -> None:
    """stored scale * row scale * rounding down is the checkpoint's scale, whatever the largest scale of the row."""
    window, _ = host.rebase_range(FORMATS[name].id, OPERANDS["e4m3"])
    for largest in range(255):
        row_scale = host.rebase_row_scale(largest)
        for scale in range(max(0, largest - window - 4), largest + 1):
            stored = host.rebased_scale(window, scale, largest)
            down = host.rebase_shift_down(window, scale, largest)
            assert 127 - window <= stored <= 127
            assert 2.0 ** (stored - 127) * row_scale * 2.0**-down == 2.0 ** (scale - 127)
            assert down == 0 or scale < largest - window
