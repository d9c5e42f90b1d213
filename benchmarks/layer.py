"""The whole MoE layer as a thing to measure: from routed tokens to their sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from humming_ext import FusedMoE
from moe_layers import through_quantisation
from oracle.activations import activate
from torch import Tensor

from .cases import LayerCase
from .moe import MoeMatrix
from .peer_layer import HummingKernelsLayer
from .problem import Problem, Weights
from .references import Call, rotation
from .timing import Work

_TOKEN_SIZE = 4  # root mean square; gate and up are then large enough for limits to cut some


class Layer(Weights):
    """Both matrices of every expert."""

    PEERS = (HummingKernelsLayer,)
    case: LayerCase
    weights: list[FusedMoE]

    def __init__(self, case: LayerCase, device: torch.device, tokens: Sequence[int]) -> None:
        super().__init__(case, device, tokens)
        self.gate_up = MoeMatrix(case, device, tokens)
        self.down = MoeMatrix(case.down, device, tokens, copies=len(self.gate_up.weights))
        self.channels = self.down.channels
        self.arguments = [case.limit, case.alpha, case.beta]
        self.weights = [
            FusedMoE(
                *pair,
                w13_bias=self.gate_up.bias,
                w2_bias=self.down.bias,
                activation=case.function,
                activation_args=self.arguments,
            )
            for pair in zip(self.gate_up.weights, self.down.weights, strict=True)
        ]

    @property
    def set_bytes(self) -> int:
        return self.gate_up.set_bytes + self.down.set_bytes

    def problem(self, tokens: int) -> LayerProblem:
        return LayerProblem(self, tokens)


class LayerProblem(Problem):
    """What an engine calls for a layer, in rotation over routings and copies of the weights: fused_moe, which contains
    all, with the output and the workspace allocated beforehand.
    """

    matrix: Layer

    def __init__(self, matrix: Layer, tokens: int) -> None:
        case = matrix.case
        super().__init__(matrix, tokens, (tokens, case.k), (tokens, case.k))
        self.x16 *= _TOKEN_SIZE
        rng = np.random.default_rng(tokens)
        self._routings = [
            self._routing(rng.dirichlet(np.ones(case.top_k), tokens), ids) for ids in matrix.gate_up.draws(tokens)
        ]
        self.num_products = len(self._routings)
        shape = matrix.weights[0].workspace_shape(tokens, case.top_k)
        self._workspace = torch.empty(shape, dtype=torch.uint8, device=matrix.device)
        self.calls = [self._call(*turn) for turn in rotation(matrix.weights, self._routings)]
        self._active = matrix.gate_up.active_experts(tokens)
        self.facts = {
            **{"top_k": case.top_k, "pairs": tokens * case.top_k, "active_experts": self._active},
            **{"draws": self.num_products, "peer_routing": "same"},
        }

    def _routing(self, weights: np.ndarray, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        device = self.matrix.device
        return torch.from_numpy(weights).float().to(device), torch.from_numpy(ids).to(device)

    def _call(self, layer: FusedMoE, routing: tuple[Tensor, Tensor]) -> Call:
        x, outputs = self.x16, {"out": self.out, "workspace": self._workspace}
        return lambda: layer(x, *routing, **outputs)

    @property
    def work(self) -> Work:
        gate_up, down = self.matrix.gate_up, self.matrix.down
        pairs = self.tokens * self.matrix.case.top_k
        return Work(
            bytes=round(self._active * (gate_up.nbytes + down.nbytes)) + self.x16.nbytes + self.out.nbytes,
            flops=2 * pairs * sum(part.case.n * part.case.k for part in (gate_up, down)),
            operand=gate_up.spec.operand,
        )

    def _peer_calls(self, peer: HummingKernelsLayer) -> list[Call]:
        return peer.calls(self.x16, self.out, self._routings)

    def _compute(self, product: int) -> tuple[np.ndarray, Tensor]:
        rows = torch.from_numpy(self._sampled_rows).to(self.matrix.device)
        weights, ids = (part[rows].cpu() for part in self._routings[product])
        exact, plain = self._experts(self.x16[rows].double().cpu().numpy(), ids.numpy())
        weights = weights.double()[..., None]
        return (weights * exact).sum(1).numpy(), (weights * plain.bfloat16()).sum(1).bfloat16()

    def _experts(self, x: np.ndarray, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """What a row's experts give, exact and with the layer's roundings: float64 [rows, top_k, sampled channels]."""
        matrix, case, device = self.matrix, self.matrix.case, self.matrix.device
        through = through_quantisation(matrix.gate_up.spec.operand.name, 0)
        channels = torch.from_numpy(matrix.channels).to(device)
        exact, plain = torch.empty(2, *ids.shape, len(channels), dtype=torch.float64)
        inputs = x, through(x)
        for expert in np.unique(ids).tolist():
            row, slot = np.nonzero(ids == expert)
            rows = (torch.from_numpy(part[row]).to(device) for part in inputs)
            gate_up = matrix.gate_up.multiply(*rows, expert, slice(None))
            h, rounded = (activate(part.cpu().numpy(), case.function, matrix.arguments) for part in gate_up)
            h, rounded = (torch.from_numpy(part).to(device) for part in (h, through(rounded)))
            results = matrix.down.multiply(h, rounded, expert, channels)
            exact[row, slot], plain[row, slot] = (part.cpu() for part in results)
        return exact, plain
