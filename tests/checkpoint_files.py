"""What the checkpoint tests share: folders to read, and weights as the values that they stand for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from humming_ext.checkpoints import CheckpointWeight, open_checkpoint
from safetensors.torch import save_file


def write(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    quantization: Any,
    metadata: dict[str, str] | None = None,
    **config: Any,
) -> Path:
    """A checkpoint folder of one file, with `metadata` in its header."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", metadata)
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization, **config}))
    return folder


def write_blocks(folder: Path, type_name: str, blocks: np.ndarray) -> Path:
    """A GGUF file of one tensor `layer`, by the library, of bytes [..., blocks, bytes of a block]."""
    gguf = pytest.importorskip("gguf", reason="the PyPI package gguf is not installed")
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_tensor("layer", blocks.reshape(*blocks.shape[:-2], -1), raw_dtype=gguf.GGMLQuantizationType[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"


def read(folder: Path, tensors: Mapping[str, torch.Tensor], quantization: Any, name: str = "layer") -> CheckpointWeight:
    """One weight of a checkpoint that is written for it; `tensors` by the name of the part."""
    named = {f"{name}.{part}": tensor for part, tensor in tensors.items()}
    return open_checkpoint(write(folder, named, quantization)).read(name)


def values(weight: CheckpointWeight) -> torch.Tensor:
    """float32 [n, k] or [experts, n, k]: what the packed weight stands for, which the reference must agree with."""
    packed = weight.pack().dequantize()
    reference = torch.stack([one.dequantize() for one in weight.dense()]).view(weight.shape)
    torch.testing.assert_close(packed.double(), reference, rtol=2**-22, atol=0, equal_nan=True)
    return packed
