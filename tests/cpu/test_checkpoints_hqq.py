"""HQQ checkpoints against the library that writes them: its packing and its dequantisation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import read, values
from humming_ext import WeightFormat

pytest.importorskip("hqq", reason="the PyPI package hqq is not installed")

from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

N, K = 48, 256
CONFIG = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}}


def produce(
    bits: int = 4, group: int = 64, dtype: torch.dtype = torch.float16, n: int = N, **options: Any
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(stored tensors, weight [n, K]), by the library; it dequantises in float32 what it stored in `dtype`."""
    layer = torch.nn.Linear(K, n, bias=False)
    layer.weight.data = torch.randn(n, K, generator=torch.Generator().manual_seed(bits))
    config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1, **options)
    linear = HQQLinear(layer, config, compute_dtype=dtype, device="cpu")
    wide = {part: linear.meta[part].float() for part in ("scale", "zero")}
    dequantised = Quantizer.dequantize(linear.W_q.data, {**linear.meta, **wide, "compute_dtype": torch.float32})
    return {part: torch.as_tensor(tensor).detach() for part, tensor in linear.state_dict().items()}, dequantised


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("group", "n"), [(64, N), (32, 9), (256, 7 * 8)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_those_of_the_library(tmp_path: Path, bits: int, group: int, n: int, dtype: torch.dtype) -> None:
    if n * K // group % {1: 8, 2: 4, 4: 2}.get(bits, 1):
        n *= 8  # the library packs no other numbers of rows
    stored, dequantised = produce(bits, group, dtype, n)
    weight = read(tmp_path, stored, CONFIG)
    assert weight.spec.format == WeightFormat[f"uint{bits}"]
    assert dequantised.unique().numel() > 100, "the weight shows nothing"
    # scale * code - scale * zero, where the library has scale * (code - zero): two roundings of the larger term.
    largest = float((weight.scale * (1 << bits)).max())
    torch.testing.assert_close(values(weight), dequantised, rtol=0, atol=2**-23 * largest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": torch.tensor(0, dtype=torch.int32)}, r"layer\.axis: only 1 is read"),
        ({"axis": None}, r"layer\.axis: no such tensor"),
        ({"nbits": torch.tensor(1.58)}, r"layer\.nbits: torch.float32 is not torch.int32"),
        ({"nbits": torch.tensor(5, dtype=torch.int32)}, r"layer\.packing: '4bit_u8' is not read for nbits = 5"),
        ({"nbits": torch.tensor([4, 4], dtype=torch.int32)}, r"layer\.nbits: shape \[2\] is not \[\]"),
        ({"packing": torch.full((7,), 255, dtype=torch.uint8)}, r"layer\.packing: 'ÿ{7}' is not read"),
        ({"packing": torch.zeros(1 << 20, dtype=torch.uint8)}, r"layer\.packing: shape \[1048576\] is not \[7\]"),
        ({"packing": torch.tensor(list(b"8bit_u8"), dtype=torch.uint8)}, r"layer\.W_q: shape \[96, 64\] is not"),
        ({"group_size": torch.tensor(0, dtype=torch.int32)}, r"layer\.shape: \[48, 256\] is not in groups of .* = 0"),
        ({"group_size": torch.tensor(96, dtype=torch.int32)}, r"layer\.shape: \[48, 256\] is not in groups of .* = 96"),
        ({"group_size": torch.tensor(32, dtype=torch.int32)}, r"layer\.W_q: shape \[96, 64\] is not \[192, 32\]"),
        ({"shape": torch.tensor([1 << 62, 256])}, r"layer\.W_q: shape \[96, 64\] is not"),
        ({"shape": torch.tensor([-48, 256])}, r"layer\.shape: \[-48, 256\]"),
        ({"shape": torch.tensor([48, 256, 1])}, r"layer\.shape: shape \[3\]"),
        ({"W_q": torch.zeros(96, 64)}, r"layer\.W_q: torch.float32 is not torch.uint8"),
        ({"scale": torch.ones(96, 1)}, r"layer\.scale: shape \[96, 1\] is not \[192, 1\]"),
        ({"zero": torch.ones(192, 1)}, r"layer\.zero: torch.float32 is not torch.float16"),
        ({"zero": None}, r"layer\.zero: no such tensor"),
        ({"zero": torch.full((192, 1), float("nan")).half()}, r"layer: .* non-finite"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    stored = {**produce()[0], **change}
    with pytest.raises(ValueError, match=message):
        read(tmp_path, {part: tensor for part, tensor in stored.items() if tensor is not None}, CONFIG).pack()


def test_codes_stored_as_floats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layer\.W_q: torch.float16 is not torch.uint8"):
        read(tmp_path, produce(view_as_float=True)[0], CONFIG)
