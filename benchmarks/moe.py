"""The product with experts as a thing to measure, with the routing that an engine's call contains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from humming_ext import PackedWeight, _ops

from .cases import MoeCase
from .product import Matrix, Product
from .references import Call, rotation
from .timing import Work, run_all

_MANY_DRAWS, _FEW_DRAWS = 8, 2
_FEW_FROM_TOKENS = 256
_BLOCK = 64  # of moe_align's descriptors, which nobody reads

_torch_ops = torch.ops.humming


def draw(tokens: int, experts: int, top_k: int, routing: str, rng: np.random.Generator) -> np.ndarray:
    """int32 [tokens, top_k]: random experts, different for a token, without replacement.

    Balanced: all are equally likely. Skewed: by Zipf's law with s = 1, the r-th most popular as 1 / r, in random order.
    """
    likelihood = np.ones(experts) if routing == "balanced" else 1 / (1 + rng.permutation(experts))
    # The largest k of log(p) + Gumbel noise are k draws without replacement from p.
    keys = np.log(likelihood) + rng.gumbel(size=(tokens, experts))
    return np.argpartition(-keys, top_k - 1, axis=1)[:, :top_k].astype(np.int32)


def align_call(topk_ids: torch.Tensor, experts: int, block: int) -> tuple[Call, dict[str, torch.Tensor]]:
    """A call of moe_align, and the tensors that it fills, allocated once."""
    arguments = (topk_ids, experts, block, None)
    outputs = dict(zip(_ops.ALIGNED, _ops._moe_align_outputs(*arguments), strict=True))
    return lambda: _torch_ops.moe_align.out(*arguments, **outputs), outputs


class Routing:
    """One draw, and a call of moe_align that sorts it, into tensors that are allocated once."""

    def __init__(self, ids: np.ndarray, experts: int, layout: str, device: torch.device) -> None:
        self.ids = ids
        self.topk_ids = torch.from_numpy(ids).to(device)  # int32 [tokens, top_k]
        self.align, self.aligned = align_call(self.topk_ids, experts, _BLOCK)
        self._is_indexed = layout == "indexed"
        self.align()

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of moe_gemm: from layout to top_k."""
        offsets = self.aligned["expert_offsets"]
        if self._is_indexed:
            return ("indexed", self.aligned["sorted_pairs"], None, None, offsets, None, None, self.ids.shape[1])
        return ("contiguous", None, None, None, offsets, None, None, 1)

    def row_experts(self) -> np.ndarray:
        """The expert of each row of the output, without help from the ops."""
        experts = self.ids.reshape(-1)
        return experts if self._is_indexed else np.sort(experts)

    def row_tokens(self) -> np.ndarray:
        """The token of each row that lies by expert, without help from the ops."""
        return np.argsort(self.ids.reshape(-1), kind="stable") // self.ids.shape[1]

    def peer_ids(self) -> torch.Tensor:
        """int32 [rows of x, experts per row]: the same routing of the same rows of x to the same rows of the output."""
        return self.topk_ids if self._is_indexed else self.topk_ids.view(-1).sort().values[:, None]


class MoeMatrix(Matrix):
    """The matrix of every expert that one GPU has."""

    case: MoeCase

    def draws(self, tokens: int) -> list[np.ndarray]:
        """The routings of a token count, the same in every run."""
        case = self.case
        count = _MANY_DRAWS if tokens < _FEW_FROM_TOKENS else _FEW_DRAWS
        sizes = (case.local_tokens(tokens), case.experts, case.top_k)
        return [draw(*sizes, case.routing, np.random.default_rng([tokens, i])) for i in range(count)]

    def active_experts(self, tokens: int) -> float:
        """How many experts have a row at all, on average over the draws."""
        return float(np.mean([len(np.unique(ids)) for ids in self.draws(tokens)]))

    def bytes_per_call(self, weight: PackedWeight) -> int:
        return round(weight.nbytes * self.active_experts(min(self.tokens)) / self.case.experts)

    def num_rows(self, tokens: int) -> int:
        return self.case.local_tokens(tokens) * self.case.top_k

    def problem(self, tokens: int) -> MoeProblem:
        return MoeProblem(self, tokens)


class MoeProblem(Product):
    """What an engine calls for one matrix, in rotation over routings and copies of the weights. `calls` contain

    1. moe_align;
    2. quantize_activation, per token, if the case times the quantisation, of gate_up into the order of experts;
    3. moe_gemm, without activation: of tokens by index (gate_up), or of rows that lie together by expert (down, as the
       product before can leave them, and what was quantised just before).

    An engine aligns once for gate_up and down; each contains it here. `gemm_calls` are moe_gemm on its own, aligned
    before, as the peer's kernel is called: ratios and targets are about them. Where the quantisation is timed there are
    none, nor is there a peer.
    """

    def __init__(self, matrix: MoeMatrix, tokens: int) -> None:
        case: MoeCase = matrix.case
        pairs = matrix.num_rows(tokens)
        super().__init__(matrix, tokens, case.local_tokens(tokens) if case.layout == "indexed" else pairs)
        self._is_quantisation_timed = case.quantisation == "timed"
        self._sorts = self._is_quantisation_timed and case.layout == "indexed"
        layout = "contiguous" if self._sorts else case.layout
        self._routings = [Routing(ids, case.experts, layout, matrix.device) for ids in matrix.draws(tokens)]
        self._rows = self.x, self.x_scale  # of x, as the product takes them
        if self._sorts:
            positions = self._routings[0].aligned["positions"]
            self._rows = _ops._quantize_activation_outputs(self.x16, self.x.dtype, 0, positions=positions)
        desc = matrix.weights[0].desc
        size = _ops._moe_gemm_workspace_bytes(self._rows[0], desc, layout, case.top_k)
        self._workspace = _ops._workspace(self.out, size)
        self.num_products = len(self._routings)
        self._active = matrix.active_experts(tokens)
        self._turns = turns = rotation(matrix.weights, self._routings)
        gemm_calls = [self._gemm_call(weight, routing) for weight, routing in turns]
        self.calls = [
            run_all([routing.align, *self._quantise_calls(routing), call])
            for call, (_, routing) in zip(gemm_calls, turns, strict=True)
        ]
        self.gemm_calls = None if self._is_quantisation_timed else gemm_calls
        self.facts = {
            **{"layout": layout, "top_k": case.top_k, "pairs": pairs, "active_experts": self._active},
            **{"draws": self.num_products, "peer_routing": "same"},
        }

    def _gemm_call(self, weight: PackedWeight, routing: Routing, instance: str | None = None) -> Call:
        arguments = (*self._rows, weight.packed, weight.scale2, self.matrix.bias, weight.desc)
        arguments += routing.arguments
        options: dict[str, Any] = {"out": self.out, "workspace": self._workspace}
        if instance is not None:
            return lambda: _torch_ops.moe_gemm.instance(*arguments, instance=instance, **options)
        options["expected_tokens"] = self.rows
        return lambda: _torch_ops.moe_gemm.out(*arguments, **options)

    def instance_calls(self, name: str) -> list[Call]:
        return [self._gemm_call(weight, routing, name) for weight, routing in self._turns]

    def _quantise_calls(self, routing: Routing) -> list[Call]:
        if not self._is_quantisation_timed:
            return []
        x16, options = self.x16, dict(zip(("out", "scale"), self._rows, strict=True))
        if self._sorts:
            options["positions"] = routing.aligned["positions"]
        return [lambda: _torch_ops.quantize_activation.out(x16, 0, **options)]

    @property
    def work(self) -> Work:
        case, pairs = self.matrix.case, len(self.out)
        activations = self.x16.nbytes if self._is_quantisation_timed else self.activation_bytes
        return Work(
            bytes=round(self._active * self.matrix.nbytes) + activations + self.out.nbytes,
            flops=2 * pairs * case.n * case.k,
            operand=self.matrix.spec.operand,
        )

    def _sources(self, product: int) -> tuple[np.ndarray, np.ndarray]:
        rows, case = self._sampled_rows, self.matrix.case
        routing = self._routings[product]
        if self._sorts:
            return routing.row_tokens()[rows], routing.row_experts()[rows]
        return rows // case.top_k if case.layout == "indexed" else rows, routing.row_experts()[rows]

    def references(self) -> dict[str, Callable[[], list[Call]]]:
        return {} if self._is_quantisation_timed else super().references()

    def _peer_calls(self, peer: Any) -> list[Call]:
        return peer.calls(self.x16, self.out, [routing.peer_ids() for routing in self._routings])
