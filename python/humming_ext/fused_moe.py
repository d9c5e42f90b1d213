"""A mixture-of-experts layer on packed weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._buffers import PackedBuffers
from ._ops import fused_moe_workspace_bytes
from .packed_weight import PackedWeight


class FusedMoE(nn.Module):
    """Experts' gate_up product, activation and down product, and the weighted sum over a token's experts, in one call.

    w13: packed weight [experts, n, hidden]; n is twice the inner size (gate and up) for gated activations.
    w2: packed weight [experts, outer, inner] of the same experts. Where a weight's operand is e4m3, s8 or s4, the layer
        quantises the rows that it multiplies, unless they come quantised.
    w13_bias, w2_bias: [experts, n] and [experts, outer] of bfloat16, float16 or float32, or None.
    activation, activation_args: as moe_gemm takes them: "silu" (a limit as the argument clamps gate and up),
        "swigluoai", "gelu", "gelu_tanh", "relu2", their forms without gate ("silu_no_mul", ...) and "none".
    activation_group: columns per scale of what the layer quantises: 0 (one scale per row) or 128.
    routed_scaling_factor: a factor of the sum over a token's experts.
    apply_router_weight_on_input: weights multiply rows of x instead of results. Rows must have one weight each.
    expert_map: int32 [experts of all devices], the index here of each, or -1; None: topk_ids are indices here.

    Every call runs without waiting for the device, may be captured in a CUDA graph and traced by torch.compile. With
    `out` and `workspace` it allocates nothing; a workspace serves one stream at a time. Rows, ids and counts may change
    between replays of a graph; a token that is not there has ids of -1.

    Raises ValueError for a bias of another shape and RuntimeError for weights that do not fit each other.
    """

    expert_map: Tensor | None

    def __init__(
        self,
        w13: PackedWeight,
        w2: PackedWeight,
        *,
        w13_bias: Tensor | None = None,
        w2_bias: Tensor | None = None,
        activation: str = "silu",
        activation_args: Sequence[float] = (),
        activation_group: int = 0,
        routed_scaling_factor: float = 1.0,
        apply_router_weight_on_input: bool = False,
        expert_map: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.w13, self.w2 = PackedBuffers(w13, w13_bias), PackedBuffers(w2, w2_bias)
        self.register_buffer("expert_map", expert_map, persistent=False)
        self.activation, self.activation_args = activation, list(activation_args)
        self.activation_group = activation_group
        self.routed_scaling_factor = routed_scaling_factor
        self.apply_router_weight_on_input = apply_router_weight_on_input
        self.workspace_shape(0)  # raises for weights that do not fit each other

    def forward(
        self,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        *,
        x_scale: Tensor | None = None,
        shared_output: Tensor | None = None,
        expected_tokens: int | None = None,
        out_dtype: torch.dtype | None = None,
        out: Tensor | None = None,
        workspace: Tensor | None = None,
    ) -> Tensor:
        """The layer of routed tokens: [tokens, outer], of `out_dtype` or, without, the 16-bit dtype of x, or bfloat16.

        x: [tokens, hidden] of bfloat16 or float16; or quantised, of the dtype of w13's operand, with x_scale.
        topk_weights: float32 [tokens, top_k].
        topk_ids: int32 or int64 [tokens, top_k]; pairs with an id of -1, and those of experts elsewhere, give nothing.
        x_scale: as moe_gemm takes it: one element, [tokens], [tokens, 1] or [tokens, groups]; float32.
        shared_output: [tokens, outer] of the result's dtype, added to the scaled sum in float32.
        expected_tokens: pairs that experts here get together, as far as the host knows; it only picks kernels.
        out, workspace: where to write the result, which is `out` then, and uint8 memory of `workspace_shape`.

        Raises RuntimeError naming the argument that is not as said here; on the CPU also for ids out of range.
        """
        options = {"scale": self.routed_scaling_factor, "add": shared_output}
        rows = ("indexed", topk_weights, topk_ids, self.expert_map, None, None)
        return self._run(x, x_scale, rows, options, expected_tokens, out_dtype, out, workspace)

    def contiguous(
        self,
        x: Tensor,
        expert_offsets: Tensor,
        topk_weights: Tensor | None = None,
        *,
        x_scale: Tensor | None = None,
        expected_tokens: int | None = None,
        out_dtype: torch.dtype | None = None,
        out: Tensor | None = None,
        workspace: Tensor | None = None,
    ) -> Tensor:
        """The layer without the sum, of rows sorted by expert: [rows, outer]. Rows of no expert are not written.

        x: [rows, hidden]; expert e has rows expert_offsets[e] .. expert_offsets[e + 1] - 1.
        expert_offsets: int32 or int64 [experts + 1].
        topk_weights: float32 [rows], factors of the results, or None.
        The rest is as in `forward`; routed_scaling_factor is left to who sums.
        """
        rows = ("contiguous", topk_weights, None, None, expert_offsets, None)
        return self._run(x, x_scale, rows, {}, expected_tokens, out_dtype, out, workspace)

    def masked(
        self,
        x: Tensor,
        expert_counts: Tensor,
        topk_weights: Tensor | None = None,
        *,
        x_scale: Tensor | None = None,
        expected_tokens: int | None = None,
        out_dtype: torch.dtype | None = None,
        out: Tensor | None = None,
        workspace: Tensor | None = None,
    ) -> Tensor:
        """The layer without the sum, of a fixed capacity: [experts, capacity, outer]. Other rows are not written.

        x: [experts, capacity, hidden]; expert e has the first expert_counts[e] rows of x[e].
        expert_counts: int32 [experts].
        topk_weights: float32 [experts, capacity], factors of the results, or None.
        The rest is as in `forward`, x_scale with [experts, capacity] for [tokens]; routed_scaling_factor is left to who
        sums.
        """
        rows = ("masked", topk_weights, None, None, None, expert_counts)
        return self._run(x, x_scale, rows, {}, expected_tokens, out_dtype, out, workspace)

    def workspace_shape(
        self,
        rows: int,
        top_k: int = 1,
        *,
        layout: str = "indexed",
        x_dtype: torch.dtype = torch.bfloat16,
        out_dtype: torch.dtype = torch.bfloat16,
    ) -> list[int]:
        """Shape of the uint8 workspace of calls with up to so many contiguous rows of x.

        rows: tokens; in the layout "masked" experts * capacity.
        top_k: experts of a token in the layout "indexed" (`forward`).
        layout: "indexed", "contiguous" or "masked".
        """
        sizes = (rows, top_k, x_dtype, out_dtype, self.w13.arguments[3], self.w2.arguments[3], layout)
        return [fused_moe_workspace_bytes(*sizes, self.activation_group, self.w13.packed.device)]

    def extra_repr(self) -> str:
        """What `print` shows inside the brackets."""
        args = f"({', '.join(map(str, self.activation_args))})" if self.activation_args else ""
        group = f", activation_group={self.activation_group}" if self.activation_group else ""
        return f"activation={self.activation}{args}{group}"

    def _run(
        self,
        x: Tensor,
        x_scale: Tensor | None,
        rows: tuple[Any, ...],
        options: dict[str, Any],
        expected_tokens: int | None,
        out_dtype: torch.dtype | None,
        out: Tensor | None,
        workspace: Tensor | None,
    ) -> Tensor:
        arguments = (x, x_scale, *self.w13.arguments, *self.w2.arguments, *rows, self.activation, self.activation_args)
        options |= {
            "group": self.activation_group,
            "apply_router_weight_on_input": self.apply_router_weight_on_input,
            "expected_tokens": expected_tokens,
        }
        if out is None and workspace is None:
            return torch.ops.humming.fused_moe(*arguments, **options, out_dtype=out_dtype)
        if out is None or workspace is None or out_dtype is not None:
            raise ValueError("out, workspace: pass both and no out_dtype, or neither")
        torch.ops.humming.fused_moe.out(*arguments, **options, out=out, workspace=workspace)
        return out
