"""Experts that are a module each, as most checkpoints have them: stacked into the weights of a mixture."""

from dataclasses import replace
from pathlib import Path

import humming_ext as he
import pytest
import torch
from checkpoint_files import write
from humming_ext.checkpoints import CheckpointWeight, open_checkpoint
from support import assert_bits_equal

E, INTER, HIDDEN = 3, 40, 64


def weight(name: str, spec: he.QuantSpec, n: int = INTER, k: int = HIDDEN, seed: int = 0) -> CheckpointWeight:
    values = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * (1 + seed)
    return CheckpointWeight(name, spec, **he.quantize(values, spec))


SPECS = {
    "channel": he.QuantSpec(he.WeightFormat.int8, scale_dtype=torch.float32),
    "tensor": he.QuantSpec(he.WeightFormat.e4m3, block_rows=0, scale_dtype=torch.float32),
    "groups with zero points": he.QuantSpec(
        he.WeightFormat.uint4, group=32, scale_dtype=torch.bfloat16, zero=he.ZeroKind.integer
    ),
    "tensor with a zero point": he.QuantSpec(
        he.WeightFormat.uint8, block_rows=0, scale_dtype=torch.float32, zero=he.ZeroKind.integer
    ),
    "offsets": he.QuantSpec(he.WeightFormat.uint4, group=32, scale_dtype=torch.float32, zero=he.ZeroKind.floating),
    "blocks": he.QuantSpec(he.WeightFormat.e4m3, group=32, block_rows=16, scale_dtype=torch.float32),
    "nvfp4": he.QuantSpec(he.WeightFormat.e2m1, group=16, scale_dtype=torch.float8_e4m3fn),
    "mxfp4": he.QuantSpec(he.WeightFormat.e2m1, group=32, scale_dtype=torch.float8_e8m0fnu),
}


@pytest.mark.parametrize("kind", SPECS)
def test_stacked_experts_are_their_parts(kind: str) -> None:
    spec = SPECS[kind]
    pairs = [(weight("gate", spec, seed=2 * e), weight("up", spec, seed=2 * e + 1)) for e in range(E)]
    w13 = he.PackedWeight.stack([gate.gate_up(up).pack() for gate, up in pairs])
    assert tuple(w13.shape) == (E, 2 * INTER, HIDDEN) and w13.spec.gate_up
    expected = [torch.cat([gate.dequantize(), up.dequantize()]) for gate, up in pairs]
    torch.testing.assert_close(w13.dequantize().double(), torch.stack(expected), rtol=2**-22, atol=0)


def test_a_layer_runs_on_them(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for e in range(E):
        for name, (n, k) in {
            "gate_proj": (INTER, HIDDEN),
            "up_proj": (INTER, HIDDEN),
            "down_proj": (HIDDEN, INTER),
        }.items():
            module = f"mlp.experts.{e}.{name}"
            tensors[f"{module}.weight"] = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=generator)
            tensors[f"{module}.weight_scale"] = torch.rand(n, 1, generator=generator) / 500
    read = open_checkpoint(write(tmp_path, tensors, {"quant_method": "w8a8_int8"})).read
    names = [f"mlp.experts.{e}" for e in range(E)]
    w13 = he.PackedWeight.stack([read(f"{n}.gate_proj").gate_up(read(f"{n}.up_proj")).pack() for n in names])
    w2 = he.PackedWeight.stack([read(f"{n}.down_proj").pack() for n in names])
    x = torch.randn(2, HIDDEN, generator=generator).bfloat16()
    ids = torch.tensor([[0, 2], [1, 0]])
    out = he.FusedMoE(w13, w2, activation="silu")(x, torch.ones(2, 2), ids)
    for token in range(2):
        exact = torch.zeros(HIDDEN, dtype=torch.float64)
        for e in ids[token].tolist():
            gate, up, down = (read(f"mlp.experts.{e}.{p}_proj").dequantize() for p in ("gate", "up", "down"))
            exact += down @ (torch.nn.functional.silu(gate @ x[token].double()) * (up @ x[token].double()))
        assert float((out[token].double() - exact).norm()) < 0.01 * float(exact.norm())


def test_secondary_scales_of_both_kinds_are_stacked() -> None:
    spec = he.QuantSpec(he.WeightFormat.int4)
    codes = torch.randint(16, (5, 32), dtype=torch.uint8)
    plain, row = (he.PackedWeight.pack(codes, spec=spec, scale2=s) for s in (None, torch.arange(1.0, 6.0)))
    one = he.PackedWeight.pack(codes, spec=spec, scale2=torch.tensor([3.0]))
    for weights in ([plain, plain], [plain, one], [one, row, plain]):
        stacked = he.PackedWeight.stack(weights)
        assert_bits_equal(stacked.dequantize(), torch.stack([weight.dequantize() for weight in weights]))


def test_parts_that_are_not_alike_are_named() -> None:
    spec = SPECS["channel"]
    gate, order = weight("a", spec), torch.arange(HIDDEN)
    for up, message in [
        (weight("b", SPECS["tensor"]), r"a, b: .* are not alike"),
        (weight("b", spec, n=INTER + 1), r"a, b: .* are not alike"),
        (replace(weight("b", spec), columns=order), r"a, b: their columns"),
    ]:
        with pytest.raises(ValueError, match=message):
            gate.gate_up(up)
    sorted_ = replace(gate, columns=order)
    assert sorted_.gate_up(replace(gate, columns=order.clone())).columns is not None
    dense = gate.pack()
    for weights, message in [
        ([], "weights: no experts"),
        ([dense, weight("b", spec, n=INTER + 1).pack()], "weights: 1 has"),
        ([he.PackedWeight.stack([dense])], "weights: 0 has"),
        ([dense, sorted_.pack()], "weights: 1 has columns in activation order"),
    ]:
        with pytest.raises(ValueError, match=message):
            he.PackedWeight.stack(weights)
