"""Commands and mixtures on what adapters make: offsets, planes, zero points, secondary scales, orders of columns.

Tensors are random, of the documented dtypes and shapes: whether they are read as the library that writes them does is
tested with the adapters.
"""

import json
from pathlib import Path
from typing import Any

import humming_ext as he
import numpy as np
import pytest
import torch
from checkpoint_files import write, write_blocks
from humming_ext.__main__ import main
from humming_ext.checkpoints import open_checkpoint
from quantised_tensors import nf4_tensors

N, K, GROUP = 32, 256, 64
G = K // GROUP
Stored = dict[str, torch.Tensor]

FLOAT32 = {"rtol": 3 * 2.0**-24, "atol": 0.0}  # what decoding rounds, at most


def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def words(*shape: int) -> torch.Tensor:
    return integers(-(1 << 31), 1 << 31, *shape, dtype=torch.int32)


def scales(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5).to(dtype)


def gptq(bits: int) -> Stored:
    return {"qweight": words(K * bits // 32, N), "scales": scales(G, N), "qzeros": words(G, N * bits // 32)}


def hqq() -> Stored:
    numbers = {"axis": 1, "group_size": GROUP, "nbits": 4}
    return {
        "W_q": integers(0, 256, N * G // 2, GROUP),
        "scale": scales(N * G, 1),
        "zero": 15 * scales(N * G, 1),
        "shape": torch.tensor([N, K]),
        "packing": torch.tensor(list(b"4bit_u8"), dtype=torch.uint8),
        **{name: torch.tensor(value, dtype=torch.int32) for name, value in numbers.items()},
    }


def described(kind: str, **fields: Any) -> dict[str, str]:
    return {"layer.weight": json.dumps({"_type": kind, "_data": {"block_size": [1, GROUP], **fields}})}


#: By name: tensors of the module `layer`, quantization_config, metadata of the file, and how `inspect` has it.
FORMATS: dict[str, tuple[Stored, dict[str, Any], dict[str, str], str]] = {
    "gptq_p in activation order": (
        {**gptq(6), "g_idx": torch.randperm(K, generator=torch.Generator().manual_seed(2)) // GROUP},
        {"quant_method": "gptq", "bits": 6, "group_size": GROUP, "checkpoint_format": "gptq_p"},
        {},
        "uint6 [32, 256], float16 scales per 64 columns, zero points, activation order",
    ),
    "AutoRound": (
        gptq(3),
        {"quant_method": "auto-round", "bits": 3, "group_size": GROUP, "packing_format": "auto_round:gptqmodel"},
        {},
        "uint3 [32, 256], float16 scales per 64 columns, zero points",
    ),
    "HQQ": (hqq(), {"quant_method": "hqq"}, {}, "uint4 [32, 256], float32 scales per 64 columns, offsets"),
    "bitsandbytes": (
        {"weight": integers(-127, 128, N, K, dtype=torch.int8), "SCB": scales(N, dtype=torch.float32)},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {},
        "int8 [32, 256], float32 scales per channel",
    ),
    "nf4": (
        nf4_tensors(torch.randn(N, K, generator=torch.Generator().manual_seed(3)))[0],
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {},
        "nf4 [32, 256], float32 scales per 64 columns",
    ),
    "NVFP4": (
        {
            "weight": integers(0, 256, N, K // 2),
            "weight_scale": scales(N, K // 16, dtype=torch.float8_e4m3fn),
            "weight_scale_2": torch.tensor(0.3),
        },
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {},
        "e2m1 [32, 256], float8_e4m3fn scales per 16 columns",
    ),
    "MXFP8": (
        {"weight": scales(N, K, dtype=torch.float8_e4m3fn), "weight_scale": integers(122, 127, N, K // 32)},
        {"quant_method": "modelopt", "quant_algo": "MXFP8"},
        {},
        "e4m3 [32, 256], float8_e8m0fnu scales per 32 columns",
    ),
    "FP8": (
        {"weight": integers(0, 127, N, K).view(torch.float8_e4m3fn), "weight_scale": torch.tensor(0.3)},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {},
        "e4m3 [32, 256], float32 scales per tensor",
    ),
    "Int4Tensor": (
        {
            "_weight_qdata": integers(-128, 128, N, K // 2, dtype=torch.int8),
            "_weight_scale": scales(G, N),
            "_weight_zero_point": 3 * scales(G, N),
        },
        {"quant_method": "torchao"},
        described("Int4Tensor"),
        "uint4 [32, 256], float32 scales per 64 columns, offsets",
    ),
    "IntxUnpackedToInt8Tensor": (
        {
            "_weight_qdata": integers(-16, 16, N, K, dtype=torch.int8),
            "_weight_scale": scales(N, G),
            "_weight_zero_point": integers(-16, 16, N, G, dtype=torch.int8),
        },
        {"quant_method": "torchao"},
        described("IntxUnpackedToInt8Tensor", target_dtype={"_data": "int5"}),
        "uint5 [32, 256], float16 scales per 64 columns, zero points",
    ),
}

#: By name: bytes of a block, where its scales in fp16 are, and how `inspect` has it.
SUPER_BLOCKS = {
    "Q4_K": (144, slice(4), "uint4 [32, 256], float32 scales per 32 columns, offsets"),
    "Q5_K": (176, slice(4), "uint5 [32, 256], float32 scales per 32 columns, offsets"),
    "Q6_K": (210, slice(-2, None), "int6 [32, 256], float32 scales per 16 columns"),
}


def make(folder: Path, name: str) -> tuple[Path, str]:
    """(a checkpoint with the weight `layer`, how `inspect` has it)."""
    if name in FORMATS:
        tensors, quantization, metadata, text = FORMATS[name]
        named = {f"layer.{part}": tensor for part, tensor in tensors.items()}
        return write(folder, named, quantization, metadata), text
    size, halves, text = SUPER_BLOCKS[name]
    blocks = integers(0, 256, N, 1, size).numpy()
    blocks[..., halves] = scales(*blocks[..., halves].shape[:-1], 2).numpy().view(np.uint8)[..., halves]
    return write_blocks(folder, name, blocks), text


@pytest.mark.parametrize("name", [*FORMATS, *SUPER_BLOCKS])
@pytest.mark.parametrize("activation", ["bf16", "int8", "e4m3"])
def test_commands(name: str, activation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, text = make(tmp_path, name)
    assert main(["inspect", str(path)]) == 0
    assert f"layer: {text}\n" in capsys.readouterr().out
    assert main(["verify", str(path), "--activation", activation]) == 0, capsys.readouterr().out
    out = tmp_path / "packed.safetensors"
    assert main(["pack", str(path), str(out), "--activation", activation]) == 0
    reference = open_checkpoint(path).read("layer").dequantize()
    assert reference.unique().numel() > 30, "the weight shows nothing"
    torch.testing.assert_close(he.load_weights(out)["layer"].dequantize().double(), reference, **FLOAT32)


@pytest.mark.parametrize("name", [*FORMATS, *SUPER_BLOCKS])
def test_gate_and_up_become_experts(name: str, tmp_path: Path) -> None:
    weight = open_checkpoint(make(tmp_path, name)[0]).read("layer")
    both = weight.gate_up(weight)
    expected = torch.cat([weight.dequantize()] * 2)
    assert torch.equal(both.dequantize(), expected)
    packed = both.pack()
    torch.testing.assert_close(packed.dequantize().double(), expected, **FLOAT32)
    if weight.columns is None:
        assert torch.equal(he.PackedWeight.stack([packed] * 2).dequantize(), packed.dequantize().expand(2, -1, -1))
