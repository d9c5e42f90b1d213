"""A quantised weight as adapters hand it over."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..packed_weight import PackedWeight
from ..spec import QuantSpec


@dataclass(frozen=True, eq=False)
class CheckpointWeight:
    """A weight [n, k], or [experts, n, k], with its checkpoint's own codes and scales. Nothing is requantised.

    name: the module in the checkpoint.
    spec: its quantisation, for operand bf16; `spec.for_activation` has others.
    codes, scale, zero, scale2, k, code_bits, interleaved: as PackedWeight.pack takes them.
    columns: int64 [k] where the checkpoint's columns had to be sorted by group (activation order): the packed weight
        multiplies x[..., columns]. None: it multiplies x.
    """

    name: str
    spec: QuantSpec
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    scale2: Tensor | None = None
    k: int | None = None
    code_bits: int = 8
    interleaved: bool = False
    columns: Tensor | None = None

    def pack(
        self, spec: QuantSpec | None = None, *, device: torch.device | str | None = None, max_rounded: int = 0
    ) -> PackedWeight:
        """The packed weight, whose columns are in the order of `columns` where that is set.

        spec: `self.spec` for another operand.
        device: where to pack and keep the weight.
        max_rounded: as in PackedWeight.pack.

        Raises ValueError or RuntimeError as PackedWeight.pack does, with the name of the weight.
        """
        try:
            return PackedWeight.pack(
                self.codes,
                self.scale,
                self.zero,
                spec=spec or self.spec,
                scale2=self.scale2,
                k=self.k,
                code_bits=self.code_bits,
                interleaved=self.interleaved,
                device=device,
                max_rounded=max_rounded,
            )
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{self.name}: {error}") from error
