"""compressed-tensors checkpoints against the library that writes them: its codes, its config, its dequantisation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import read, values, write
from humming_ext import WeightFormat
from humming_ext.checkpoints import open_checkpoint

pytest.importorskip(
    "compressed_tensors", reason="the PyPI package compressed-tensors, for Python 3.11 and later, is not installed"
)

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

N, K = 48, 256
FP4 = {"num_bits": 4, "type": "float"}


def config_of(packing: str, **weights: Any) -> dict[str, Any]:
    """The quantization_config that the library writes for one scheme of all linear layers."""
    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=packing, ignore=["lm_head"])
    return json.loads(json.dumps(config.to_dict()))


def produce(
    packing: str, dtype: torch.dtype = torch.bfloat16, n: int = N, k: int = K, divisor: float = 1, **weights: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any], torch.Tensor]:
    """(stored tensors, quantization_config, dequantised weight), all by the library."""
    args = QuantizationArgs(**weights)
    generator = torch.Generator().manual_seed(n + k + args.num_bits)
    rows, columns = {
        "tensor": (1, 1),
        "channel": (n, 1),
        "group": (n, k // (args.group_size or k)),
        "tensor_group": (n, k // (args.group_size or k)),
        "block": tuple(-(-size // block) for size, block in zip((n, k), args.block_structure or (n, k), strict=True)),
    }[args.strategy]
    scale = torch.rand(rows, columns, generator=generator) + 0.5
    if args.type == "float" and args.num_bits == 4:
        scale = 2 ** (8 * scale).round() if args.group_size == 32 else scale * 100
    state = {
        "weight": torch.randn(n, k, generator=generator).to(dtype) * 2 ** (args.num_bits - 2),
        "weight_scale": scale.reshape(1) if args.strategy == "tensor" else scale,
    }
    if packing == "nvfp4-pack-quantized":
        state["weight_scale"] = state["weight_scale"].to(torch.float8_e4m3fn).float()
        state["weight_global_scale"] = torch.tensor([divisor])
        state["weight"] = state["weight"] * 60 / divisor
    else:
        state["weight_scale"] = state["weight_scale"].to(dtype)
    if not args.symmetric:
        span = 1 << args.num_bits - 1
        state["weight_zero_point"] = torch.randint(-span, span, scale.shape, generator=generator, dtype=torch.int8)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(packing)
    with torch.compiler.set_stance("force_eager"):  # the library compiles its rounding to e2m1
        stored = compressor.compress(state, scheme)
        dequantised = compressor.decompress(stored, scheme)["weight"]
    return stored, config_of(packing, **weights), dequantised


def assert_read_alike(folder: Path, packing: str, expected: WeightFormat, **options: Any) -> None:
    """What we read, rounded once to the library's dtype, is what the library reads."""
    stored, config, dequantised = produce(packing, **options)
    weight = read(folder, stored, config)
    assert weight.spec.format == expected
    ours = values(weight)
    assert dequantised.abs().max() > 0 and dequantised.unique().numel() >= 4, "the weight shows nothing"
    assert torch.equal(ours.to(dequantised.dtype), dequantised)


INTEGERS = [
    {"strategy": "group", "group_size": 128},
    {"strategy": "group", "group_size": 32},
    {"strategy": "channel"},
    {"strategy": "tensor"},
]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    "weights", INTEGERS, ids=lambda weights: f"{weights['strategy']}{weights.get('group_size', '')}"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_pack_quantized(tmp_path: Path, bits: int, weights: dict[str, Any], dtype: torch.dtype) -> None:
    expected = WeightFormat[f"int{bits}"]
    assert_read_alike(tmp_path, "pack-quantized", expected, dtype=dtype, num_bits=bits, **weights)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("weights", INTEGERS[:3], ids=lambda weights: weights["strategy"])
@pytest.mark.parametrize("n", [48, 9])
def test_pack_quantized_with_zero_points(tmp_path: Path, bits: int, weights: dict[str, Any], n: int) -> None:
    options = {"num_bits": bits, "symmetric": False, "n": n, **weights}
    assert_read_alike(tmp_path, "pack-quantized", WeightFormat[f"uint{bits}"], **options)


@pytest.mark.parametrize("bits", [3, 4, 7])
@pytest.mark.parametrize("k", [1, 33, 90])
def test_pack_quantized_of_any_width(tmp_path: Path, bits: int, k: int) -> None:
    expected = WeightFormat[f"int{bits}"]
    assert_read_alike(tmp_path, "pack-quantized", expected, num_bits=bits, strategy="channel", k=k)


@pytest.mark.parametrize("order", ["sorted", "reversed", "random", "unused"])
@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_activation_order(tmp_path: Path, order: str, bits: int, symmetric: bool) -> None:
    """The library no longer writes weight_g_idx, but checkpoints have it: column c has the scale of group g_idx[c]."""
    group = 64
    weights = {"num_bits": bits, "strategy": "group", "group_size": group, "symmetric": symmetric}
    stored, config, dequantised = produce("pack-quantized", **weights)
    columns = torch.arange(K) if order in ("sorted", "unused") else torch.arange(K).flip(0)
    columns = torch.randperm(K, generator=torch.Generator().manual_seed(3)) if order == "random" else columns
    # The library's weight has its columns in the order of the groups; the checkpoint's are put elsewhere.
    unpacked = unpack_from_int32(stored["weight_packed"], bits, torch.Size([N, K]))
    shuffled, g_idx = torch.empty_like(unpacked), torch.empty(K, dtype=torch.int32)
    shuffled[:, columns], g_idx[columns] = unpacked, (torch.arange(K) // group).int()
    stored |= {"weight_packed": pack_to_int32(shuffled, bits), "weight_g_idx": g_idx}
    if order == "unused":
        stored["weight_g_idx"] = torch.full((K,), -1, dtype=torch.int32)
    config["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    weight = read(tmp_path, stored, config)
    assert (weight.columns is None) == (order in ("sorted", "unused"))
    expected = torch.empty_like(dequantised)
    expected[:, columns] = dequantised
    assert torch.equal(values(weight).to(expected.dtype), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("weights", INTEGERS[:3], ids=lambda weights: f"{weights['strategy']}")
def test_int_quantized(tmp_path: Path, bits: int, symmetric: bool, weights: dict[str, Any]) -> None:
    expected = WeightFormat[f"int{bits}" if symmetric else f"uint{bits}"]
    assert_read_alike(tmp_path, "int-quantized", expected, num_bits=bits, symmetric=symmetric, **weights)


@pytest.mark.parametrize(
    "weights",
    [*INTEGERS, {"strategy": "block", "block_structure": [128, 128]}],
    ids=lambda weights: weights["strategy"],
)
@pytest.mark.parametrize("n", [48, 200])
def test_float_quantized(tmp_path: Path, weights: dict[str, Any], n: int) -> None:
    assert_read_alike(tmp_path, "float-quantized", WeightFormat.e4m3, num_bits=8, type="float", n=n, **weights)


def test_mxfp4(tmp_path: Path) -> None:
    options = {**FP4, "strategy": "group", "group_size": 32, "scale_dtype": torch.uint8}
    assert_read_alike(tmp_path, "mxfp4-pack-quantized", WeightFormat.e2m1, **options)


def test_nvfp4(tmp_path: Path) -> None:
    options = {**FP4, "strategy": "tensor_group", "group_size": 16, "divisor": 32.0}
    assert_read_alike(tmp_path, "nvfp4-pack-quantized", WeightFormat.e2m1, **options)


def test_nvfp4_divides_by_its_global_scale(tmp_path: Path) -> None:
    """By 7 the library rounds scale / 7 and we round 1 / 7, so that the two may round to neighbours in bf16."""
    options = {**FP4, "strategy": "tensor_group", "group_size": 16, "divisor": 7.0}
    stored, config, dequantised = produce("nvfp4-pack-quantized", **options)
    torch.testing.assert_close(values(read(tmp_path, stored, config)), dequantised.float(), rtol=2**-8, atol=0)


def test_targets_choose_the_scheme(tmp_path: Path) -> None:
    four, config, wanted = produce("pack-quantized", num_bits=4, strategy="channel")
    eight, of_eight, wanted_of_eight = produce("pack-quantized", num_bits=8, strategy="group", group_size=64)
    config["config_groups"]["group_1"] = {**of_eight["config_groups"]["group_0"], "targets": [r"re:.*\.down_proj$"]}
    tensors = {f"a.up_proj.{part}": tensor for part, tensor in four.items()}
    tensors |= {f"a.down_proj.{part}": tensor for part, tensor in eight.items()}
    checkpoint = open_checkpoint(write(tmp_path, tensors, config))
    assert checkpoint.names == ["a.down_proj", "a.up_proj"]
    assert torch.equal(values(checkpoint.read("a.up_proj")).bfloat16(), wanted)
    assert torch.equal(values(checkpoint.read("a.down_proj")).bfloat16(), wanted_of_eight)
    config["config_groups"]["group_2"] = {**of_eight["config_groups"]["group_0"], "targets": ["a.down_proj"]}
    with pytest.raises(ValueError, match=r"config_groups: the targets of 2 groups fit the module a\.down_proj"):
        open_checkpoint(write(tmp_path, tensors, config)).read("a.down_proj")


GROUP = {"num_bits": 4, "strategy": "group", "group_size": 128}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_packed": torch.zeros(N, K // 8)}, r"layer\.weight_packed: torch.float32 is not torch.int32"),
        ({"weight_packed": torch.zeros(N, 5, dtype=torch.int32)}, r"layer\.weight_shape: .* contradicts weight_packed"),
        ({"weight_packed": torch.zeros(N, dtype=torch.int32)}, r"layer\.weight_packed: shape"),
        ({"weight_shape": torch.tensor([N, 1 << 62])}, r"layer\.weight_shape: .* contradicts"),
        ({"weight_shape": torch.tensor([N, -K])}, r"layer\.weight_shape: .* contradicts"),
        ({"weight_shape": torch.tensor([N, K, 1])}, r"layer\.weight_shape: shape"),
        ({"weight_scale": None}, r"layer\.weight_scale: no such tensor"),
        ({"weight_shape": None}, r"layer\.weight_shape: no such tensor"),
        ({"weight_scale": torch.ones(N, 3)}, r"layer\.weight_scale: shape \[48, 3\] is not \[48, 2\]"),
        ({"weight_scale": torch.ones(N, 2, dtype=torch.int8)}, r"layer\.weight_scale: torch.int8 is not"),
        ({"weight_g_idx": torch.zeros(K, dtype=torch.int32)}, r"layer\.weight_g_idx: its 256 columns"),
        ({"weight_g_idx": torch.zeros(K // 2, dtype=torch.int32)}, r"layer\.weight_g_idx: shape"),
        ({"weight_scale": torch.full((N, 2), float("nan"))}, "layer: .* 96 values are non-finite"),
    ],
)
def test_contradictory_tensors_are_named(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    stored, config, _ = produce("pack-quantized", **GROUP)
    changed = {part: tensor for part, tensor in {**stored, **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        read(tmp_path, changed, config).pack()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_bits": 9}, "weights.num_bits: 9 is not read; what is: 2 to 8"),
        ({"num_bits": 1}, "weights.num_bits: 1 is not read"),
        ({"num_bits": "4"}, "weights.num_bits: '4' is no integer"),
        ({"type": "float"}, "weights.type: 'float' is not read"),
        ({"strategy": "other"}, "weights.strategy: 'other' is not read"),
        ({"group_size": 0}, "weights.group_size: 0 is not read"),
        ({"group_size": None}, "weights.group_size: missing"),
        ({"strategy": "block", "block_structure": [128]}, "weights.block_structure: .* is not .rows, columns"),
        ({"strategy": "tensor", "symmetric": False}, "weights.symmetric: false is not read"),
        ({"symmetric": False}, r"layer\.weight_zero_point: no such tensor"),
        ({"group_size": 24}, "layer"),
        ({"num_bits": 8}, r"layer\.weight_shape: .* contradicts weight_packed .* with num_bits = 8"),
    ],
)
def test_contradictory_configs_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    stored, config, _ = produce("pack-quantized", **GROUP)
    config["config_groups"]["group_0"]["weights"] |= change
    with pytest.raises(ValueError, match=message):
        read(tmp_path, stored, config).pack()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "marlin-24"}, "group_0.format: 'marlin-24' is not read; what is: 'pack-quantized'"),
        ({"targets": ["other.layer"]}, "config_groups: the targets of 0 groups fit the module layer"),
        ({"targets": ["re:("]}, "config_groups: a target is no regular expression"),
        ({"targets": [4]}, "group_0.targets: .4. is no list of str"),
        ({"weights": None}, "group_0.weights: missing"),
    ],
)
def test_contradictory_groups_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    stored, config, _ = produce("pack-quantized", **GROUP)
    config["config_groups"]["group_0"] |= change
    with pytest.raises(ValueError, match=message):
        read(tmp_path, stored, config)


@pytest.mark.parametrize("divisor", [0.0, -1.0, float("nan"), float("inf")])
def test_nvfp4_needs_a_positive_global_scale(tmp_path: Path, divisor: float) -> None:
    options = {**FP4, "strategy": "tensor_group", "group_size": 16}
    stored, config, _ = produce("nvfp4-pack-quantized", **options)
    with pytest.raises(ValueError, match=r"layer\.weight_global_scale"):
        read(tmp_path, {**stored, "weight_global_scale": torch.tensor([divisor])}, config)
