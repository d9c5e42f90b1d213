"""A real model in every form, cut to two of its thirty decoder layers."""

from pathlib import Path

import pytest
from real_model import NAMES, check


@pytest.mark.parametrize("name", NAMES)
def test_a_real_model_is_packed_verified_and_run(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, layers=2, device="cpu")
