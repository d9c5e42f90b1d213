"""Mixtures of experts through transformers, from the checkpoint format of each model."""

import json
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import humming_ext as he
import pytest
import torch
from humming_ext.demo import logits_of
from quantised_tensors import (
    Quantised,
    fp8_block_tensors,
    gptq_tensors,
    int8_tensors,
    mxfp4_tensors,
    pack_quantized_tensors,
)
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")
SHAPE = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = 12  # so that their numbers do not sort as text
LATENT = {"q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32}
GROUPED = {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 1}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq_v2"}


def compressed(packing: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int", **weights}}
    return {"quant_method": "compressed-tensors", "format": packing, "config_groups": {"group_0": group}}


@dataclass(frozen=True)
class Case:
    """A model and how its checkpoint is quantised. quantise: by patterns of names without ".weight"."""

    config: str
    fields: Mapping[str, Any]
    quantise: Mapping[str, Callable[[torch.Tensor], Quantised]]
    quantization: Mapping[str, Any]
    linears: int
    mixtures: int = 2
    separator: str = "."
    dtype: torch.dtype = torch.bfloat16


LINEAR = r"(_proj|_a_proj_with_mqa|\.w[123])$"
CASES = {
    "qwen3_moe": Case(
        "Qwen3MoeConfig",
        {"num_experts": EXPERTS, "num_local_experts": EXPERTS},
        {LINEAR: pack_quantized_tensors},
        compressed("pack-quantized", num_bits=4, strategy="group", group_size=32),
        linears=8,
    ),
    "mixtral": Case(
        "MixtralConfig",
        {"num_local_experts": EXPERTS},
        {LINEAR: int8_tensors},
        compressed("int-quantized", num_bits=8, strategy="channel"),
        linears=8,
        dtype=torch.float16,  # other than that of what is stored
    ),
    "deepseek_v3": Case(
        "DeepseekV3Config",
        {"n_routed_experts": EXPERTS, "num_key_value_heads": 4, "head_dim": 16, **LATENT, **GROUPED},
        {LINEAR: fp8_block_tensors},
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        linears=2 * 5 + 3 + 3,
        mixtures=1,
    ),
    "gpt_oss": Case(
        "GptOssConfig",
        {"num_local_experts": EXPERTS, "intermediate_size": 96},
        {r"experts\.(gate_up|down)_proj$": mxfp4_tensors},
        {"quant_method": "mxfp4"},
        linears=0,
        separator="_",
    ),
    "activation order": Case(
        "Qwen3MoeConfig",
        {"num_experts": EXPERTS, "num_local_experts": EXPERTS},
        {r"self_attn\..*_proj$": gptq_tensors, LINEAR: lambda weight: gptq_tensors(weight, scattered=False)},
        GPTQ,
        linears=8,
    ),
}


def write_checkpoint(case: Case, folder: Path) -> torch.nn.Module:
    """Writes a random model, as its publisher does but quantised, and returns what the checkpoint stands for."""
    torch.manual_seed(0)
    config = getattr(transformers, case.config)(**{**SHAPE, **case.fields})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    stored, plain = {}, load_file(folder / "model.safetensors")
    for key, weight in plain.items():
        name = key.removesuffix(".weight")
        quantise = next((function for pattern, function in case.quantise.items() if re.search(pattern, name)), None)
        if quantise is None:
            plain[key] = weight.bfloat16().float()
            stored[key] = weight if "e_score" in key else weight.bfloat16()
            continue
        transposed = weight.dim() == 3
        parts, values = quantise(weight.mT.contiguous() if transposed else weight)
        stored |= {f"{name}{case.separator}{part}": tensor.contiguous() for part, tensor in parts.items()}
        plain[key] = values.mT.contiguous() if transposed else values
    save_file(plain, folder / "model.safetensors", {"format": "pt"})
    options = {"dtype": torch.float32, "experts_implementation": "eager"}  # the default takes no float64
    exact = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).requires_grad_(False)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"quantization_config": case.quantization}))
    return exact


@pytest.mark.parametrize("name", CASES)
def test_mixtures_run_on_packed_weights(name: str, tmp_path: Path) -> None:
    from humming_ext.transformers import load

    case = CASES[name]
    exact = write_checkpoint(case, tmp_path)
    model, info = load(tmp_path, dtype=case.dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert sum(isinstance(module, he.FusedMoE) for module in model.modules()) == case.mixtures
    assert sum(isinstance(module, he.QuantLinear) for module in model.modules()) == case.linears

    ids = torch.arange(10, 74)[None]
    plain = deepcopy(exact).to(case.dtype)
    reference = logits_of(exact.double(), ids)

    def error(other: torch.nn.Module) -> torch.Tensor:
        """Of the middle token: where rounding sends a token to another expert, errors are of another kind."""
        return (logits_of(other, ids) - reference).square().mean(1).sqrt().median()

    assert 0 < error(model) < 2 * error(plain)
    tokens = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert tokens.shape == (1, 67) and tokens[0, 64] == logits_of(model, ids)[-1].argmax()


def test_layers_that_the_model_leaves_out_are_not_looked_for(tmp_path: Path) -> None:
    from humming_ext.transformers import load

    write_checkpoint(CASES["deepseek_v3"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    predicted = {key.replace("layers.1.", "layers.61."): tensor.clone() for key, tensor in tensors.items()}
    save_file(tensors | predicted, tmp_path / "model.safetensors", {"format": "pt"})
    _, info = load(tmp_path, dtype=torch.bfloat16, output_loading_info=True)
    assert not info["unexpected_keys"]


QWEN3 = CASES["qwen3_moe"]
DOWN = r"down_proj$"
ORDER = replace(CASES["activation order"], quantise={LINEAR: gptq_tensors})
DOWN_ORDER = replace(ORDER, quantise={DOWN: gptq_tensors, LINEAR: lambda weight: gptq_tensors(weight, scattered=False)})


@pytest.mark.parametrize(
    ("case", "drop", "message"),
    [
        (QWEN3, r"experts\.3\.up_proj", r"layers\.0\.mlp\.experts\.gate_up_proj: \[12, 11\] of 12 experts"),
        (QWEN3, r"down_proj", r"layers\.0\.mlp\.experts\.down_proj: \[\] of 12 experts"),
        (ORDER, None, r"layers\.0\.mlp\.experts\.gate_up_proj: .*0\.gate_proj.* different orders"),
        (DOWN_ORDER, None, r"layers\.0\.mlp\.experts\.down_proj: .* columns in activation order"),
        (
            replace(QWEN3, fields={**QWEN3.fields, "hidden_act": "gelu"}),
            None,
            r"layers\.0\.mlp\.experts: the activation of Qwen3MoeExperts is neither silu",
        ),
        (
            replace(QWEN3, quantise={r"mlp\.gate$": pack_quantized_tensors}),
            None,
            r"layers\.0\.mlp\.gate: Qwen3MoeTopKRouter is no linear layer and no experts",
        ),
    ],
    ids=["missing", "half", "order", "order of down", "activation", "router"],
)
def test_what_does_not_fit_is_refused(case: Case, drop: str | None, message: str, tmp_path: Path) -> None:
    from humming_ext.transformers import load

    write_checkpoint(case, tmp_path)
    if drop:
        tensors = load_file(tmp_path / "model.safetensors")
        kept = {key: tensor for key, tensor in tensors.items() if not re.search(drop, key)}
        save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load(tmp_path, dtype=torch.bfloat16)


def test_a_parameter_of_another_shape_is_refused(tmp_path: Path) -> None:
    from humming_ext.transformers import load

    write_checkpoint(CASES["gpt_oss"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for part in ("blocks", "scales"):
        key = f"model.layers.1.mlp.experts.down_proj_{part}"
        tensors[key] = tensors[key][:-1].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1\.mlp\.experts\.down_proj: \[11, 128, 96\] .* is not \[12, 128, 96\]"):
        load(tmp_path, dtype=torch.bfloat16)
