"""A real model in every form, whole."""

from pathlib import Path

import humming_ext
import pytest
import torch
from real_model import NAMES, check, spec_of


@pytest.mark.parametrize("name", NAMES)
def test_a_real_model_is_packed_verified_and_run(name: str, tmp_path: Path) -> None:
    plan = humming_ext.explain(spec_of(name).desc(576, 576), torch.bfloat16, cuda=True)
    if "no instance" in plan:
        pytest.skip(plan)
    check(name, tmp_path, layers=30, device="cuda")
