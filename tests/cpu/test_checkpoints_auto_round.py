"""AutoRound checkpoints against the library that writes them: its packing and its dequantisation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import read, values, write
from humming_ext import WeightFormat
from humming_ext.checkpoints import open_checkpoint

pytest.importorskip("auto_round", reason="the PyPI package auto-round is not installed")

from auto_round.export.export_to_autoround.export import dynamic_import_quant_linear_for_packing
from auto_round.export.export_to_awq.utils import dequantize_gemm

N, K, GROUP = 64, 256, 64
GPTQ, GPTQ_V2, PLAIN, AWQ = "auto_round:auto_gptq", "auto_round:gptqmodel", "auto_round", "auto_round:auto_awq"


def config(packing: str = GPTQ, bits: int = 4, sym: bool = False, group: int = GROUP, **changes: Any) -> dict[str, Any]:
    known = {"quant_method": "auto-round", "packing_format": packing, "bits": bits, "sym": sym, "group_size": group}
    return {key: value for key, value in {**known, "data_type": "int", **changes}.items() if value is not None}


def produce(
    packing: str = GPTQ, bits: int = 4, sym: bool = False, group: int = GROUP
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(stored tensors, dequantised fp16 weight [N, K]), both by the library."""
    generator = torch.Generator().manual_seed(bits)
    columns = K if group == -1 else group
    # Scales of both signs, as the library's symmetric quantisation has them.
    scale = (torch.rand(N, K // columns, generator=generator) + 0.5).half().float()
    scale[::3] *= -1
    zero = torch.full(scale.shape, float(1 << bits - 1))
    if not sym:
        zero = torch.randint(1, 1 << bits, scale.shape, generator=generator).float()
    codes = torch.randint(1 << bits, (N, K), generator=generator)
    layer = torch.nn.Linear(K, N, bias=False)
    wide_scale, wide_zero = (part.repeat_interleave(columns, 1) for part in (scale, zero))
    layer.weight.data = (codes - wide_zero) * wide_scale
    linear = dynamic_import_quant_linear_for_packing(packing, bits, group, sym)
    if packing == AWQ:
        packed = linear.from_linear(layer, bits, columns, scales=scale.t().contiguous(), zeros=zero.t().contiguous())
        return packed.state_dict(), dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, bits, columns).t()
    packed = linear(bits, group, K, N, bias=False, weight_dtype=torch.float32)
    packed.device = "cpu"
    packed.pack(layer, scale, zero, None)
    return packed.state_dict(), packed(torch.eye(K, dtype=torch.float16)).t()


CASES = [
    *((packing, bits, sym) for packing in (GPTQ, GPTQ_V2, PLAIN) for bits in range(2, 9) for sym in (True, False)),
    (AWQ, 4, True),
    (AWQ, 4, False),
]


@pytest.mark.parametrize(("packing", "bits", "sym"), CASES)
@pytest.mark.parametrize("group", [GROUP, -1])
def test_weights_are_those_of_the_library(tmp_path: Path, packing: str, bits: int, sym: bool, group: int) -> None:
    stored, dequantised = produce(packing, bits, sym, group)
    weight = read(tmp_path, stored, config(packing, bits, sym, group))
    assert weight.spec.format == WeightFormat[f"int{bits}" if sym and packing != AWQ else f"uint{bits}"]
    assert weight.columns is None and dequantised.unique().numel() > 30, "the weight shows nothing"
    assert torch.equal(values(weight).half(), dequantised)


def test_modules_may_have_fields_of_their_own(tmp_path: Path) -> None:
    four, of_four = produce()
    eight, of_eight = produce(bits=8, sym=True, group=-1)
    two, of_two = produce(bits=2)
    tensors = {f"a.up.{part}": tensor for part, tensor in four.items()}
    tensors |= {f"a.down.{part}": tensor for part, tensor in eight.items()}
    tensors |= {f"b.down.{part}": tensor for part, tensor in two.items()}
    extra = {
        "a.u": {"bits": 16},  # a module, whose name begins that of another
        r".*\.down": {"bits": 2},
        "a.down": {"bits": 8, "sym": True, "group_size": -1},
        r".*": {},
    }
    tensors["a.u.weight"] = torch.zeros(2, 2)
    folder = write(tmp_path, tensors, config(quant_method="intel/auto-round", extra_config=extra))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.names == ["a.down", "a.up", "b.down"]
    for name, expected in zip(checkpoint.names, (of_eight, of_four, of_two), strict=True):
        assert torch.equal(values(checkpoint.read(name)).half(), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"packing_format": "auto_round:llm_compressor"}, "packing_format: 'auto_round:llm_compressor' is not read"),
        ({"data_type": "mx_fp"}, "data_type: 'mx_fp' is not read; what is: 'int'"),
        ({"act_bits": 8}, "act_bits: 8 is not read"),
        ({"rotation_config": {"hadamard_type": "hadamard"}}, "rotation_config: rotated weights are not read"),
        ({"bits": 16}, r"quantization_config\.bits: 16 is not read; what is: 2 to 8"),
        ({"bits": None}, r"quantization_config\.bits: missing"),
        ({"bits": 2}, r"layer\.scales: shape \[4, 64\] is not \[8, 64\]"),
        ({"group_size": 128}, r"layer\.scales: shape \[4, 64\] is not \[2, 64\]"),
        ({"sym": True}, r"layer\.qzeros: zero points .* contradict sym = true"),
        ({"packing_format": AWQ}, r"layer\.scales: shape \[4, 64\] is not \[1, 512\]"),
        ({"extra_config": {"layer": {"bits": 9}}}, r"quantization_config\.extra_config\.layer\.bits: 9 is not read"),
        ({"extra_config": {"layer": 4}}, r"extra_config\.layer: 4 is no object"),
        ({"extra_config": {"(": {}}}, r"extra_config\.\(: is no regular expression"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, produce()[0], config(**fields))


def test_zero_points_that_version_1_cannot_store_are_refused(tmp_path: Path) -> None:
    stored, _ = produce()
    stored["qzeros"][0, 0] = -1
    with pytest.raises(ValueError, match=r"layer\.qzeros: holds 15 of checkpoint_format 'gptq'"):
        read(tmp_path, stored, config())
