"""Division by a common divisor, by multiplications: the bits of a division."""

from types import ModuleType

import numpy as np
import pytest

QMAX = (448.0, 57344.0, 127.0, 7.0)


def _check(host: ModuleType, values: np.ndarray, divisor: np.float32) -> None:
    quotients = host.quotients(values, divisor)
    expected = values / divisor
    large = np.abs(expected) >= 2.0**-41
    np.testing.assert_array_equal(quotients[large].view(np.uint32), expected[large].view(np.uint32))
    assert (np.abs(quotients[~large]) < 2.0**-40).all()
    np.testing.assert_array_equal(np.signbit(quotients), np.signbit(values))


def _numbers(mantissa_bits: int, exponents: range) -> np.ndarray:
    """float32: both signs of 1.m * 2^e, and zeros."""
    significands = 1 + np.arange(1 << mantissa_bits) / (1 << mantissa_bits)
    numbers = np.concatenate([np.ldexp(significands, e) for e in exponents] + [[0.0]]).astype(np.float32)
    return np.concatenate([numbers, -numbers])


@pytest.mark.parametrize("qmax", QMAX)
@pytest.mark.parametrize(
    ("mantissa_bits", "exponents"), [(7, range(-44, 1)), (10, range(-11, 1))], ids=["bf16", "fp16"]
)
def test_every_16_bit_value_by_every_scale(host: ModuleType, mantissa_bits: int, exponents: range, qmax: float) -> None:
    """Scales of one binade: quotients by those of others are the same but for their exponents."""
    values = _numbers(mantissa_bits, exponents)
    for largest in _numbers(mantissa_bits, range(0, 1)):
        if largest > 0:
            _check(host, values, largest / np.float32(qmax))


def test_random_and_hard_values(host: ModuleType) -> None:
    rng = np.random.default_rng(5)
    ones = np.uint32(0x7FFFFF)
    for turn in range(400):
        bits = rng.integers(0, 1 << 23, 4096, dtype=np.uint32)
        # Quotients near 1 and near 2, and divisors near all ones, are the hardest to round.
        divisor = (ones - np.uint32(turn // 4 + 1)) if turn % 4 == 0 else rng.integers(0, 1 << 23, dtype=np.uint32)
        near = np.clip(divisor.astype(np.int64) + rng.integers(-64, 65, 4096), 0, ones).astype(np.uint32)
        significands = np.where(rng.random(4096) < 0.5, bits, near)
        exponents = rng.integers(100, 150, 4096, dtype=np.uint32)
        values = (significands | exponents << np.uint32(23)).view(np.float32)
        divisor = np.uint32(divisor | np.uint32(rng.integers(110, 145)) << np.uint32(23)).view(np.float32)
        _check(host, values, divisor)


@pytest.mark.parametrize("divisor", [0.0, 2.0**-61, 1e-40, 2.0**61, 1.99999988, np.inf, np.nan])
def test_divisors_that_it_is_not_for(host: ModuleType, divisor: float) -> None:
    assert host.quotients(np.ones(1, np.float32), np.float32(divisor)) is None
