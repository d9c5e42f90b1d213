"""From the checkpoint tensors of one weight to its packed tensor and its secondary scale."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._scales import expand
from .formats import WeightFormat
from .spec import QuantSpec

_E8M0 = torch.float8_e8m0fnu
CODE_DTYPES = {torch.float8_e4m3fn: WeightFormat.e4m3, torch.float8_e5m2: WeightFormat.e5m2}


class _HostMemory:
    """Pinned memory, by CUDA's array interface: the GPU reads it at the address that it has on the host."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        address = (values.data_ptr(), False)
        self.__cuda_array_interface__ = {"shape": values.shape, "typestr": "|u1", "data": address, "version": 2}


def _as_the_gpu_reads(codes: Tensor, target: torch.device) -> Tensor | None:
    """Codes in pinned memory as a tensor of the GPU that they were pinned for, if that is `target`; no copy."""
    if target.type != "cuda" or codes.device.type != "cpu" or not codes.is_contiguous() or not codes.is_pinned():
        return None
    mapped = torch.as_tensor(_HostMemory(codes.view(torch.uint8)))
    index = torch.cuda.current_device() if target.index is None else target.index
    return mapped.view(codes.dtype) if mapped.device.index == index else None


class Source:
    """What a checkpoint has of each weight: codes [weights, n, k], scales and zero points [weights, ...].

    `source[part]` brings weights to where they are packed, `at_a_time` of them, so that what lies beside source and
    result is one weight of the source at most. That is one weight, unless its codes are read in place by the packing
    kernel, nearly as fast as a copy would be: codes of 4 and 8 bits that are one tensor in pinned memory.
    """

    def __init__(
        self,
        codes: Tensor | Sequence[Tensor],
        scale: Tensor | Sequence[Tensor] | None,
        zero: Tensor | Sequence[Tensor] | None,
        *,
        code_bits: int,
        target: torch.device,
    ) -> None:
        self._target, self.at_a_time = target, 1
        in_place = _as_the_gpu_reads(codes, target) if isinstance(codes, Tensor) and code_bits in (4, 8) else None
        copied = [values.nbytes for values in (scale, zero) if isinstance(values, Tensor)]
        if in_place is not None and len(copied) == sum(values is not None for values in (scale, zero)):
            self.at_a_time = max(1, in_place.nbytes // max(1, 2 * sum(copied)))
        self._values = codes if in_place is None else in_place, scale, zero

    def __getitem__(self, part: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Codes, scale and zero of weights."""
        codes, scale, zero = self._values
        return self._copied(codes, part), self._maybe_copied(scale, part), self._maybe_copied(zero, part)

    def _maybe_copied(self, values: Tensor | Sequence[Tensor] | None, part: slice) -> Tensor | None:
        return None if values is None else self._copied(values, part)

    def _copied(self, values: Tensor | Sequence[Tensor], part: slice) -> Tensor:
        own = values[part] if isinstance(values, Tensor) else values[part.start][None]
        # Copies to a GPU are in order with what reads them; others are waited for.
        return own.to(self._target, non_blocking=self._target.type == "cuda" and own.device.type == "cpu")


def pack_some(
    codes: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    spec: QuantSpec,
    k: int,
    code_bits: int,
    interleaved: bool,
    *,
    packed: Tensor,
    row_scale: Tensor,
    stats: Tensor,
) -> Tensor | None:
    """Packs weights, codes [weights, n, k], with the arguments of PackedWeight.pack, where its tensors are.

    Writes what humming::prepack returns: `packed`, `row_scale` and `stats` (int64 [2]: the number of scale groups whose
    codes were rounded, and that of codes, scales and zero points that are not legal).
    Returns the secondary scale that channel and tensor scales become (float32 [weights, 1] or [weights, n] in logical
    row order) or None.
    """
    if codes.dim() != 3:
        raise ValueError(f"codes: expected [n, k] for each weight, got {list(codes.shape[1:])}")
    weights, n = codes.shape[:2]
    if codes.dtype in CODE_DTYPES:
        if CODE_DTYPES[codes.dtype] != spec.format:
            raise ValueError(f"codes: {codes.dtype} are no codes of {spec.format.name}")
        codes = codes.view(torch.uint8)
    secondary = None
    if scale is not None:
        if spec.scale_dtype == _E8M0 and scale.dtype == torch.uint8:
            scale = scale.view(_E8M0)
        if scale.dtype != spec.scale_dtype:
            raise ValueError(f"scale: {scale.dtype} is not the scale_dtype of {spec}")
        if spec.packed_group:
            scale = expand(scale, "scale", spec, n, k, interleaved)
        else:
            secondary, scale = _secondary_scale(scale, spec, n, k, interleaved), None
    if zero is not None:
        zero = expand(zero, "zero", spec, n, k, interleaved)
    row_order = "plain" if not spec.gate_up else "gate_up_interleaved" if interleaved else "gate_up"
    torch.ops.humming.prepack.out(
        *(codes.contiguous(), code_bits, scale, zero, spec.desc(n, k, weights), row_order),
        **{"packed": packed, "row_scale": row_scale, "stats": stats},
    )
    return secondary


def combine_scale2(own: Tensor | None, given: Tensor | None, n: int, experts: int) -> Tensor | None:
    """The product of the weights' own secondary scales [experts or 1, 1 or n] and the caller's `scale2`.

    Returns [1] or [n] for a dense weight (experts = 0), [experts] or [experts, n] for experts, or None without factors.
    Raises ValueError if `given` has neither of these shapes and is no scalar.
    """
    factors = [own] if own is not None else []
    if given is not None:
        legal = [[experts], [experts, n]] if experts else [[1], [n]]
        if given.dtype != torch.float32 or (given.numel() != 1 and list(given.shape) not in legal):
            raise ValueError(
                f"scale2: {given.dtype} {list(given.shape)} is not float32 with one element, {legal[0]} or {legal[1]}"
            )
        columns = given.numel() // max(experts, 1) if given.numel() != 1 else 1
        factors.append(given.reshape(-1, columns))
    if not factors:
        return None
    product = factors[0] * factors[1] if len(factors) == 2 else factors[0]
    product = product.expand(max(experts, 1), -1)
    return product.reshape(-1).contiguous() if not experts or product.shape[1] == 1 else product.contiguous()


def _secondary_scale(scale: Tensor, spec: QuantSpec, n: int, k: int, interleaved: bool) -> Tensor:
    """Tensor scales as [weights, 1], other scales without groups as [weights, n] in logical row order."""
    if spec.block_rows == 0 and scale.numel() == scale.shape[0]:
        return scale.float().reshape(-1, 1)
    rows = expand(scale, "scale", spec, n, k, interleaved).float()[..., 0]
    return torch.cat([rows[:, 0::2], rows[:, 1::2]], dim=1) if spec.gate_up and interleaved else rows
