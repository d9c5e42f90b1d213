"""SmolLM2-135M as a checkpoint of several formats, through the commands and through transformers.

Folders are written by plain torch from the weights that transformers reads from the GGUF file.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import humming_ext as he
import pytest
import torch
from checkpoint_files import write
from humming_ext.__main__ import main
from humming_ext._demo_model import find_gguf
from humming_ext.checkpoints import open_checkpoint
from humming_ext.checkpoints.gguf import block_spec
from humming_ext.demo import MAX_RMS_RATIO, logits_of
from oracle.formats import value_table
from oracle.weights import pack_bitstream

GGUF = "gguf"
PROMPT = [6403, 1980, 253, 655, 28, 665, 436, 253]  # "Once upon a time, there was a"
NEW_TOKENS = 16
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Form:
    """A format of folders: its quantisation, its quantization_config, and a weight's tensors from codes and scales."""

    spec: he.QuantSpec
    config: dict[str, Any]
    tensors: Callable[[torch.Tensor, torch.Tensor], Tensors]


def _compressed_tensors(packing: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}}
    return {"quant_method": "compressed-tensors", "format": packing, "config_groups": {"group_0": group}}


def _int4(codes: torch.Tensor, scale: torch.Tensor) -> Tensors:
    n, k = codes.shape
    words = torch.from_numpy(pack_bitstream(codes.numpy(), 4)).view(torch.int32)
    return {"weight_packed": words, "weight_scale": scale, "weight_shape": torch.tensor([n, k])}


def _mxfp4(codes: torch.Tensor, scale: torch.Tensor) -> Tensors:
    return {"weight_packed": codes[:, 0::2] | codes[:, 1::2] << 4, "weight_scale": scale.view(torch.uint8)}


def _fp8(codes: torch.Tensor, scale: torch.Tensor) -> Tensors:
    return {"weight": codes.view(torch.float8_e4m3fn), "weight_scale_inv": scale}


def _int8(codes: torch.Tensor, scale: torch.Tensor) -> Tensors:
    return {"weight": (codes.int() - 128).to(torch.int8), "weight_scale": scale}


FORMS = {
    "int4 in groups of 128": Form(
        he.QuantSpec(he.WeightFormat.int4, group=128, scale_dtype=torch.bfloat16),
        _compressed_tensors("pack-quantized", num_bits=4, type="int", strategy="group", group_size=128),
        _int4,
    ),
    "mxfp4": Form(
        he.QuantSpec(he.WeightFormat.e2m1, group=32, scale_dtype=torch.float8_e8m0fnu),
        _compressed_tensors("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32),
        _mxfp4,
    ),
    "fp8 in blocks of 128 x 128": Form(
        he.QuantSpec(he.WeightFormat.e4m3, group=128, block_rows=128, scale_dtype=torch.float32),
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        _fp8,
    ),
    "int8 per channel": Form(
        he.QuantSpec(he.WeightFormat.int8, scale_dtype=torch.bfloat16),
        _compressed_tensors("int-quantized", num_bits=8, type="int", strategy="channel"),
        _int8,
    ),
}
NAMES = [GGUF, *FORMS]


def spec_of(name: str) -> he.QuantSpec:
    """The quantisation of the linear layers of a form."""
    return block_spec("Q4_1") if name == GGUF else FORMS[name].spec


def check(name: str, folder: Path, layers: int, device: str) -> None:
    """Packs and verifies a form of the first `layers` decoder layers, generates, and compares with its weights."""
    source = _gguf(folder, layers)
    exact = _dequantised(source)
    path = source if name == GGUF else _write(FORMS[name], exact, folder)
    assert main(["verify", str(path)]) == 0
    assert main(["pack", str(path), str(folder / "packed.safetensors")]) == 0
    assert [*he.load_weights(folder / "packed.safetensors")] == open_checkpoint(path).names

    from humming_ext.transformers import load

    model, info = load(path, dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert sum(isinstance(module, he.QuantLinear) for module in model.modules()) == 7 * layers
    prompt = torch.tensor([PROMPT], device=device)
    ids = model.to(device).generate(prompt, max_new_tokens=NEW_TOKENS, eos_token_id=None, do_sample=False)
    assert ids.shape == (1, len(PROMPT) + NEW_TOKENS)

    exact.to(device)
    plain = deepcopy(exact).bfloat16()
    reference = logits_of(exact.double(), ids)
    rounding, error = (logits_of(m, ids) - reference for m in (plain, model))
    assert 0 < error.square().mean() < MAX_RMS_RATIO**2 * rounding.square().mean()
    # A token is chosen wrongly only where two scores are closer than their errors.
    scores = reference[len(PROMPT) - 1 : -1]
    lost = scores.amax(1) - scores.gather(1, ids[0, len(PROMPT) :, None])[:, 0]
    assert lost.max() <= 2 * MAX_RMS_RATIO * rounding.abs().max()


def _gguf(folder: Path, layers: int) -> Path:
    """The file with the first `layers` decoder layers, without the tokenizer. Skips the test if there is none."""
    gguf = pytest.importorskip("gguf", reason="the PyPI package gguf is not installed")
    pytest.importorskip("transformers", reason="the PyPI package transformers is not installed")
    try:
        reader = _reader(find_gguf())
    except FileNotFoundError as error:
        pytest.skip(str(error))
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for key, field in reader.fields.items():
        if key.startswith("llama."):
            value = layers if key == "llama.block_count" else field.contents()
            writer.add_key_value(key, value, field.types[0])
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


@cache
def _reader(path: Path) -> Any:
    """What the library reads in seconds, for the tokenizer."""
    from gguf import GGUFReader

    return GGUFReader(path)


def _dequantised(path: Path) -> torch.nn.Module:
    """The model in float32, its embeddings rounded to bf16, as transformers reads the file."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    state = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    for key, values in model.state_dict().items():
        if "_proj" not in key:
            values.copy_(values.bfloat16())
    return model


def _write(form: Form, exact: torch.nn.Module, folder: Path) -> Path:
    """The folder of a form. The linear layers of `exact` get the values that its codes and scales stand for."""
    stored = {}
    for key, weight in exact.state_dict().items():
        if "_proj" not in key:
            stored |= {key: weight.bfloat16()} if key != "lm_head.weight" else {}
            continue
        quantised = he.quantize(weight, form.spec)
        codes, scale = quantised["codes"], quantised["scale"]
        stored |= {f"{key.removesuffix('weight')}{part}": t for part, t in form.tensors(codes, scale).items()}
        weight.copy_(_values(form.spec, codes, scale))
    return write(folder, stored, form.config, {"format": "pt"}, **exact.config.to_dict())


def _values(spec: he.QuantSpec, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    n, k = codes.shape
    spread = scale.double().repeat_interleave(spec.block_rows, 0).repeat_interleave(spec.group or k, 1)
    return torch.from_numpy(value_table(spec.format.name).copy())[codes.int()] * spread[:n, :k]
