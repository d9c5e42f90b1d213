"""Checkpoints of others through transformers: models that run on packed weights."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import humming_ext as he
import pytest
import torch
from humming_ext.demo import logits_of
from llama import tiny_llama
from quantised_tensors import gptq_tensors, hqq_tensors, int8_tensors, nf4_tensors
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")


def llama_with_biases() -> torch.nn.Module:
    config = tiny_llama(torch.float32, "cpu").config
    config.attention_bias = True
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    return model.requires_grad_(False)


FORMATS: dict[str, tuple[Any, dict[str, Any]]] = {
    "int8": (int8_tensors, {"quant_method": "w8a8_int8"}),
    "gptq": (
        gptq_tensors,
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq_v2"},
    ),
    "hqq": (hqq_tensors, {"quant_method": "hqq"}),
    "nf4": (
        nf4_tensors,
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_models_run_on_packed_weights(name: str, tmp_path: Path) -> None:
    from humming_ext.transformers import load

    quantise, config = FORMATS[name]
    exact = llama_with_biases()
    exact.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for key in [key for key in tensors if "_proj.weight" in key]:
        parts, values = quantise(tensors.pop(key))
        module = key.removesuffix(".weight")
        tensors |= {f"{module}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        exact.get_submodule(module).weight.data = values
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | {"quantization_config": config}))

    model, info = load(tmp_path, dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    layers = [module for module in model.modules() if isinstance(module, he.QuantLinear)]
    assert len(layers) == 14 and not any("_proj" in key and "weight" in key for key in model.state_dict())
    ids = torch.arange(10, 74)[None]
    plain = deepcopy(exact)
    reference = logits_of(exact.double(), ids)
    rounding = (logits_of(plain.bfloat16(), ids) - reference).square().mean().sqrt()
    error = (logits_of(model, ids) - reference).square().mean().sqrt()
    assert 0 < error < 2 * rounding


def test_modules_that_are_no_linear_layers_are_refused(tmp_path: Path) -> None:
    from humming_ext.transformers import load

    model = tiny_llama(torch.float32, "cpu")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    parts, _ = int8_tensors(tensors.pop("model.embed_tokens.weight"))
    tensors |= {f"model.embed_tokens.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | {"quantization_config": {"quant_method": "w8a8_int8"}}))
    with pytest.raises(ValueError, match=r"model\.embed_tokens: Embedding is no linear layer"):
        load(tmp_path, dtype=torch.bfloat16)
