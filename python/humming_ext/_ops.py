"""The functional ops: each allocates what its `.out` form writes, so that C++ allocates nothing, and calls it.

The `_*_outputs` functions are the only place that knows the shapes of results; they are the fake kernels too. The
functional forms hand their positional arguments through as they came, because both forms share them in the schema.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._desc import WeightDesc, packed_shape

_PITCH_BYTES = 128  # row pitch of quantised activations, so that every row starts where wide copies can

_ops = torch.ops.humming
# A fragment: another package may own the namespace. The registrations live as long as this object.
_library = torch.library.Library("humming", "FRAGMENT")


def is_gated(activation: str) -> bool:
    """Whether the activation combines a gate half with an up half, and so halves the columns."""
    return activation != "none" and not activation.endswith("_no_mul")


def _check_rank(name: str, tensor: Tensor, rank: int) -> None:
    if tensor.dim() != rank:
        raise ValueError(f"{name}: expected {rank} dimensions, got shape {list(tensor.shape)}")


def _weight_fields(packed: Tensor, desc: list[int]) -> WeightDesc:
    """The fields of `desc`, if a tensor as small as `packed` can hold its codes: nothing is allocated for others."""
    fields = WeightDesc.of(desc)
    if min(fields.n, fields.k) < 1 or fields.n * fields.k * max(fields.experts, 1) > 8 * packed.numel():
        shape = packed_shape(desc)  # raises for sizes that are not legal
        raise ValueError(f"packed: shape {list(packed.shape)} is not the {shape} of desc {desc}")
    return fields


def _ceil_div(value: int, divisor: int) -> int:
    return (value + divisor - 1) // divisor


def _result_dtype(x: Tensor, out_dtype: torch.dtype | None) -> torch.dtype:
    if out_dtype is not None:
        return out_dtype
    return x.dtype if x.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16


def _workspace(out: Tensor, num_bytes: int = 0) -> Tensor:
    return out.new_empty(num_bytes, dtype=torch.uint8)


def _row_copy_bytes(x: Tensor, desc: list[int]) -> int:
    """Workspace of gemm on a GPU: for rows of x that do not begin at multiples of 16 bytes, and for those of a narrower
    type than the operand's."""
    if not x.is_cuda:
        return 0
    widened = _ops.widened_bytes(desc, x.dtype, x.shape[0])
    size = x.element_size()
    aligned = x.shape[0] <= 1 or x.stride(0) * size % 16 == 0
    if widened or (aligned and x.data_ptr() % 16 == 0):
        return widened
    return x.shape[0] * _ceil_div(x.shape[1] * size, _PITCH_BYTES) * _PITCH_BYTES


def _gemm_outputs(
    x: Tensor,
    x_scale: Tensor | None,
    packed: Tensor,
    scale2: Tensor | None,
    bias: Tensor | None,
    desc: list[int],
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    _check_rank("x", x, 2)
    return x.new_empty((x.shape[0], _weight_fields(packed, desc).n), dtype=_result_dtype(x, out_dtype))


def _gemm(*args: Any, out_dtype: torch.dtype | None = None) -> Tensor:
    out = _gemm_outputs(*args, out_dtype=out_dtype)
    _ops.gemm.out(*args, out=out, workspace=_workspace(out, _row_copy_bytes(args[0], args[5])))
    return out


def _moe_gemm_outputs(
    x: Tensor,
    x_scale: Tensor | None,
    packed: Tensor,
    scale2: Tensor | None,
    bias: Tensor | None,
    desc: list[int],
    layout: str,
    sorted_token_ids: Tensor | None,
    expert_ids: Tensor | None,
    num_tokens_post_padded: Tensor | None,
    expert_offsets: Tensor | None,
    expert_counts: Tensor | None,
    topk_weights: Tensor | None,
    top_k: int,
    activation: str = "none",
    activation_args: list[float] | None = None,
    *,
    expected_tokens: int | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    if layout not in ("indexed", "contiguous", "masked"):
        raise ValueError(f'layout = "{layout}" is not "indexed", "contiguous" or "masked"')
    _check_rank("x", x, 3 if layout == "masked" else 2)
    rows = [x.shape[0] * top_k] if layout == "indexed" else list(x.shape[:-1])
    n = _weight_fields(packed, desc).n
    columns = n // 2 if is_gated(activation) else n
    return x.new_empty([*rows, columns], dtype=_result_dtype(x, out_dtype))


def _moe_gemm_workspace_bytes(x: Tensor, desc: list[int], layout: str, top_k: int) -> int:
    """Workspace of moe_gemm on a GPU, which sorts the blocks of the layout "indexed" there."""
    if not x.is_cuda:
        return 0
    copy = _row_copy_bytes(x.flatten(0, -2) if x.is_contiguous() else x.view(-1, x.shape[-1]), desc)
    if layout != "indexed":
        return copy
    return copy + _ops.moe_gemm_workspace(WeightDesc.of(desc).experts, x.shape[0] * top_k)


def _moe_gemm(*args: Any, expected_tokens: int | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    out = _moe_gemm_outputs(*args, out_dtype=out_dtype)
    x, desc, layout, top_k = args[0], args[5], args[6], args[13]
    workspace = _workspace(out, _moe_gemm_workspace_bytes(x, desc, layout, top_k))
    _ops.moe_gemm.out(*args, expected_tokens=expected_tokens, out=out, workspace=workspace)
    return out


def _fused_moe_outputs(
    x: Tensor,
    x_scale: Tensor | None,
    w13: Tensor,
    w13_scale2: Tensor | None,
    w13_bias: Tensor | None,
    w13_desc: list[int],
    w2: Tensor,
    w2_scale2: Tensor | None,
    w2_bias: Tensor | None,
    w2_desc: list[int],
    layout: str,
    *args: Any,
    out_dtype: torch.dtype | None = None,
    **options: Any,
) -> Tensor:
    _check_rank("x", x, 3 if layout == "masked" else 2)
    return x.new_empty([*x.shape[:-1], _weight_fields(w2, w2_desc).n], dtype=_result_dtype(x, out_dtype))


def fused_moe_workspace_bytes(
    rows: int,
    top_k: int,
    x_dtype: torch.dtype,
    out_dtype: torch.dtype,
    w13_desc: list[int],
    w2_desc: list[int],
    layout: str,
    group: int,
    device: torch.device,
) -> int:
    """Workspace of fused_moe for `rows` contiguous rows of x, in all. Fewer rows need no more.

    top_k: pairs of a row in the layout "indexed".
    """
    size = _ops.fused_moe_workspace(rows, top_k, x_dtype, out_dtype, w13_desc, w2_desc, layout, group)
    if device.type != "cuda":
        return size
    if widened := _ops.widened_bytes(w13_desc, x_dtype, rows):
        return size + widened
    row_bytes = WeightDesc.of(w13_desc).k * x_dtype.itemsize
    return size + (rows * _ceil_div(row_bytes, _PITCH_BYTES) * _PITCH_BYTES if row_bytes % 16 else 0)


def _fused_moe(x: Tensor, *args: Any, group: int = 0, out_dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    out = _fused_moe_outputs(x, *args, out_dtype=out_dtype)
    w13_desc, w2_desc, layout, topk_ids = args[4], args[8], args[9], args[11]
    rows, top_k = out.numel() // max(out.shape[-1], 1), 1 if topk_ids is None else topk_ids.shape[-1]
    size = _ops.fused_moe_workspace(rows, top_k, x.dtype, out.dtype, w13_desc, w2_desc, layout, group)
    workspace = _workspace(out, size + _row_copy_bytes(x.flatten(0, -2), w13_desc))
    _ops.fused_moe.out(x, *args, group=group, **options, out=out, workspace=workspace)
    return out


def _quantize_activation_outputs(
    x: Tensor,
    dtype: torch.dtype,
    group: int,
    *,
    activation: str = "none",
    activation_args: list[float] | None = None,
    static_scale: Tensor | None = None,
    positions: Tensor | None = None,
    scale_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    _check_rank("x", x, 2)
    if group < 0:
        raise ValueError(f"group = {group} is not 0 (per token), 32, 64 or 128")
    rows, width = x.shape
    if positions is not None:
        rows = positions.numel()
    k = width // 2 if is_gated(activation) else width
    columns = k // 2 if dtype == torch.uint8 else k  # uint8: two int4 per byte
    pitch = _ceil_div(columns, _PITCH_BYTES) * _PITCH_BYTES
    out = x.new_empty((rows, pitch), dtype=dtype)[:, :columns]
    scale_shape = (1, 1) if static_scale is not None else (rows, _ceil_div(k, group) if group else 1)
    return out, x.new_empty(scale_shape, dtype=scale_dtype or torch.float32)


def _quantize_activation(
    x: Tensor, dtype: torch.dtype, group: int, *, scale_dtype: torch.dtype | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    out, scale = _quantize_activation_outputs(x, dtype, group, scale_dtype=scale_dtype, **options)
    _ops.quantize_activation.out(x, group, **options, out=out, scale=scale)
    return out, scale


def _moe_align_outputs(topk_ids: Tensor, num_experts: int, block: int, expert_map: Tensor | None) -> tuple[Tensor, ...]:
    if block < 1:
        raise ValueError(f"block = {block} is not positive")
    if num_experts < 1:
        raise ValueError(f"num_experts = {num_experts} is not positive")
    pairs = topk_ids.numel()
    # At most one block per pair, and at most one block per expert that is not full.
    num_blocks = torch.sym_max(1, torch.sym_min(pairs, pairs // block + num_experts))
    shapes = (pairs,), (pairs,), (num_blocks, 4), (1,), (num_experts + 1,)
    return tuple(topk_ids.new_empty(shape, dtype=torch.int32) for shape in shapes)


ALIGNED = ("sorted_pairs", "positions", "blocks", "num_blocks", "expert_offsets")  # what moe_align returns


def _moe_align(*args: Any) -> tuple[Tensor, ...]:
    outputs = _moe_align_outputs(*args)
    _ops.moe_align.out(*args, **dict(zip(ALIGNED, outputs, strict=True)))
    return outputs


def _moe_reduce_outputs(
    y: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor | None,
    num_valid_tokens: Tensor | None,
    scale: float = 1.0,
    add: Tensor | None = None,
) -> Tensor:
    _check_rank("y", y, 3)
    return y.new_empty((y.shape[0], y.shape[2]))


def _moe_reduce(*args: Any) -> Tensor:
    out = _moe_reduce_outputs(*args)
    _ops.moe_reduce.out(*args, out=out)
    return out


def _prepack_outputs(
    codes: Tensor,
    code_bits: int,
    scale: Tensor | None,
    zero: Tensor | None,
    desc: list[int],
    row_order: str = "plain",
) -> tuple[Tensor, Tensor, Tensor]:
    packed = codes.new_empty(packed_shape(desc), dtype=torch.uint8)
    row_scale = codes.new_empty(_ops.row_scale_shape(desc), dtype=torch.float32)
    return packed, row_scale, codes.new_empty(2, dtype=torch.int64)


def _prepack(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    packed, row_scale, stats = _prepack_outputs(*args)
    _ops.prepack.out(*args, packed=packed, row_scale=row_scale, stats=stats)
    return packed, row_scale, stats


def _decode_packed_outputs(packed: Tensor, scale2: Tensor | None, desc: list[int], *, codes: bool = False) -> Tensor:
    fields = _weight_fields(packed, desc)
    shape = [fields.experts, fields.n, fields.k] if fields.experts else [fields.n, fields.k]
    return packed.new_empty(shape, dtype=torch.uint8 if codes else torch.float32)


def _decode_packed(*args: Any, codes: bool = False) -> Tensor:
    out = _decode_packed_outputs(*args, codes=codes)
    _ops.decode_packed.out(*args, codes=codes, out=out)
    return out


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Fake kernel of an `.out` form, and of `gemm.instance`: the caller allocated all that it writes."""


def _register(name: str, functional: Callable[..., Any], outputs: Callable[..., Any]) -> None:
    for key in ("CPU", "CUDA"):
        _library.impl(name, functional, key)
    torch.library.register_fake(f"humming::{name}", outputs, lib=_library)
    torch.library.register_fake(f"humming::{name}.out", _nothing, lib=_library)


_register("gemm", _gemm, _gemm_outputs)
for _op in ("gemm", "moe_gemm"):
    torch.library.register_fake(f"humming::{_op}.instance", _nothing, lib=_library)
_register("moe_gemm", _moe_gemm, _moe_gemm_outputs)
_register("fused_moe", _fused_moe, _fused_moe_outputs)
_register("quantize_activation", _quantize_activation, _quantize_activation_outputs)
_register("moe_align", _moe_align, _moe_align_outputs)
_register("moe_reduce", _moe_reduce, _moe_reduce_outputs)
_register("prepack", _prepack, _prepack_outputs)
_register("decode_packed", _decode_packed, _decode_packed_outputs)
