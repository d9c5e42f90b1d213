"""gpt-oss checkpoints in MXFP4, against the dequantisation of transformers."""

from pathlib import Path

import pytest
import torch
from checkpoint_files import values, write
from humming_ext.checkpoints import CheckpointWeight, open_checkpoint

pytest.importorskip("transformers", reason="the PyPI package transformers is not installed")

from transformers.integrations.mxfp4 import convert_moe_packed_tensors

E, N, K = 3, 40, 96
LAYER = "model.layers.0.mlp.experts"


def make() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name in ("gate_up_proj", "down_proj"):
        shape = (E, N, K // 32)
        tensors[f"{LAYER}.{name}_blocks"] = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{LAYER}.{name}_scales"] = torch.randint(110, 135, shape, generator=generator, dtype=torch.uint8)
        tensors[f"{LAYER}.{name}_bias"] = torch.randn(E, N, generator=generator).bfloat16()
    return tensors


def read(folder: Path, tensors: dict[str, torch.Tensor], name: str) -> CheckpointWeight:
    return open_checkpoint(write(folder, tensors, {"quant_method": "mxfp4"})).read(f"{LAYER}.{name}")


def test_experts_are_those_of_transformers(tmp_path: Path) -> None:
    tensors = make()
    checkpoint = open_checkpoint(write(tmp_path, tensors, {"quant_method": "mxfp4"}))
    assert checkpoint.names == [f"{LAYER}.down_proj", f"{LAYER}.gate_up_proj"]
    for name in checkpoint.names:
        theirs = convert_moe_packed_tensors(tensors[f"{name}_blocks"], tensors[f"{name}_scales"]).transpose(1, 2)
        if name.endswith("gate_up_proj"):  # packed rows are gate, then up
            theirs = torch.cat([theirs[:, 0::2], theirs[:, 1::2]], 1)
        assert torch.equal(values(checkpoint.read(name)), theirs.float())
        assert torch.equal(checkpoint.tensor(f"{name}_bias"), tensors[f"{name}_bias"])


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("blocks", torch.zeros(E, N, 3, 8, dtype=torch.uint8), r"gate_up_proj_blocks: shape"),
        ("blocks", torch.zeros(E, N, 48, dtype=torch.uint8), r"gate_up_proj_blocks: shape"),
        ("blocks", torch.zeros(E, N, 3, 16), r"gate_up_proj_blocks: torch.float32"),
        (
            "scales",
            torch.zeros(E, N, 4, dtype=torch.uint8),
            r"gate_up_proj_scales: shape \[3, 40, 4\] is not \[3, 40, 3\]",
        ),
        ("scales", torch.zeros(E, N, 3), r"gate_up_proj_scales: torch.float32"),
        ("scales", torch.full((E, N, 3), 255, dtype=torch.uint8), r"gate_up_proj: .* non-finite"),
        ("scales", None, r"gate_up_proj_scales: no such tensor"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, part: str, tensor: torch.Tensor | None, message: str) -> None:
    tensors = {**make(), f"{LAYER}.gate_up_proj_{part}": tensor}
    with pytest.raises(ValueError, match=message):
        read(tmp_path, {name: value for name, value in tensors.items() if value is not None}, "gate_up_proj").pack()


def test_rows_of_unknown_order_are_refused(tmp_path: Path) -> None:
    tensors = {name.replace("gate_up_proj", "w13"): tensor for name, tensor in make().items()}
    with pytest.raises(ValueError, match=r"w13_blocks: w13 is neither gate_up_proj nor down_proj"):
        read(tmp_path, tensors, "w13")
