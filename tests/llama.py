"""A small language model with random weights, for tests of decoding."""

import humming_ext
import pytest
import torch
from humming_ext.checkpoints.gguf import BLOCK, block_spec


def tiny_llama(dtype: torch.dtype, device: str) -> torch.nn.Module:
    """Weights so large that greedy decoding does not repeat itself. Skips the test if there is no transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    return transformers.AutoModelForCausalLM.from_config(config).to(device, dtype).eval()


def quantise(model: torch.nn.Module) -> None:
    """Puts packed Q4_1 weights into the linear layers of the model's decoder."""
    for parent in list(model.model.layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                blocks = child.weight.detach().float().unflatten(1, (-1, BLOCK))
                low, high = blocks.aminmax(dim=2, keepdim=True)
                scale = (high - low) / 15
                codes = ((blocks - low) / scale).round().to(torch.uint8).flatten(1)
                scales = (scale[..., 0].half(), low[..., 0].half())
                packed = humming_ext.PackedWeight.pack(codes, *scales, spec=block_spec("Q4_1"))
                setattr(parent, name, humming_ext.QuantLinear(packed))
