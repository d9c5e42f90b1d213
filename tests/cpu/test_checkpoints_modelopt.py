"""modelopt checkpoints against the library that writes them: its tensors, its config, its dequantisation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import read, values, write
from humming_ext import WeightFormat
from humming_ext.checkpoints import open_checkpoint

pytest.importorskip("modelopt", reason="the PyPI package nvidia-modelopt is not installed")

from modelopt.torch.export.convert_hf_config import convert_hf_quant_config_format
from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP8QTensor, NVFP4QTensor

N, K = 48, 256
FORMATS = {"FP8": "e4m3", "MXFP8": "e4m3", "NVFP4": "e2m1", "W4A16_NVFP4": "e2m1"}


def config(algorithm: str, **fields: Any) -> dict[str, Any]:
    return convert_hf_quant_config_format({"quantization": {"quant_algo": algorithm, **fields}})


def produce(algorithm: str, n: int = N, k: int = K) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(stored tensors, dequantised bf16 weight), both by the library."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n + k)).bfloat16()
    if algorithm == "FP8":
        codes, scale = FP8QTensor.quantize(weight)
        return {"weight": codes._quantized_data, "weight_scale": scale.float()}, codes.dequantize(scale=scale)
    if algorithm == "MXFP8":
        codes, scale = MXFP8QTensor.quantize(weight * 2 ** (weight[:, :1] * 8).round())
        return {"weight": codes._quantized_data, "weight_scale": scale}, codes.dequantize(scale=scale)
    codes, scale, factor = NVFP4QTensor.quantize(weight, 16)
    dequantised = codes.dequantize(scale=scale, double_scale=factor, block_sizes={-1: 16})
    return {"weight": codes._quantized_data, "weight_scale": scale, "weight_scale_2": factor}, dequantised


@pytest.mark.parametrize("algorithm", FORMATS)
@pytest.mark.parametrize(("n", "k"), [(N, K), (9, 32), (200, 96)])
def test_weights_are_those_of_the_library(tmp_path: Path, algorithm: str, n: int, k: int) -> None:
    stored, dequantised = produce(algorithm, n, k)
    weight = read(tmp_path, stored, config(algorithm))
    assert weight.spec.format == WeightFormat[FORMATS[algorithm]]
    assert dequantised.unique().numel() > 30, "the weight shows nothing"
    assert torch.equal(values(weight).bfloat16(), dequantised)


@pytest.mark.parametrize("shape", [[], [1], [N], [N, 1]], ids=str)
def test_fp8_scales_per_channel(tmp_path: Path, shape: list[int]) -> None:
    codes = produce("FP8")[0]["weight"]
    scale = torch.linspace(0.5, 2, N)[: max(1, *shape, 0)].reshape(shape)
    weight = read(tmp_path, {"weight": codes, "weight_scale": scale}, config("FP8_PER_CHANNEL_PER_TOKEN"))
    assert torch.equal(values(weight), codes.float() * scale.reshape(-1, 1))


def test_modules_may_have_a_format_each(tmp_path: Path) -> None:
    tensors, expected = {}, {}
    for algorithm in FORMATS:
        stored, expected[algorithm] = produce(algorithm)
        tensors |= {f"{algorithm}.{part}": tensor for part, tensor in stored.items()}
    layers = {algorithm: {"quant_algo": algorithm} for algorithm in FORMATS}
    checkpoint = open_checkpoint(write(tmp_path, tensors, config("MIXED_PRECISION", quantized_layers=layers)))
    assert checkpoint.names == sorted(FORMATS)
    for name in checkpoint.names:
        assert torch.equal(values(checkpoint.read(name)).bfloat16(), expected[name])
    del layers["FP8"]
    checkpoint = open_checkpoint(write(tmp_path, tensors, config("MIXED_PRECISION", quantized_layers=layers)))
    with pytest.raises(ValueError, match=r"quantization_config\.quantized_layers\.FP8: missing"):
        checkpoint.read("FP8")


@pytest.mark.parametrize(
    ("algorithm", "change", "message"),
    [
        ("NVFP4_AWQ", {}, r"quant_algo: 'NVFP4_AWQ' is not read; what is: 'FP8', "),
        ("MIXED_PRECISION", {}, r"quantized_layers\.layer: missing"),
        ("NVFP4", {"weight_scale": torch.zeros(N, 8).to(torch.float8_e4m3fn)}, r"weight_scale: shape \[48, 8\] is not"),
        ("NVFP4", {"weight_scale": torch.zeros(N, 16, dtype=torch.uint8)}, r"weight_scale: torch.uint8 is not"),
        ("NVFP4", {"weight_scale_2": None}, r"layer\.weight_scale_2: no such tensor"),
        ("NVFP4", {"weight_scale_2": torch.ones(N)}, r"weight_scale_2: shape \[48\] is not one element"),
        ("NVFP4", {"weight_scale_2": torch.tensor(float("nan"))}, "layer: .* non-finite"),
        ("NVFP4", {"weight": torch.zeros(N, K).to(torch.float8_e4m3fn)}, r"layer\.weight: torch.float8_e4m3fn is not"),
        ("NVFP4", {"pre_quant_scale": torch.ones(K)}, r"layer\.pre_quant_scale: scales of activations before a weight"),
        ("MXFP8", {"weight": torch.zeros(N, K, dtype=torch.uint8)}, r"layer\.weight: torch.uint8 is not"),
        ("MXFP8", {"weight_scale": None}, r"layer\.weight_scale: no such tensor"),
        ("MXFP8", {"weight_scale": torch.zeros(N, 7, dtype=torch.uint8)}, r"weight_scale: shape \[48, 7\] is not"),
        ("MXFP8", {"weight_scale": torch.full((N, 8), 255, dtype=torch.uint8)}, "layer: .* non-finite"),
        ("FP8", {"weight_scale": torch.ones(N, 2)}, r"layer\.weight_scale: shape \[48, 2\] is not"),
    ],
)
def test_contradictions_are_named(
    tmp_path: Path, algorithm: str, change: dict[str, torch.Tensor | None], message: str
) -> None:
    stored = {**produce(algorithm if algorithm in FORMATS else "NVFP4")[0], **change}
    changed = {part: tensor for part, tensor in stored.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        read(tmp_path, changed, config(algorithm)).pack()
