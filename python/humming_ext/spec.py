"""How a checkpoint quantised a weight, and which operand type the packed weight is made for."""

from dataclasses import dataclass, replace
from math import gcd

import torch

from ._desc import build_info, packed_shape
from .formats import Operand, ScaleType, WeightFormat, ZeroKind

_K_TILE = 128  # packed groups divide it


@dataclass(frozen=True)
class QuantSpec:
    """The quantisation of one weight [n, k] (or of every expert of [experts, n, k]).

    format: the code format.
    group: columns that share a scale; 0: the whole row.
    block_rows: rows that share a scale; 0: all rows. (0, 0) is a tensor scale, (group 0, block_rows 1) a channel scale.
    scale_dtype: dtype of the scales: float32, bfloat16, float16, float8_e8m0fnu or float8_e4m3fn; None: no scales.
    zero: what unsigned codes carry beside the scale: value = scale * (code - zero) for `integer`, one uint8 per scale;
        value = scale * code + offset for `floating`, one offset of `scale_dtype` per scale.
    operand: the tensor-core operand type to pack for; `for_activation` chooses it.
    gate_up: rows are a gate projection and an up projection of n / 2 rows each.
    """

    format: WeightFormat
    group: int = 0
    block_rows: int = 1
    scale_dtype: torch.dtype | None = None
    zero: ZeroKind = ZeroKind.none
    operand: Operand = Operand.bf16
    gate_up: bool = False

    def __post_init__(self) -> None:
        if self.group < 0 or self.block_rows < 0:
            raise ValueError(f"group = {self.group} and block_rows = {self.block_rows} must not be negative")
        if self.group and self.scale_dtype is None:
            raise ValueError(f"group = {self.group} needs a scale_dtype")
        if self.zero == ZeroKind.floating and self.scale_dtype is None:
            raise ValueError("zero = floating needs a scale_dtype: the offset has the type of the scale")

    @property
    def packed_group(self) -> int:
        """Columns per scale in the packed weight: 16, 32, 64, 128, or 0 where scales go to the secondary scale.

        Raises ValueError if `group` has no divisor of at least 16 in common with 128.
        """
        if self.group == 0:
            # A secondary scale has no offset beside it, so a channel's offset is repeated per group instead.
            return _K_TILE if self.zero == ZeroKind.floating else 0
        packed = gcd(self.group, _K_TILE)
        if packed < 16:
            raise ValueError(f"group = {self.group} is no multiple of 16")
        return packed

    def packed(self) -> "QuantSpec":
        """The same weight after packing: scales per row and `packed_group` columns, or none but secondary scales."""
        group = self.packed_group
        return replace(self, group=group, block_rows=1, scale_dtype=self.scale_dtype if group else None)

    def desc(self, n: int, k: int, experts: int = 0) -> list[int]:
        """The ops' descriptor of a packed weight [n, k], or [experts, n, k]; experts = 0 means dense.

        Raises RuntimeError, naming the field and what to choose instead, if the library cannot pack this combination.
        """
        packed = self.packed()
        fields = (self.format, self.operand, n, k, experts, ScaleType.of(packed.scale_dtype), packed.group)
        desc = [build_info()["layout_version"], *map(int, fields), int(self.zero), int(self.gate_up)]
        packed_shape(desc)
        return desc

    def for_activation(
        self, dtype: torch.dtype, group: int = 0, *, device: torch.device | None = None, widen: bool = False
    ) -> "QuantSpec":
        """This spec with the operand type that multiplies activations of `dtype` without loss.

        dtype: bfloat16, float16, float8_e4m3fn, float8_e5m2, int8, or uint8 (two int4 per byte).
        group: columns per activation scale; 0: one per token or tensor.
        device: where it will run; s4 operands are chosen for CUDA devices older than Hopper only.
        widen: accept the bf16 operand where 8- or 4-bit activations have none of their own. The products are the same
            numbers, as tokens are widened to bf16 exactly, but they run at bf16 speed.

        Raises ValueError with the reason if only bf16 can take the pair and `widen` is not set.
        """
        if dtype not in _NATIVE_OPERANDS:
            legal = ", ".join(str(key) for key in _NATIVE_OPERANDS)
            raise ValueError(f"activation dtype = {dtype} is none of {legal}; cast or quantise the activations")
        candidates = list(_NATIVE_OPERANDS[dtype])
        if Operand.s4 in candidates and not _has_s4(device):
            candidates.remove(Operand.s4)
        if dtype.itemsize == 1 and group not in (0, _K_TILE):
            candidates, reason = [], f"activation groups of {group} columns end inside an accumulation of {_K_TILE}"
        else:
            reason = f"no tensor core takes {dtype}"
        for operand in candidates:
            spec = replace(self, operand=operand)
            try:
                spec.desc(128, 128)
            except RuntimeError as error:
                reason = str(error)
            else:
                return spec
        if widen:
            return replace(self, operand=Operand.bf16)
        raise ValueError(
            f"{self.format.name} weights with {dtype} activations have no operand of their own ({reason}); "
            "pass widen=True to run them exactly, in bf16"
        )


_NATIVE_OPERANDS: dict[torch.dtype, tuple[Operand, ...]] = {
    torch.bfloat16: (Operand.bf16,),
    torch.float16: (Operand.fp16,),
    torch.float8_e4m3fn: (Operand.e4m3,),
    torch.float8_e5m2: (),
    torch.int8: (Operand.s8,),
    torch.uint8: (Operand.s4, Operand.s8),
}


def _has_s4(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0)
