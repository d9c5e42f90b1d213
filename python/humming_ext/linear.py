"""A linear layer on a packed weight."""

import torch
from torch import Tensor

from ._buffers import PackedBuffers
from .packed_weight import PackedWeight


class QuantLinear(PackedBuffers):
    """y = x W^T + bias with a packed W [n, k], for inference.

    weight: a dense packed weight; its operand says which activations it takes.
    bias: [n] of bfloat16, float16 or float32, or None.
    activation: quantise the input to this dtype first (float8_e4m3fn, float8_e5m2, int8, or uint8 for int4), with a
        scale per token (`activation_group` 0) or per token and 32, 64 or 128 columns; None: use it as it is.

    The state dict holds `packed`, `scale2`, `columns` and `desc`, as `save_weights` writes them, and `bias`. Loading
    `desc` differs raises ValueError.
    """

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None = None,
        *,
        activation: torch.dtype | None = None,
        activation_group: int = 0,
    ) -> None:
        if weight.fields.experts:
            raise ValueError(f"weight: {weight!r} has experts, a linear layer takes one dense weight")
        super().__init__(weight, bias)
        self.in_features, self.out_features = weight.fields.k, weight.fields.n
        self.activation, self.activation_group = activation, activation_group

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] bfloat16 or float16 (also float32 if `activation` is set) -> [..., n] of the dtype of x."""
        rows = x.reshape(-1, self.in_features).contiguous()
        if self.columns is not None:
            rows = rows.index_select(1, self.columns)
        x_scale = None
        if self.activation is not None:
            rows, x_scale = torch.ops.humming.quantize_activation(rows, self.activation, self.activation_group)
        out = torch.ops.humming.gemm(rows, x_scale, *self.arguments, out_dtype=x.dtype)
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What `print` shows inside the brackets."""
        activation = f", activation={self.activation}" if self.activation else ""
        return super().extra_repr() + activation
