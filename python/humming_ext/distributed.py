"""Expert parallelism: every rank has some of the experts, tokens travel to theirs and results back.

Call `ExpertParallelMoE` on every rank of the group at the same time, with tokens or without.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .formats import Operand
from .fused_moe import FusedMoE

_ALIGN = 16  # bytes, of what a token's message consists of
_QUANTISED = {Operand.e4m3: torch.float8_e4m3fn, Operand.s8: torch.int8, Operand.s4: torch.uint8}


@dataclass(frozen=True)
class Tokens:
    """Tokens on their way to experts, or those that came.

    x: [tokens, hidden], 16-bit or quantised; x_scale: float32 [tokens, groups], or None.
    topk_weights: float32 [tokens, top_k].
    topk_ids: int32 [tokens, top_k]: of the experts of all ranks before `dispatch`, of this rank's after it; -1: none.
    """

    x: Tensor
    x_scale: Tensor | None
    topk_weights: Tensor
    topk_ids: Tensor


class Dispatcher(Protocol):
    """Brings tokens to the ranks of their experts, and results back."""

    def dispatch(self, tokens: Tokens) -> tuple[Tokens, Any]:
        """The tokens of all ranks that have an expert here, each once, and what `combine` needs to send them back."""
        ...

    def combine(self, results: Tensor, route: Any, add: Tensor | None) -> Tensor:
        """The sum over ranks of `results`, which has a row per token that came: [tokens, outer], as was dispatched.

        add: [tokens, outer] of the dtype of `results`, added in the same sum.
        """
        ...


@dataclass(frozen=True)
class _Route:
    sent: list[int]  # tokens that went to every rank
    received: list[int]
    rows: Tensor  # int32 [tokens, ranks]: where a token is among those that were sent, or -1


class AllToAll:
    """Dispatcher on torch.distributed: two all-to-all exchanges out (counts, tokens), one back.

    Rank r has experts r * experts_per_rank and on. Works with every backend that has all_to_all_single for tensors of
    the device: NCCL on GPUs, gloo on CPUs. How many tokens come is known on the host only after the first exchange:
    `dispatch` waits for it, and cannot be captured in a CUDA graph.
    """

    def __init__(self, experts_per_rank: int, group: dist.ProcessGroup | None = None) -> None:
        """group: the ranks; None: all. Raises ValueError if experts_per_rank is not positive."""
        if experts_per_rank < 1:
            raise ValueError(f"experts_per_rank = {experts_per_rank} is not positive")
        self.experts_per_rank, self.group = experts_per_rank, group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)

    def dispatch(self, tokens: Tokens) -> tuple[Tokens, _Route]:
        """As Dispatcher.dispatch. A token's message is its row, its scales, ids and weights as bytes."""
        rank_of = tokens.topk_ids.div(self.experts_per_rank, rounding_mode="floor")  # -1 stays below 0
        ranks = torch.arange(self.ranks, device=tokens.x.device, dtype=torch.int32)
        goes = (rank_of[:, None, :] == ranks[:, None]).any(2)  # [tokens, ranks]
        # To sort tokens by rank is to sort them by expert, of which every rank is one.
        to = torch.where(goes, ranks, -1)
        pairs, rows, _, _, offsets = torch.ops.humming.moe_align(to, self.ranks, max(1, to.numel()), None)

        counts = offsets.diff()
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.group)
        sent, received = torch.stack([counts, arriving]).tolist()
        token = pairs[: sum(sent)] // self.ranks

        fields = [tokens.x, tokens.x_scale, tokens.topk_ids, tokens.topk_weights]
        parts = [_bytes(field) for field in fields if field is not None]
        messages = torch.cat(parts, 1)[token]
        came = iter(self._exchange(messages, received, sent).split([part.shape[1] for part in parts], dim=1))
        x, x_scale, ids, weights = (None if field is None else _values(next(came), field) for field in fields)
        assert x is not None and ids is not None and weights is not None
        ids = ids - self.rank * self.experts_per_rank
        ids = ids.masked_fill((ids < 0) | (ids >= self.experts_per_rank), -1)
        scale = None if x_scale is None else x_scale.contiguous()
        return Tokens(x, scale, weights.contiguous(), ids), _Route(sent, received, rows.view(goes.shape))

    def combine(self, results: Tensor, route: _Route, add: Tensor | None) -> Tensor:
        """As Dispatcher.combine. The sum is in float32, in the order of the ranks: the same bits in every run."""
        back = self._exchange(results, route.sent, route.received)
        if not len(back):
            back = back.new_zeros(1, back.shape[1])  # what a token that went nowhere does not read
        y = back[route.rows.clamp(min=0)]
        ones = torch.ones(route.rows.shape, device=y.device)
        return torch.ops.humming.moe_reduce(y, ones, route.rows, None, 1.0, add)

    def _exchange(self, rows: Tensor, received: list[int], sent: list[int]) -> Tensor:
        """The rows that come, by rank, for those that go, by rank."""
        out = rows.new_empty(sum(received), rows.shape[1])
        to, source = out.view(torch.uint8), rows.contiguous().view(torch.uint8)  # not every backend knows every dtype
        dist.all_to_all_single(to, source, received, sent, group=self.group)
        return out


class ExpertParallelMoE(nn.Module):
    """A MoE layer whose experts are spread over ranks.

    experts: the layer of this rank's experts, without expert_map.
    dispatcher: None: AllToAll over all ranks, of which every one has as many experts.

    Where w13 is packed for operand e4m3, s8 or s4, tokens are quantised before they travel, to the numbers that
    `experts` would make of them; else they travel as they are. routed_scaling_factor of `experts` applies to what a
    rank sends back.

    Raises ValueError if `experts` has an expert_map or applies weights to its input.
    """

    def __init__(self, experts: FusedMoE, dispatcher: Dispatcher | None = None) -> None:
        super().__init__()
        if experts.expert_map is not None:
            raise ValueError("experts: has an expert_map, but tokens come with ids of the experts here; leave it out")
        if experts.apply_router_weight_on_input:
            raise ValueError("experts: apply_router_weight_on_input; multiply x by the weights before the layer")
        self.experts = experts
        self.dispatcher = dispatcher or AllToAll(experts.w13.weight.fields.experts)
        self._dtype = _QUANTISED.get(Operand(experts.w13.weight.fields.operand))

    def forward(
        self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, *, shared_output: Tensor | None = None
    ) -> Tensor:
        """The layer of this rank's tokens: [tokens, outer] of the dtype of x.

        x: [tokens, hidden] of bfloat16 or float16; tokens may be 0.
        topk_weights: float32 [tokens, top_k]. top_k is the same on all ranks.
        topk_ids: int32 or int64 [tokens, top_k], of the experts of all ranks; others, such as -1, give nothing.
        shared_output: [tokens, outer] of the dtype of x, added to the sum.
        """
        rows, x_scale = x, None
        if self._dtype is not None:
            rows, x_scale = torch.ops.humming.quantize_activation(x, self._dtype, self.experts.activation_group)
        came, route = self.dispatcher.dispatch(Tokens(rows, x_scale, topk_weights, topk_ids.int()))
        y = self.experts(came.x, came.topk_weights, came.topk_ids, x_scale=came.x_scale, out_dtype=x.dtype)
        return self.dispatcher.combine(y, route, shared_output)


def _bytes(rows: Tensor) -> Tensor:
    """uint8 [rows, a multiple of _ALIGN]: the bytes of [rows, columns]."""
    size = rows.shape[1] * rows.element_size()
    raw = rows.reshape(-1).view(torch.uint8).view(len(rows), size)  # strides of tensors without rows mean nothing
    return nn.functional.pad(raw, (0, -size % _ALIGN))


def _values(raw: Tensor, like: Tensor) -> Tensor:
    """[rows, columns] of the dtype and the columns of `like`, from its bytes; a view."""
    return raw[:, : like.shape[1] * like.element_size()].view(like.dtype)
