"""The GGUF file of a llama model under the names, and with the order of rows, that transformers has for it."""

import re
from collections.abc import Collection
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ._weight import CheckpointWeight
from .gguf import GgufFile

_MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GgufLlama:
    """A GGUF file, read when asked for.

    config: the transformers configuration of the file.
    names: the linear layers whose weights are read as they are.

    Raises ValueError for other models, and for tensors that a llama model without biases does not have; otherwise as
    GgufFile does.
    """

    names: list[str]

    def __init__(self, path: str | PathLike[str], config: Any) -> None:
        if config.model_type != "llama":
            raise ValueError(
                f"{path}: of a model of type {config.model_type}; of GGUF files, only llama models are run"
            )
        self._file = GgufFile(path)
        self._stored = {_module(name): name for name in self._file.types()}
        self._heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        readable = {*self._file.names}
        self.names = [name for name, stored in self._stored.items() if "_proj" in name and stored in readable]

    def read(self, name: str) -> CheckpointWeight:
        """The weight of a module of `names` with its own codes."""
        weight = self._file.read(self._stored[name])
        order = self._order(name, len(weight.codes))
        zero = None if weight.zero is None else weight.zero[order]
        return replace(weight, codes=weight.codes[order], scale=weight.scale[order], zero=zero)

    def state(self, *, without: Collection[str] = ()) -> dict[str, Tensor]:
        """The state dict, float32, of all modules but those `without`."""
        state = {}
        for name in self._stored.keys() - set(without):
            values = self._file.tensor(self._stored[name])
            state[f"{name}.weight"] = values[self._order(name, len(values))]
        return state

    def _order(self, name: str, rows: int) -> Tensor | slice:
        """Where transformers has the rows of the file's tensor: int64 [rows], or a slice of all where they are.

        GGUF stores the two halves of a head's rotary dimensions alternately, transformers one after the other.
        """
        heads = self._heads.get(name.rpartition(".")[2])
        if heads is None:
            return slice(None)
        return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)


def _module(stored: str) -> str:
    """The module that has a tensor of the file as its weight."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", stored)
    if not match or match[2] not in _MODULES:
        raise ValueError(f"{stored}: no tensor of a llama model without biases")
    module = _MODULES[match[2]]
    return f"model.layers.{match[1]}.{module}" if match[1] else module
