"""bitsandbytes checkpoints against the library that writes them, and the config that transformers writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import read, values
from humming_ext import WeightFormat

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the PyPI package bitsandbytes is not installed")
transformers = pytest.importorskip("transformers", reason="the PyPI package transformers is not installed")

N, K = 48, 256


def config(**options: Any) -> dict[str, Any]:
    fields = transformers.BitsAndBytesConfig(**options).to_dict()
    return {**fields, "bnb_4bit_compute_dtype": "float32"}  # as to_json_file spells it


def produce(n: int = N, k: int = K) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(stored tensors, dequantised float32 weight), both by the library."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n)).half()
    layer = bitsandbytes.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(weight, has_fp16_weights=False, requires_grad=False)
    stored = layer.to("cpu").state_dict()
    return stored, bitsandbytes.functional.int8_vectorwise_dequant(stored["weight"], stored["SCB"])


@pytest.mark.parametrize(("n", "k"), [(N, K), (9, 33), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_int8_is_that_of_the_library(tmp_path: Path, n: int, k: int, dtype: torch.dtype) -> None:
    stored, dequantised = produce(n, k)
    weight = read(tmp_path, stored, config(load_in_8bit=True))
    assert weight.spec.format == WeightFormat.int8
    assert torch.equal(values(weight).to(dtype), dequantised.to(dtype))
    del stored["weight_format"]
    assert torch.equal(values(read(tmp_path, stored, config(load_in_8bit=True))), values(weight))


def produce_nf4(
    n: int = N, k: int = K, dtype: torch.dtype = torch.float32, *, nested: bool = True, **options: Any
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(stored tensors, dequantised weight), both by the library; it dequantises into the dtype of the weight.

    As one row: its CPU kernel begins a block with every row, where its quantiser and its GPU kernels let blocks run on.
    """
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n)).to(dtype)
    layer = bitsandbytes.nn.Linear4bit(k, n, bias=False)
    layer.weight = bitsandbytes.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=nested, quant_type="nf4", **options
    )
    stored = layer.to("cpu").state_dict()
    layer.weight.quant_state.shape = torch.Size([1, n * k])
    dequantised = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).view(n, k)
    assert (dequantised - weight).abs().max() < 0.16 * weight.abs().max()  # half of the widest step of nf4, and a bit
    return stored, dequantised


NF4 = config(load_in_4bit=True, bnb_4bit_quant_type="nf4")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "block", "group"),
    [
        (N, K, 64, 64),
        (100, 192, 128, 64),  # rows begin and end within blocks
        (7, 80, 64, 16),
        (40, 512, 256, 256),
        (3, 128, 4096, 128),  # a part of a block
        (160, 1024, 64, 64),  # several blocks of scales
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nf4_is_that_of_the_library(
    tmp_path: Path, n: int, k: int, block: int, group: int, dtype: torch.dtype, nested: bool
) -> None:
    stored, dequantised = produce_nf4(n, k, dtype, nested=nested, blocksize=block)
    weight = read(tmp_path, stored, NF4)
    assert (weight.spec.format, weight.spec.group) == (WeightFormat.nf4, group)
    assert weight.codes.unique().numel() == 16, "the weight shows nothing"
    assert torch.equal(values(weight).to(dtype), dequantised)


def test_codes_may_be_stored_in_a_wider_dtype(tmp_path: Path) -> None:
    stored, dequantised = produce_nf4(quant_storage=torch.bfloat16)
    assert stored["weight"].dtype == torch.bfloat16
    assert torch.equal(values(read(tmp_path, stored, NF4)), dequantised)


def test_fp4_is_refused(tmp_path: Path) -> None:
    stored, _ = produce_nf4()
    with pytest.raises(ValueError, match="bnb_4bit_quant_type: 'fp4' is not read; what is: 'nf4'"):
        read(tmp_path, stored, config(load_in_4bit=True, bnb_4bit_quant_type="fp4"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SCB": None}, r"layer\.SCB: no such tensor"),
        ({"SCB": torch.ones(N, 1)}, r"layer\.SCB: shape \[48, 1\] is not \[48\]"),
        ({"SCB": torch.ones(N).half()}, r"layer\.SCB: torch.float16 is not torch.float32"),
        ({"SCB": torch.full((N,), float("inf"))}, r"layer: .* non-finite"),
        ({"weight": torch.zeros(N, K)}, r"layer\.weight: torch.float32 is not torch.int8"),
        ({"weight": torch.zeros(N, dtype=torch.int8)}, r"layer\.weight: shape \[48\] is not"),
        ({"weight_format": torch.tensor(1, dtype=torch.uint8)}, r"layer\.weight_format: only 0 is read"),
        ({"weight_format": torch.zeros(2, dtype=torch.uint8)}, r"layer\.weight_format: shape \[2\] is not"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    stored = {part: tensor for part, tensor in {**produce()[0], **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        read(tmp_path, stored, config(load_in_8bit=True)).pack()


STATE = "weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({STATE: None}, "quant_method: 'bitsandbytes' contradicts"),
        ({STATE: torch.zeros(9)}, rf"layer\.{STATE}: torch.float32 is not torch.uint8"),
        ({STATE: torch.full((9,), 255, dtype=torch.uint8)}, rf"layer\.{STATE}: no readable JSON"),
        ({"shape": [N * K]}, rf"layer\.{STATE}: shape: \[12288\] is not \[rows, columns\]"),
        ({"shape": [N, 2 * K]}, r"layer\.weight: 6144 bytes are not two codes each of the shape \[48, 512\]"),
        ({"blocksize": 48}, rf"layer\.{STATE}: blocksize: 48 is not read"),
        ({"blocksize": 32}, r"layer\.weight\.absmax: shape \[192\] is not \[384\]"),
        ({"nested_blocksize": 0}, "nested_blocksize: 0 is not read"),
        ({"nested_blocksize": 128}, r"layer\.weight\.nested_absmax: shape \[1\] is not \[2\]"),
        ({"nested_offset": None}, "nested_offset: missing"),
        ({"nested_offset": float("nan")}, r"layer: .* non-finite"),
        ({"weight": torch.zeros(N, K // 2)}, r"layer\.weight: shape \[48, 128\] is not \[any, 1\]"),
        ({"weight.absmax": torch.zeros(192).half()}, r"layer\.weight\.absmax: torch.float16 is not torch.float32"),
        ({"weight.quant_map": torch.zeros(16)}, r"layer\.weight\.quant_map: \[0.0, .*\] are not the values of nf4"),
        ({"weight.quant_map": torch.zeros(15)}, r"layer\.weight\.quant_map: shape \[15\] is not \[16\]"),
        ({"weight.nested_absmax": None}, r"layer\.weight\.nested_absmax: no such tensor"),
        ({"weight.nested_quant_map": None}, r"layer\.weight\.nested_quant_map: no such tensor"),
    ],
)
def test_contradictions_of_nf4_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Of tensors, and of fields of the QuantState."""
    stored = produce_nf4()[0]
    fields = json.loads(bytes(stored[STATE].tolist())) | change
    text = json.dumps({name: value for name, value in fields.items() if name not in stored})
    stored[STATE] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    stored |= {name: tensor for name, tensor in change.items() if name in stored}
    with pytest.raises(ValueError, match=message):
        read(tmp_path, {name: tensor for name, tensor in stored.items() if tensor is not None}, NF4).pack()


def test_rows_that_share_blocks_too_finely_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layer: group = 1 is no multiple of 16"):
        read(tmp_path, produce_nf4(9, 33)[0], NF4).pack()
