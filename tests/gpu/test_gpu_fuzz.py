"""Random problems through selection, on the device. A failure names its seed, and `python tests/fuzz.py SEED --device
cuda` repeats it. Draws that the build has no kernel for are counted in a warning.
"""

import warnings
from collections.abc import Iterator

import fuzz
import pytest

DRAWS, CHUNK = 2000, 50


@pytest.fixture(scope="module")
def refused() -> Iterator[list[int]]:
    """Of every chunk, the number of draws without a kernel."""
    counts: list[int] = []
    yield counts
    if counts:
        warnings.warn(f"{sum(counts)} of {CHUNK * len(counts)} draws have no CUDA instance in this build", stacklevel=1)


@pytest.mark.parametrize("first", range(0, DRAWS, CHUNK))
def test_random_problems(first: int, refused: list[int]) -> None:
    refused.append(fuzz.check(range(first, first + CHUNK), "cuda"))
    if refused[-1] == CHUNK:
        pytest.skip("this build has no kernel for any of these draws")
