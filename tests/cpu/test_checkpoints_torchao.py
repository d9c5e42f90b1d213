"""torchao checkpoints against the library that writes them: its quantisation, its flattening, its dequantisation.

The codes of an Int4Tensor are packed here as its documentation says, because the library packs them with a CUDA package
of its own (mslk) and does not dequantise them; the rest of that tensor is the library's.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import values, write
from humming_ext import WeightFormat
from humming_ext.checkpoints import CheckpointWeight, open_checkpoint

pytest.importorskip("torchao", reason="the PyPI package torchao is not installed")

from torchao.core.config import config_to_dict
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Int4Tensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    PerTensor,
    quantize_,
)

N, K = 48, 256
Stored = tuple[dict[str, torch.Tensor], dict[str, str]]


def produce(config: Any, dtype: torch.dtype = torch.bfloat16) -> tuple[Stored, torch.Tensor]:
    """((stored tensors, metadata), dequantised weight of `dtype`), by the library; the module is called `layer`."""
    layer = torch.nn.Linear(K, N, bias=False, dtype=dtype)
    layer.weight.data = torch.randn(N, K, generator=torch.Generator().manual_seed(1)).to(dtype)
    layer.weight.data[::5] += 1  # so that zero points differ from the middle
    model = torch.nn.ModuleDict({"layer": layer})
    quantize_(model, config)
    return flatten_tensor_state_dict(model.state_dict()), layer.weight.dequantize()


def read(folder: Path, stored: Stored, config: Any = None) -> CheckpointWeight:
    tensors, metadata = stored
    quantization = {
        "quant_method": "torchao",
        "quant_type": {"default": config_to_dict(config or Int8WeightOnlyConfig())},
    }
    checkpoint = open_checkpoint(write(folder, tensors, quantization, metadata))
    assert checkpoint.names == ["layer"]
    return checkpoint.read("layer")


def assert_read_alike(folder: Path, config: Any, expected: str, dtype: torch.dtype = torch.bfloat16) -> None:
    stored, dequantised = produce(config, dtype)
    weight = read(folder, stored, config)
    assert weight.spec.format == WeightFormat[expected]
    assert torch.equal(values(weight).to(dtype), dequantised)


@pytest.mark.parametrize("granularity", [None, PerTensor(), PerGroup(32), PerGroup(128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_int8(tmp_path: Path, granularity: Any, dtype: torch.dtype) -> None:
    config = Int8WeightOnlyConfig() if granularity is None else Int8WeightOnlyConfig(granularity=granularity)
    assert_read_alike(tmp_path, config, "int8", dtype)


def test_int8_for_int8_activations(tmp_path: Path) -> None:
    assert_read_alike(tmp_path, Int8DynamicActivationInt8WeightConfig(), "int8")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", [PerAxis(0), PerGroup(32), PerGroup(128)], ids=str)
@pytest.mark.parametrize("mapping", [MappingType.SYMMETRIC, MappingType.ASYMMETRIC])
def test_integers_of_all_widths(tmp_path: Path, bits: int, granularity: Any, mapping: Any) -> None:
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"), granularity=granularity, mapping_type=mapping
    )
    symmetric = mapping == MappingType.SYMMETRIC
    assert_read_alike(tmp_path, config, f"int{bits}" if symmetric else f"uint{bits}")


def test_int4_for_int8_activations(tmp_path: Path) -> None:
    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))
    assert_read_alike(tmp_path, config, "int4")


def int4_tensor(group: int = 64, symmetric: bool = False) -> tuple[Stored, torch.Tensor]:
    """((stored tensors, metadata), float32 weight)."""
    generator = torch.Generator().manual_seed(group)
    codes = torch.randint(-8, 8, (N, K), generator=generator, dtype=torch.int8)
    scale = (torch.rand(K // group, N, generator=generator) + 0.5).bfloat16()
    zero = torch.randn(K // group, N, generator=generator).bfloat16() * (not symmetric)
    packed = codes[:, 0::2] & 15 | codes[:, 1::2] << 4
    tensor = Int4Tensor(packed, scale, zero, [1, group], torch.Size([N, K]))
    wide_scale, wide_zero = (part.t().float().repeat_interleave(group, 1) for part in (scale, zero))
    return flatten_tensor_state_dict({"layer.weight": tensor}), codes * wide_scale + wide_zero


@pytest.mark.parametrize("group", [32, 128, 256])
@pytest.mark.parametrize("symmetric", [True, False])
def test_int4_of_two_per_byte(tmp_path: Path, group: int, symmetric: bool) -> None:
    stored, expected = int4_tensor(group, symmetric)
    weight = read(tmp_path, stored, Int4WeightOnlyConfig(group_size=group))
    assert weight.spec.format == (WeightFormat.int4 if symmetric else WeightFormat.uint4)
    # Sums of other order: a code without sign times the scale, then the offset.
    torch.testing.assert_close(values(weight), expected, rtol=0, atol=0 if symmetric else 2**-24 * 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qdata": torch.zeros(N, K // 2)}, r"layer\._weight_qdata: torch.float32 is not torch.int8"),
        ({"qdata": torch.zeros(N, dtype=torch.int8)}, r"layer\._weight_qdata: shape"),
        ({"scale": None}, r"layer\._weight_scale: no such tensor"),
        ({"scale": torch.ones(N, 4)}, r"layer\._weight_scale: shape \[48, 4\] is not \[4, 48\]"),
        ({"zero_point": None}, r"layer\._weight_zero_point: no such tensor"),
        ({"zero_point": torch.ones(4, N)}, r"layer\._weight_zero_point: torch.float32 is not torch.bfloat16"),
        ({"act_pre_scale": torch.ones(K)}, r"layer\._weight_act_pre_scale: scales of activations"),
        ({"scale": torch.full((4, N), float("inf")).bfloat16()}, "layer: .* non-finite"),
    ],
)
def test_contradictory_tensors_are_named(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    (tensors, metadata), _ = int4_tensor()
    tensors = {**tensors, **{f"layer._weight_{part}": tensor for part, tensor in change.items()}}
    with pytest.raises(ValueError, match=message):
        read(tmp_path, ({name: tensor for name, tensor in tensors.items() if tensor is not None}, metadata)).pack()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"layer\.weight: the metadata of the safetensors files does not describe it"),
        ("{", r"metadata of layer\.weight: no readable JSON"),
        ("[" * 100_000, r"metadata of layer\.weight: no readable JSON"),
        ("[]", r"metadata of layer\.weight: holds no JSON object"),
        ("{}", r"metadata of layer\.weight: _type: missing"),
        ('{"_type": "Int4TilePackedTo4dTensor"}', "_type: 'Int4TilePackedTo4dTensor' is not read; what is: 'Int4Ten"),
        ('{"_type": "Int4Tensor"}', "_data: missing"),
        ('{"_type": "Int4Tensor", "_data": {"block_size": [2, 64]}}', r"_data\.block_size: \[2, 64\] is not one row"),
        ('{"_type": "Int4Tensor", "_data": {"block_size": [1, 0]}}', r"_data\.block_size: \[1, 0\] is not"),
        (
            '{"_type": "Int4Tensor", "_data": {"block_size": [1, 128]}}',
            r"_weight_scale: shape \[4, 48\] is not \[2, 48\]",
        ),
        (
            '{"_type": "IntxUnpackedToInt8Tensor", "_data": {"target_dtype": {"_data": "int1"}}}',
            r"_data\.target_dtype\._data: 'int1' is not read",
        ),
    ],
)
def test_contradictory_metadata_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    (tensors, _), _ = int4_tensor()
    with pytest.raises(ValueError, match=message):
        read(tmp_path, (tensors, {} if text is None else {"layer.weight": text}))


def test_codes_beyond_their_bits_are_refused(tmp_path: Path) -> None:
    (tensors, metadata), _ = produce(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))
    tensors["layer._weight_qdata"][0, 0] = 8
    with pytest.raises(ValueError, match=r"layer: .* out of range"):
        read(tmp_path, (tensors, metadata)).pack()
