"""AWQ checkpoints against AutoAWQ, which writes them: its packing and its dequantisation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import read, values
from humming_ext import WeightFormat

pytest.importorskip("awq", reason="the PyPI package autoawq is not installed")

from awq.modules.linear.gemm import WQLinear_GEMM
from awq.utils.packing_utils import dequantize_gemm

N, K = 64, 256


def make(group: int, k: int = K) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(stored tensors, dequantised fp16 weight [N, k]), both by the library."""
    generator = torch.Generator().manual_seed(group)
    columns = group or k
    scale = (torch.rand(N, k // columns, generator=generator) + 0.5).half().float()
    zero = torch.randint(16, scale.shape, generator=generator).float()
    codes = torch.randint(16, (N, k), generator=generator)
    layer = torch.nn.Linear(k, N, bias=False)
    layer.weight.data = (codes - zero.repeat_interleave(columns, 1)) * scale.repeat_interleave(columns, 1)
    packed = WQLinear_GEMM.from_linear(layer, 4, columns, scales=scale.t().contiguous(), zeros=zero.t().contiguous())
    weight = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, columns)
    return packed.state_dict(), weight.t()


def config(group: int = 128, **changes: Any) -> dict[str, Any]:
    fields = {"quant_method": "awq", "bits": 4, "group_size": group or -1, "version": "gemm", "zero_point": True}
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


@pytest.mark.parametrize(("group", "k"), [(128, 256), (64, 256), (32, 64), (0, 256), (64, 192), (16, 48)])
def test_weights_are_exact(tmp_path: Path, group: int, k: int) -> None:
    stored, expected = make(group, k)
    weight = read(tmp_path, stored, config(group))
    assert weight.spec.format == WeightFormat.uint4
    assert torch.equal(values(weight).half(), expected)


def test_fields_may_have_the_names_of_quant_config(tmp_path: Path) -> None:
    stored, expected = make(64)
    older = config(bits=None, group_size=None, w_bit=4, q_group_size=64, version="GEMM")
    assert torch.equal(values(read(tmp_path, stored, older)).half(), expected)


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
