"""A linear layer on a packed weight."""

from typing import Any

import torch
from torch import Tensor, nn

from .packed_weight import PackedWeight


class QuantLinear(nn.Module):
    """y = x W^T + bias with a packed W [n, k], for inference.

    weight: a dense packed weight; its operand says which activations it takes.
    bias: [n] of bfloat16, float16 or float32, or None.
    activation: quantise the input to this dtype first (float8_e4m3fn, float8_e5m2, int8, or uint8 for int4), with a
        scale per token (`activation_group` 0) or per token and 32, 64 or 128 columns; None: use it as it is.

    The state dict holds `packed`, `scale2` and `desc`, as `save_weights` writes them, and `bias`. Loading one whose
    `desc` differs raises ValueError.
    """

    packed: Tensor
    scale2: Tensor | None
    bias: Tensor | None
    desc: Tensor

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None = None,
        *,
        activation: torch.dtype | None = None,
        activation_group: int = 0,
    ) -> None:
        super().__init__()
        if weight.fields.experts:
            raise ValueError(f"weight: {weight!r} has experts, a linear layer takes one dense weight")
        if bias is not None and list(bias.shape) != [weight.fields.n]:
            raise ValueError(f"bias: shape {list(bias.shape)} is not [{weight.fields.n}]")
        self.in_features, self.out_features = weight.fields.k, weight.fields.n
        self.activation, self.activation_group = activation, activation_group
        self._desc = weight.desc
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scale2", weight.scale2)
        self.register_buffer("desc", torch.tensor(weight.desc))
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> PackedWeight:
        """The packed weight; it shares the layer's memory."""
        return PackedWeight(self.packed, self.scale2, self._desc)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] bfloat16 or float16 (also float32 if `activation` is set) -> [..., n] of the dtype of x."""
        rows = x.reshape(-1, self.in_features).contiguous()
        x_scale = None
        if self.activation is not None:
            rows, x_scale = torch.ops.humming.quantize_activation(rows, self.activation, self.activation_group)
        out = torch.ops.humming.gemm(rows, x_scale, self.packed, self.scale2, self.bias, self._desc, out_dtype=x.dtype)
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What `print` shows inside the brackets."""
        activation = f", activation={self.activation}" if self.activation else ""
        return f"{self.weight!r}, bias={self.bias is not None}{activation}"

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantLinear":
        # model.to(dtype) casts every float buffer, but the secondary scale is float32 in every model.
        scale2 = self.scale2
        super()._apply(fn, recurse)
        if scale2 is not None and self.scale2 is not None and self.scale2.dtype != scale2.dtype:
            self.scale2 = scale2.to(self.scale2.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        desc = state_dict.get(f"{prefix}desc")
        if desc is not None and desc.tolist() != self._desc:
            raise ValueError(f"{prefix}desc: {desc.tolist()} in the state dict is not {self._desc} of this layer")
        super()._load_from_state_dict(state_dict, prefix, *args)
