"""bitsandbytes checkpoints against the library that writes them, and the config that transformers writes."""

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


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_tables_of_values_are_refused(tmp_path: Path, kind: str) -> None:
    layer = bitsandbytes.nn.Linear4bit(K, N, bias=False, quant_type=kind).to("cpu")
    with pytest.raises(ValueError, match=rf"load_in_4bit: {kind} codes index a table .* quantise the original model"):
        read(tmp_path, layer.state_dict(), config(load_in_4bit=True, bnb_4bit_quant_type=kind))


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
