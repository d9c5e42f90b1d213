"""A quantised weight as adapters hand it over."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._reference import dequantize
from ..packed_weight import PackedWeight
from ..spec import QuantSpec
from ._bits import unpack


@dataclass(frozen=True, eq=False)
class CheckpointWeight:
    """A weight [n, k], or [experts, n, k], with its checkpoint's own codes and scales. Nothing is requantised.

    name: the module in the checkpoint.
    spec: its quantisation, for operand bf16; `spec.for_activation` has others.
    codes, scale, zero, scale2, k, code_bits, interleaved, columns: as PackedWeight.pack takes them. columns are set
        where those of the checkpoint had to be sorted by group (activation order).
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
        """The packed weight.

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
                columns=self.columns,
                device=device,
                max_rounded=max_rounded,
            )
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{self.name}: {error}") from error

    @property
    def shape(self) -> torch.Size:
        """Logical shape, [n, k] or [experts, n, k]."""
        return torch.Size([*self.codes.shape[:-1], self.codes.shape[-1] if self.k is None else self.k])

    def gate_up(self, up: "CheckpointWeight") -> "CheckpointWeight":
        """This gate projection [n, k] and the up projection `up` as one weight [2 n, k] with spec.gate_up.

        Each part keeps its scales; those of a tensor become scales of its rows. Raises ValueError, naming both, if they
        are quantised in different ways.
        """
        parts, n = (self, up), self.shape[0]
        order, other_order = (None if part.columns is None else part.columns.tolist() for part in parts)
        if (self.spec, self.shape, self.code_bits) != (up.spec, up.shape, up.code_bits) or len(self.shape) != 2:
            raise ValueError(f"{self.name}, {up.name}: {self.spec} {self.shape} and {up.spec} {up.shape} are not alike")
        if order != other_order:
            raise ValueError(f"{self.name}, {up.name}: their columns are in different orders; keep them apart")
        height = self.spec.block_rows or n

        def rows(values: Tensor) -> Tensor:
            """[rows, groups]; one row of values for all becomes n."""
            values = values.reshape(-(-n // height), -1)
            return values if self.spec.block_rows else values.expand(n, -1)

        zeros = [part.zero for part in parts if part.zero is not None]
        factors = [torch.ones(1) if part.scale2 is None else part.scale2.reshape(-1) for part in parts]
        return replace(
            self,
            name=f"{self.name}, {up.name}",
            spec=replace(self.spec, gate_up=True, block_rows=self.spec.block_rows or 1),
            codes=torch.cat([part.codes for part in parts]),
            scale=torch.cat([rows(part.scale) for part in parts]),
            zero=torch.cat([rows(zero) for zero in zeros]) if zeros else None,
            scale2=None if self.scale2 is None and up.scale2 is None else torch.cat([f.expand(n) for f in factors]),
        )

    def dense(self) -> Iterator["CheckpointWeight"]:
        """This weight if it is [n, k], else its experts, one by one, named NAME[0], NAME[1], ..."""
        if len(self.shape) == 2:
            yield self
            return
        for expert in range(len(self.codes)):
            yield replace(
                self,
                name=f"{self.name}[{expert}]",
                codes=self.codes[expert],
                scale=self.scale[expert],
                zero=None if self.zero is None else self.zero[expert],
                scale2=self.scale2 if self.scale2 is None or self.scale2.numel() == 1 else self.scale2[expert],
            )

    def dequantize(self) -> Tensor:
        """What a weight [n, k] stands for, float64, rows in logical order: computed without the library's kernels."""
        codes, k = self.codes, self.shape[1]
        if self.code_bits != 8:
            words = pad(codes, (0, -codes.shape[1] % 4)).view(torch.int32)
            codes = unpack(words, self.code_bits, k)
        weight = dequantize(codes, self.scale, self.zero, self.spec, interleaved=self.interleaved)
        if self.scale2 is not None:
            weight = weight * self.scale2.double().reshape(-1, 1)
        return weight if self.columns is None else weight[:, self.columns.argsort()]
