"""humming-kernels assembled into the whole MoE layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .moe import align_call
from .references import Call, HummingKernels
from .timing import run_all

if TYPE_CHECKING:
    from .layer import Layer


class HummingKernelsLayer:
    """The steps that vLLM calls with it by index: align, quantise, gate_up, activate and quantise in one kernel, down,
    sum. What the wheel lacks is ours. Raises UnavailableError as for one matrix.
    """

    name = HummingKernels.name
    notes: ClassVar[dict[str, str]] = {
        f"{name} aligner": "the wheel has none: moe_align is timed for it, what pads its blocks is not",
        f"{name} sum over experts": "the wheel has none: moe_reduce is timed for it",
    }

    def __init__(self, layer: Layer) -> None:
        case = layer.case
        self._gate_up, self._down = HummingKernels(layer.gate_up), HummingKernels(layer.down)
        self._experts, self._inner_rows = case.experts, case.n
        gate, up = "a", "b"  # as its kernels call them
        if case.limit:
            gate, up = f"fminf(a, {case.limit}f)", f"fminf(fmaxf(b, -{case.limit}f), {case.limit}f)"
        self._activation = {
            "activation_type": "binary_split",
            "activation_impl": f"{gate} / (1.0f + __expf(-{case.alpha}f * {gate})) * ({up} + {case.beta}f)",
        }
        self._top_k = case.top_k

    def uses_pdl(self, tokens: int) -> bool:
        """Whether its heuristics launch both products of this many tokens with programmatic dependent launch."""
        return all(part.uses_pdl(tokens * self._top_k) for part in (self._gate_up, self._down))

    def calls(self, x: Tensor, out: Tensor, routings: Sequence[tuple[Tensor, Tensor]]) -> list[Call]:
        """Calls of the layer on bf16 tokens. The first compiles, for seconds.

        routings: float32 weights and int32 experts, both [tokens, top_k], of one draw after the other.
        """
        pairs = len(x) * self._top_k
        h, y = x.new_zeros(pairs, self._inner_rows), x.new_zeros(pairs, out.shape[1])
        quantise, tokens = self._gate_up.prepare(x)
        activate, rows = self._down.prepare(h, **self._activation)
        gate_up = self._gate_up.products(tokens, h, [ids for _, ids in routings])
        down = self._down.products(rows, y, [ids.view(-1, 1) for _, ids in routings])
        blocks = {self._gate_up.block(pairs), self._down.block(pairs)}  # one alignment serves both if they pad alike
        calls = []
        for i, products in enumerate(zip(gate_up, down, strict=True)):
            weights, ids = routings[i % len(routings)]
            align = [align_call(ids, self._experts, block)[0] for block in blocks]
            calls.append(run_all([*align, quantise, products[0], activate, products[1], _reduce(y, weights, out)]))
        return calls


def _reduce(y: Tensor, weights: Tensor, out: Tensor) -> Call:
    arguments = (y.view(*weights.shape, -1), weights, None, None)
    return lambda: torch.ops.humming.moe_reduce.out(*arguments, out=out)
