"""FP8 and INT8 checkpoints: per block against transformers, which writes and reads them; the others are one product.

Per tensor and channel a weight is its code times its scale, so torch's own float8 and int8 are the reference.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoint_files import read, values, write
from humming_ext import WeightFormat
from humming_ext.checkpoints import open_checkpoint

pytest.importorskip("transformers", reason="the PyPI package transformers is not installed")

from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

N, K = 256, 384
E8M0 = torch.float8_e8m0fnu


def fp8_config(block: list[int] | None = None, **fields: Any) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block, **fields}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def dequantised(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """By transformers; float32."""
    quantizer = Fp8Dequantize(SimpleNamespace(quantization_config=None))
    return quantizer._dequantize_one(weight, scale, output_dtype=torch.float32)


@pytest.mark.parametrize("block", [[128, 128], [32, 32], [64, 128]], ids=str)
@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
def test_blocks_are_those_of_transformers(tmp_path: Path, block: list[int], scale_fmt: str) -> None:
    config = SimpleNamespace(weight_block_size=block, scale_fmt=scale_fmt)
    quantizer = Fp8Quantize(SimpleNamespace(quantization_config=config))
    stored = quantizer.convert({"layer.weight": random(N, K)})
    assert stored["layer.weight_scale_inv"].dtype == (E8M0 if scale_fmt == "ue8m0" else torch.float32)
    weight = open_checkpoint(write(tmp_path, stored, fp8_config(block, scale_fmt=scale_fmt))).read("layer")
    assert torch.equal(values(weight), dequantised(stored["layer.weight"], stored["layer.weight_scale_inv"]))


@pytest.mark.parametrize(("n", "k"), [(200, 300), (1, 1), (128, 129)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, E8M0])
def test_last_blocks_may_be_smaller(tmp_path: Path, n: int, k: int, dtype: torch.dtype) -> None:
    scale = (2 ** random(-(-n // 128), -(-k // 128)).round()).to(dtype)
    codes = random(n, k).to(torch.float8_e4m3fn)
    rows, columns = torch.arange(n) // 128, torch.arange(k) // 128
    weight = read(tmp_path, {"weight": codes, "weight_scale_inv": scale}, fp8_config([128, 128]))
    assert torch.equal(values(weight), codes.float() * scale.float()[rows][:, columns])


@pytest.mark.parametrize("shape", [[], [1], [N], [N, 1]], ids=str)
@pytest.mark.parametrize("method", ["fp8", "fbgemm_fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_per_tensor_and_channel(tmp_path: Path, shape: list[int], method: str, dtype: torch.dtype) -> None:
    codes, scale = random(N, K).to(torch.float8_e4m3fn), random(N)[: max(1, *shape, 0)].reshape(shape).abs().to(dtype)
    weight = read(tmp_path, {"weight": codes, "weight_scale": scale}, fp8_config(quant_method=method))
    assert weight.spec.format == WeightFormat.e4m3
    assert torch.equal(values(weight), codes.float() * scale.float().reshape(-1, 1))


def deepseek_v4() -> dict[str, torch.Tensor]:
    """A shared layer in FP8 and an expert in MXFP4 under the names of DeepSeek-V4, and a scale that is no weight's."""
    generator = torch.Generator().manual_seed(4)
    tensors = {
        "layers.0.attn.wq_a.weight": random(N, K).to(torch.float8_e4m3fn),
        "layers.0.attn.wq_a.scale": torch.randint(100, 140, (2, 3), generator=generator, dtype=torch.uint8).view(E8M0),
        "layers.0.attn_hc.scale": torch.ones(3),
        "layers.0.attn_norm.weight": torch.ones(K).bfloat16(),
    }
    for name in ("w1", "w2", "w3"):
        expert = f"layers.0.ffn.experts.0.{name}"
        tensors[f"{expert}.weight"] = torch.randint(-128, 128, (N, K // 2), generator=generator, dtype=torch.int8)
        scale = torch.randint(110, 130, (N, K // 32), generator=generator, dtype=torch.uint8)
        tensors[f"{expert}.scale"] = scale.view(E8M0)
    return tensors


def test_deepseek_v4_has_both(tmp_path: Path) -> None:
    tensors = deepseek_v4()
    checkpoint = open_checkpoint(
        write(tmp_path, tensors, fp8_config([128, 128], scale_fmt="ue8m0"), expert_dtype="fp4")
    )
    experts = [f"layers.0.ffn.experts.0.{name}" for name in ("w1", "w2", "w3")]
    assert checkpoint.names == ["layers.0.attn.wq_a", *experts]
    for name in checkpoint.names:
        expected = dequantised(tensors[f"{name}.weight"], tensors[f"{name}.scale"])
        assert torch.equal(values(checkpoint.read(name)), expected)
    assert checkpoint.read(experts[0]).spec.format == WeightFormat.e2m1


FP8 = torch.zeros(N, K).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (
            {"weight_scale_inv": torch.ones(2, 2)},
            fp8_config([128, 128]),
            r"layer\.weight_scale_inv: shape \[2, 2\] is not",
        ),
        (
            {"weight_scale_inv": torch.ones(2, 3)},
            fp8_config([128]),
            r"weight_block_size: \[128\] is not \[rows, columns\]",
        ),
        ({"weight_scale_inv": torch.ones(2, 3)}, fp8_config([128, 0]), r"weight_block_size: \[128, 0\]"),
        ({"weight_scale_inv": torch.ones(1, 3)}, fp8_config([10**30, 128]), r"weight_block_size: \[1000"),
        ({"weight_scale_inv": torch.ones(2, 3)}, fp8_config([128, 0.5]), r"weight_block_size: .* is no list of int"),
        (
            {"weight_scale_inv": torch.ones(2, 3)},
            fp8_config(),
            r"layer\.weight: needs one scale, weight_scale, and has \[\]",
        ),
        (
            {"weight_scale_inv": torch.ones(2, 3), "scale": torch.ones(2, 3)},
            fp8_config([128, 128]),
            r"layer\.weight: needs one scale, .* has \['weight_scale_inv', 'scale'\]",
        ),
        ({"weight_scale": torch.ones(2)}, fp8_config(), r"layer\.weight_scale: shape \[2\] is not \[\], \[1\]"),
        ({"weight_scale": torch.ones(1, dtype=torch.int32)}, fp8_config(), r"layer\.weight_scale: torch.int32"),
        ({"weight_scale": torch.ones(1)}, fp8_config(fmt="e5m2"), r"fmt: 'e5m2' is not read"),
        ({"weight_scale": torch.tensor([float("inf")])}, fp8_config(), r"layer: .* non-finite"),
        ({"weight_scale": torch.ones(1), "weight": torch.zeros(N, K)}, fp8_config(), r"layer\.weight: torch.float32"),
        (
            {"scale": torch.ones(2, 3), "weight": torch.zeros(N, K // 2, dtype=torch.int8)},
            fp8_config([128, 128]),
            r"layer\.scale: torch.float32 is not torch.float8_e8m0fnu",
        ),
    ],
)
def test_contradictions_are_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, {"weight": FP8, **tensors}, config).pack()


def test_int8(tmp_path: Path) -> None:
    codes = torch.arange(-128, 128).to(torch.int8).repeat(4, 1)
    scale = torch.rand(4, 1)
    weight = read(tmp_path, {"weight": codes, "weight_scale": scale}, {"quant_method": "w8a8_int8"})
    assert torch.equal(values(weight), codes * scale)
    assert torch.equal(weight.pack(weight.spec.for_activation(torch.int8)).dequantize(), codes * scale)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight_scale": torch.ones(4)}, r"layer\.weight_scale: shape \[4\] is not \[4, 1\]"),
        ({"weight_scale": torch.ones(4, 1).double()}, r"layer\.weight_scale: torch.float64"),
        ({"weight": torch.ones(4, 8)}, r"layer\.weight: torch.float32 is not torch.int8"),
        ({"weight_scale": None}, r"layer\.weight_scale: no such tensor"),
        ({"weight": None}, r"quant_method: .* has no tensor of such a weight"),
    ],
)
def test_contradictions_of_int8_are_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor | None], message: str
) -> None:
    stored = {"weight": torch.ones(4, 8, dtype=torch.int8), "weight_scale": torch.ones(4, 1), **tensors}
    present = {part: tensor for part, tensor in stored.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        read(tmp_path, present, {"quant_method": "w8a8_int8"})
