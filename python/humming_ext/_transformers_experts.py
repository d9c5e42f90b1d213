"""The experts of transformers models as one FusedMoE each, from the weights of a checkpoint.

transformers has a layer's experts in one module, which is called with rows, expert ids and weights, and whose
parameters are `gate_up_proj` and `down_proj` [experts, ...]. A checkpoint has these as they are, or modules per expert.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import _default_apply_gate
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from .checkpoints import CheckpointWeight
from .fused_moe import FusedMoE
from .packed_weight import PackedWeight

PARTS = ("gate_up_proj", "down_proj")


class Experts(nn.Module):
    """A FusedMoE, called as transformers calls experts."""

    def __init__(self, layer: FusedMoE) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[tokens, hidden] of bfloat16 or float16, and int64 and float [tokens, top_k] -> as hidden_states."""
        return self.layer(hidden_states, top_k_weights.float(), top_k_index)


@dataclass
class ExpertsPlan:
    """What of a checkpoint belongs to a module of experts.

    name, module: the module in the model, on any device.
    sources: for a part, the checkpoint's modules: by projection, gate before up, a list by expert; or, where one has
        all experts, its name under None.

    Raises ValueError, naming the module, for experts that FusedMoE does not compute.
    """

    name: str
    module: Any  # attributes of experts are known to transformers alone
    sources: dict[str, dict[str | None, list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.activation = _activation(self.name, self.module)

    def build(
        self, read: Callable[[str], CheckpointWeight], biases: nn.Module, dtype: torch.dtype, device: torch.device
    ) -> Experts:
        """The module to put in place.

        read: as Checkpoint.read.
        biases: has `gate_up_proj_bias` and `down_proj_bias` [experts, n], in the order of the module, if it has any.
        dtype, device: of the model.

        Raises ValueError, naming module and part, for parts that are missing or of other shapes, for experts that are
        quantised in different ways, and for those in activation order.
        """
        weights = [self._pack(part, read, dtype, device) for part in PARTS]
        w13_bias, w2_bias = (getattr(biases, f"{part}_bias", None) for part in PARTS)
        if w13_bias is not None and not self.module.is_concatenated:
            w13_bias = torch.cat([w13_bias[:, ::2], w13_bias[:, 1::2]], dim=1)
        name, args = self.activation
        return Experts(FusedMoE(*weights, w13_bias=w13_bias, w2_bias=w2_bias, activation=name, activation_args=args))

    def _pack(
        self, part: str, read: Callable[[str], CheckpointWeight], dtype: torch.dtype, device: torch.device
    ) -> PackedWeight:
        where, sources = f"{self.name}.{part}", self.sources.get(part, {})

        def pack(weight: CheckpointWeight) -> PackedWeight:
            return weight.pack(weight.spec.for_activation(dtype), device=device)

        if None in sources:
            packed = pack(read(*sources[None]))
        else:
            counts = [len(names) for names in sources.values()]
            if counts != [self.module.num_experts] * (1 + (part == "gate_up_proj")):
                raise ValueError(f"{where}: {counts} of {self.module.num_experts} experts are quantised, not all")
            experts = ([read(name) for name in names] for names in zip(*sources.values(), strict=True))
            try:
                packed = PackedWeight.stack([pack(one if not up else one.gate_up(*up)) for one, *up in experts])
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        parameter = getattr(self.module, part)
        shape = (parameter.mT if self.module.is_transposed else parameter).shape
        if packed.shape != shape:
            raise ValueError(f"{where}: {list(packed.shape)} in the checkpoint is not {list(shape)} of the model")
        return packed


def is_experts(module: Any) -> bool:
    """Whether transformers dispatches this module as experts."""
    return hasattr(module, "is_concatenated") and hasattr(module, "num_experts")


def _activation(name: str, module: Any) -> tuple[str, list[float]]:
    """The activation of FusedMoE, and its arguments."""
    if isinstance(module, GptOssExperts):
        return "swigluoai", [module.limit, module.alpha, 1.0]
    plain = module.has_gate and getattr(module._apply_gate, "__func__", None) is _default_apply_gate
    if not plain or not isinstance(module.act_fn, type(ACT2FN["silu"])):
        raise ValueError(f"{name}: the activation of {type(module).__name__} is neither silu with a gate nor swigluoai")
    return "silu", []
