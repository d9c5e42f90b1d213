"""AWQ checkpoints of a fixture written from the layout that AutoAWQ documents.

A fixture, because AutoAWQ is no longer maintained, and importing it takes accelerate, datasets and what those need.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import read, values
from humming_ext import WeightFormat
from oracle.weights import dequantise

N, K = 64, 256
ROW_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)


def words(codes: np.ndarray) -> torch.Tensor:
    """int32 [rows, N / 8] of codes [rows, N]."""
    packed = np.zeros((len(codes), codes.shape[1] // 8), np.uint32)
    for nibble, row in enumerate(ROW_OF_NIBBLE):
        packed |= codes[:, row::8].astype(np.uint32) << np.uint32(4 * nibble)
    return torch.from_numpy(packed.view(np.int32))


def make(group: int, k: int = K) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(stored tensors, float32 weight [N, k])."""
    rng = np.random.default_rng([group, k])
    groups = -(-k // (group or k))
    codes = rng.integers(0, 16, (N, k), dtype=np.uint8)
    zero = rng.integers(0, 16, (N, groups), dtype=np.uint8)
    scale = rng.uniform(0.5, 2, (N, groups)).astype(np.float16)
    weight = dequantise(codes, "uint4", scale=scale, group=group, zero=zero)
    stored = {"qweight": words(codes.T), "qzeros": words(zero.T), "scales": torch.from_numpy(scale).t()}
    return stored, torch.from_numpy(weight).float()


def config(group: int = 128, **changes: Any) -> dict[str, Any]:
    fields = {"quant_method": "awq", "bits": 4, "group_size": group or -1, "version": "gemm", "zero_point": True}
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


@pytest.mark.parametrize(("group", "k"), [(128, 256), (64, 256), (32, 64), (0, 256), (128, 192), (16, 48)])
def test_weights_are_exact(tmp_path: Path, group: int, k: int) -> None:
    stored, expected = make(group, k)
    weight = read(tmp_path, stored, config(group))
    assert weight.spec.format == WeightFormat.uint4
    assert torch.equal(values(weight), expected)


def test_fields_may_have_the_names_of_quant_config(tmp_path: Path) -> None:
    stored, expected = make(64)
    older = config(bits=None, group_size=None, w_bit=4, q_group_size=64, version="GEMM")
    assert torch.equal(values(read(tmp_path, stored, older)), expected)


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({}, {"bits": 8}, r"quantization_config\.bits: 8 is not read"),
        ({}, {"version": "gemv"}, r"version: 'gemv' is not read"),
        ({}, {"zero_point": False}, r"zero_point: false is not read"),
        ({}, {"group_size": 64}, r"layer\.scales: shape \[2, 64\] is not \[4, 64\]"),
        ({"qzeros": None}, {}, r"layer\.qzeros: no such tensor"),
        ({"qzeros": torch.zeros(2, 7, dtype=torch.int32)}, {}, r"layer\.qzeros: shape \[2, 7\] is not \[2, 8\]"),
        ({"qweight": torch.zeros(K, dtype=torch.int32)}, {}, r"layer\.qweight: shape"),
        ({"qweight": torch.zeros(1 << 50, 0, dtype=torch.int32)}, {}, r"layer\.qweight: shape \[1125899906842624, 0\]"),
        ({"qweight": torch.zeros(K, 8, dtype=torch.int64)}, {}, r"layer\.qweight: torch.int64"),
    ],
)
def test_contradictions_are_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor | None], changes: dict[str, Any], message: str
) -> None:
    stored = {part: tensor for part, tensor in {**make(128)[0], **tensors}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        read(tmp_path, stored, config(**changes))
