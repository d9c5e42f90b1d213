"""A packed weight inside a module."""

from typing import Any

import torch
from torch import Tensor, nn

from .packed_weight import PackedWeight


class PackedBuffers(nn.Module):
    """The tensors of a packed weight, and of a bias [n] or [experts, n], as buffers.

    The state dict holds `packed`, `scale2`, `columns` and `desc`, as `save_weights` writes them, and `bias`. Loading
    `desc` differs raises ValueError.
    """

    packed: Tensor
    scale2: Tensor | None
    columns: Tensor | None
    bias: Tensor | None
    desc: Tensor

    def __init__(self, weight: PackedWeight, bias: Tensor | None) -> None:
        super().__init__()
        shape = list(weight.shape[:-1])
        if bias is not None and list(bias.shape) != shape:
            raise ValueError(f"bias: shape {list(bias.shape)} is not {shape}")
        self._desc = weight.desc
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scale2", weight.scale2)
        self.register_buffer("columns", weight.columns)
        self.register_buffer("desc", torch.tensor(weight.desc))
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> PackedWeight:
        """The packed weight; it shares the module's memory."""
        return PackedWeight(self.packed, self.scale2, self._desc, self.columns)

    @property
    def arguments(self) -> tuple[Tensor, Tensor | None, Tensor | None, list[int]]:
        """What the ops take: packed, scale2, bias, desc."""
        return self.packed, self.scale2, self.bias, self._desc

    def extra_repr(self) -> str:
        """What `print` shows inside the brackets."""
        return f"{self.weight!r}, bias={self.bias is not None}"

    def _apply(self, fn: Any, recurse: bool = True) -> "PackedBuffers":
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
