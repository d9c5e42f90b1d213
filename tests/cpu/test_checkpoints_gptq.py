"""GPTQ checkpoints against GPTQModel, which writes them, and against a fixture of the layout that it documents.

The fixture has what the library does not write: a last group that is smaller, and files of the wrong version.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import read, values
from humming_ext import PackedWeight, QuantLinear, QuantSpec, WeightFormat, load_weights, save_weights
from oracle.weights import dequantise, pack_bitstream

N = 32


def words(codes: np.ndarray, bits: int) -> torch.Tensor:
    """int32 [rows, columns * bits / 32]: rows as bit streams."""
    return torch.from_numpy(pack_bitstream(codes, bits)).view(torch.int32)


@dataclass(frozen=True)
class Case:
    bits: int = 4
    group: int = 64
    k: int = 256
    symmetric: bool = False
    version: int = 1
    order: str = "sorted"

    def config(self, **changes: Any) -> dict[str, Any]:
        fields = {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group or -1,
            "desc_act": self.order != "sorted",
            "sym": self.symmetric,
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
        }
        return {key: value for key, value in {**fields, **changes}.items() if value is not None}

    def make(self) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """(stored tensors, float32 weight [N, K])."""
        rng = np.random.default_rng([self.bits, self.group, self.k])
        groups = -(-self.k // (self.group or self.k))
        codes = rng.integers(0, 1 << self.bits, (N, self.k), dtype=np.uint8)
        middle = 1 << self.bits - 1
        # Version 1 has no zero point 0: it is stored less 1.
        zero = rng.integers(self.version % 2, 1 << self.bits, (N, groups), dtype=np.uint8)
        zero = np.full_like(zero, middle) if self.symmetric else zero
        scale = rng.uniform(0.5, 2, (N, groups)).astype(np.float16)
        columns = rng.permutation(self.k) if self.order == "random" else np.arange(self.k)
        g_idx = np.argsort(columns) // (self.group or self.k)
        weight = dequantise(codes, f"uint{self.bits}", scale=scale[:, g_idx], group=1, zero=zero[:, g_idx])
        stored = {
            "qweight": words(codes, self.bits).t(),
            "scales": torch.from_numpy(scale).t(),
            "qzeros": words(zero.T - np.uint8(self.version == 1), self.bits),
            "g_idx": torch.from_numpy(g_idx.astype(np.int32)),
        }
        return stored, torch.from_numpy(weight).float()


CASES = [
    *(Case(bits, symmetric=symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)),
    *(Case(bits, version=2) for bits in (2, 3, 4, 8)),
    *(Case(bits, order="random", version=version) for bits in (2, 3, 4, 8) for version in (1, 2)),
    Case(group=0),
    Case(group=0, symmetric=True, order="random"),
    Case(group=128, k=320),
    Case(group=128, k=320, order="random"),
    Case(group=32, k=64),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_are_exact(tmp_path: Path, case: Case) -> None:
    stored, expected = case.make()
    weight = read(tmp_path, stored, case.config())
    assert weight.spec.format == WeightFormat[f"{'' if case.symmetric else 'u'}int{case.bits}"]
    assert (weight.columns is not None) == (case.order == "random" and case.group > 0)
    assert torch.equal(values(weight), expected)


def produce(bits: int, layout: str, group: int = 64, order: str = "random") -> tuple[dict[str, torch.Tensor], Any]:
    """(stored tensors, dequantised fp16 weight [N, 256]), both by GPTQModel."""
    pytest.importorskip("gptqmodel", reason="the PyPI package gptqmodel is not installed")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    k, generator = 256, torch.Generator().manual_seed(bits)
    scale = (torch.rand(N, k // group, generator=generator) + 0.5).half().float()
    zero = torch.randint(1, 1 << bits, scale.shape, generator=generator)
    columns = torch.randperm(k, generator=generator) if order == "random" else torch.arange(k)
    g_idx = columns // group
    layer = torch.nn.Linear(k, N, bias=False)
    layer.weight.data = (torch.randint(1 << bits, (N, k), generator=generator) - zero[:, g_idx]) * scale[:, g_idx]
    packed = TorchLinear(bits, group, False, order == "random", k, N, format=layout).eval()
    packed.pack_original(layer, scale, zero, g_idx.int())
    dequantised = packed.dequantize_weight().t()
    if layout == "gptq":
        convert_gptq_v2_to_v1_format_module(packed, packed)
    return packed.state_dict(), dequantised


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "gptq_p"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("group", "order"), [(64, "sorted"), (64, "random"), (256, "sorted")])
def test_weights_are_those_of_the_library(tmp_path: Path, layout: str, bits: int, group: int, order: str) -> None:
    stored, dequantised = produce(bits, layout, group, order)
    config = Case(bits, group, order=order).config(checkpoint_format=layout)
    if bits in (5, 6, 7) and layout != "gptq_p":  # which the library turns into gptq_p
        with pytest.raises(ValueError, match=rf"bits: {bits} is not read; what is: 2, 3, 4, 8"):
            read(tmp_path, stored, config)
    else:
        weight = read(tmp_path, stored, config)
        assert (weight.columns is not None) == (order == "random")
        assert torch.equal(values(weight).half(), dequantised)


def test_planes_hold_32_codes(tmp_path: Path) -> None:
    stored, _ = produce(6, "gptq_p")
    stored["qweight"] = stored["qweight"][:45]
    stored["scales"], stored["qzeros"] = (stored[part][:4] for part in ("scales", "qzeros"))
    stored["g_idx"] = torch.arange(240) // 64
    with pytest.raises(ValueError, match=r"layer\.qweight: 240 codes are no multiple of the 32"):
        read(tmp_path, stored, Case(6).config(checkpoint_format="gptq_p"))


def test_layers_put_activations_in_the_order_of_the_columns(tmp_path: Path) -> None:
    stored, expected = Case(order="random").make()
    weight = read(tmp_path, stored, Case(order="random").config()).pack()
    save_weights({"layer": weight}, tmp_path / "packed.safetensors")
    loaded = load_weights(tmp_path / "packed.safetensors")["layer"]
    assert torch.equal(loaded.dequantize(), expected)
    identity = torch.eye(256, dtype=torch.bfloat16)
    for layer in (QuantLinear(weight), QuantLinear(loaded)):
        assert torch.equal(layer(identity), expected.t().bfloat16())
    codes = torch.zeros(2, 4, 256, dtype=torch.uint8)
    for columns, message in [
        (torch.zeros(256, dtype=torch.int64), "columns: .* no permutation"),
        (torch.arange(255), "columns: .*int64"),
        (torch.arange(256).int(), "columns: .*int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            PackedWeight.pack(codes[0], spec=QuantSpec(WeightFormat.int4), columns=columns)
    with pytest.raises(ValueError, match="columns: experts"):
        PackedWeight.pack(codes, spec=QuantSpec(WeightFormat.int4), columns=torch.arange(256))


def test_g_idx_may_be_missing_and_the_version_may_be_called_format(tmp_path: Path) -> None:
    stored, expected = Case(version=2).make()
    del stored["g_idx"]
    config = Case().config(checkpoint_format=None, format="gptq_v2", desc_act=None, sym=None)
    assert torch.equal(values(read(tmp_path, stored, config)), expected)


def test_a_version_that_is_not_the_files_shows_where_the_zero_points_are_known(tmp_path: Path) -> None:
    stored, _ = Case(symmetric=True, version=2).make()
    with pytest.raises(ValueError, match=r"layer\.qzeros: zero points 9 to 9 contradict sym = true"):
        read(tmp_path, stored, Case(symmetric=True, version=1).config())


def test_zero_points_that_version_1_cannot_store_are_refused(tmp_path: Path) -> None:
    stored, _ = Case().make()
    stored["qzeros"][0, 0] = -1
    with pytest.raises(ValueError, match=r"layer\.qzeros: holds 15 of checkpoint_format 'gptq'"):
        read(tmp_path, stored, Case().config())


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({}, {"bits": 3}, r"layer\.g(_idx|roups)|layer\.qweight: .* contradicts bits = 3|layer\.scales"),
        ({}, {"bits": 9}, r"quantization_config\.bits: 9 is not read"),
        ({}, {"bits": None}, r"quantization_config\.bits: missing"),
        ({}, {"group_size": 0}, r"quantization_config\.group_size: 0 is neither"),
        ({}, {"group_size": 32}, r"layer\.scales: shape \[4, 32\] is not \[8, 32\]"),
        ({}, {"checkpoint_format": "marlin"}, r"checkpoint_format: 'marlin' is not read"),
        ({}, {"sym": "yes"}, r"sym: 'yes' is no boolean"),
        ({"g_idx": None}, {"desc_act": True}, r"layer\.g_idx: no such tensor"),
        ({"g_idx": torch.zeros(256, dtype=torch.int32)}, {}, r"layer\.g_idx: its 256 columns"),
        ({"g_idx": torch.zeros(255, dtype=torch.int32)}, {}, r"layer\.g_idx: shape \[255\]"),
        ({"qzeros": None}, {}, r"layer\.qzeros: no such tensor"),
        ({"qzeros": torch.zeros(4, 3, dtype=torch.int32)}, {}, r"layer\.qzeros: shape \[4, 3\]"),
        ({"qweight": torch.zeros(32, dtype=torch.int32)}, {}, r"layer\.qweight: shape \[32\]"),
        ({"qweight": torch.zeros(32, 32, dtype=torch.int16)}, {}, r"layer\.qweight: torch.int16"),
        ({"scales": torch.zeros(4, 32, dtype=torch.int32)}, {}, r"layer\.scales: torch.int32"),
    ],
)
def test_contradictions_are_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor | None], config: dict[str, Any], message: str
) -> None:
    stored = {part: tensor for part, tensor in {**Case().make()[0], **tensors}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        read(tmp_path, stored, Case().config(**config))
