"""From the checkpoint tensors of one weight to its packed tensor and its secondary scale."""

import torch
from torch import Tensor

from ._scales import expand
from .formats import WeightFormat
from .spec import QuantSpec

_E8M0 = torch.float8_e8m0fnu
CODE_DTYPES = {torch.float8_e4m3fn: WeightFormat.e4m3, torch.float8_e5m2: WeightFormat.e5m2}


def pack_one(
    codes: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    spec: QuantSpec,
    k: int,
    code_bits: int,
    interleaved: bool,
    *,
    out: Tensor,
) -> tuple[Tensor | None, Tensor]:
    """Packs one weight [n, k] into `out`, with the arguments of PackedWeight.pack, where its tensors are.

    Returns the secondary scale (float32 [1] or [n] in logical row order, or None), and int64 [2]: the number of scale
    groups whose codes were rounded, and that of codes, scales and zero points that are not legal.
    """
    if codes.dim() != 2:
        raise ValueError(f"codes: expected [n, k] for each weight, got {list(codes.shape)}")
    n = codes.shape[0]
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
    desc = spec.desc(n, k)
    row_scale = codes.new_empty(torch.ops.humming.row_scale_shape(desc), dtype=torch.float32)
    counts = codes.new_empty(2, dtype=torch.int64)
    torch.ops.humming.prepack.out(
        codes.contiguous(), code_bits, scale, zero, desc, row_order, packed=out, row_scale=row_scale, stats=counts
    )
    return row_scale if row_scale.numel() else secondary, counts


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
    """A tensor scale as [1], other scales without groups as [n] in logical row order."""
    if spec.block_rows == 0 and scale.numel() == 1:
        return scale.float().reshape(1)
    rows = expand(scale, "scale", spec, n, k, interleaved).float().reshape(n)
    return torch.cat([rows[0::2], rows[1::2]]) if spec.gate_up and interleaved else rows
