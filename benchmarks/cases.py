"""What is measured: weight schemes, matrix shapes and token counts, in named parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from humming_ext import QuantSpec, WeightFormat, ZeroKind

ACTIVATIONS = {"bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "int8": torch.int8}


@dataclass(frozen=True)
class Scheme:
    """How a weight is quantised. Rows, filters and targets.toml call it by `name`."""

    name: str
    format: WeightFormat
    group: int = 0  # columns per scale; 0: one scale per row
    scale_dtype: torch.dtype = torch.bfloat16
    has_zero: bool = False  # an integer zero point per scale

    def spec(self, activation: str) -> QuantSpec:
        """The spec to pack with, for the operand of the activation's own type."""
        zero = ZeroKind.integer if self.has_zero else ZeroKind.none
        spec = QuantSpec(self.format, group=self.group, scale_dtype=self.scale_dtype, zero=zero)
        return spec.for_activation(ACTIVATIONS[activation])


@dataclass(frozen=True)
class Case:
    """One matrix with the token counts to measure. Its `op` says which class of problem loads it."""

    model: str
    matrix: str
    n: int
    k: int
    scheme: Scheme
    activation: str
    tokens: tuple[int, ...]
    has_bias: bool = False
    op: str = "gemm"
    experts: int = 0  # 0: one dense matrix; otherwise n x k is that of each

    def __str__(self) -> str:
        return f"{self.model} {self.matrix} {self.n}x{self.k} {self.scheme.name} x {self.activation}"

    @property
    def spec(self) -> QuantSpec:
        """What to pack the matrix with."""
        return self.scheme.spec(self.activation)

    @property
    def plain(self) -> Case:
        """Of the cases with these weights, which differ in how tokens come to them, the one that instances are for."""
        return self

    def products(self, tokens: Sequence[int]) -> list[Case]:
        """With these token counts, what kernel instances are chosen for: itself, or what it consists of."""
        return [replace(self, tokens=tuple(tokens))]

    def key(self, tokens: int) -> dict[str, object]:
        """The fields of a row that say what was measured."""
        return {
            "op": self.op,
            "model": self.model,
            "part": self.matrix,
            "n": self.n,
            "k": self.k,
            "experts": self.experts,
            "tokens": tokens,
            "weight": self.scheme.name,
            "activation": self.activation,
            "routing": None,
            "quantisation": None,
        }


@dataclass(frozen=True)
class MoeCase(Case):
    """One matrix of every expert that a GPU has, and how tokens come to them."""

    op: str = "moe_gemm"
    top_k: int = 1
    layout: str = "indexed"  # gate_up: every token once, by index; "contiguous", down: a row per pair, sorted by expert
    routing: str = "balanced"  # or "skewed"
    quantisation: str | None = None  # of 8-bit tokens: "before" the time is taken, or "timed"
    ranks: int = 1  # of expert parallelism: this one takes 1 / ranks of the (token, expert) pairs

    def __str__(self) -> str:
        quantisation = f", quantisation {self.quantisation}" if self.quantisation else ""
        return f"{super().__str__()} {self.routing}{quantisation}"

    @property
    def plain(self) -> MoeCase:
        quantisation = "before" if self.quantisation else None
        return replace(self, routing="balanced", quantisation=quantisation, tokens=())

    def key(self, tokens: int) -> dict[str, object]:
        return {**super().key(tokens), "routing": self.routing, "quantisation": self.quantisation}

    def local_tokens(self, tokens: int) -> int:
        """Of `tokens`, those that bring this rank its share of pairs, at least one."""
        return max(1, tokens // self.ranks)


@dataclass(frozen=True)
class LayerCase(MoeCase):
    """A whole layer. As a matrix it is gate_up: of `n` rows, half of them gate, and hidden size `k`."""

    op: str = "fused_moe"
    function: str = "silu"  # gate times its sigmoid times up
    limit: float = 0.0  # of gate and, in magnitude, up; 0: none
    alpha: float = 1.0  # times gate, in the sigmoid
    beta: float = 0.0  # plus up

    @property
    def spec(self) -> QuantSpec:
        return replace(super().spec, gate_up=True)

    @property
    def down(self) -> MoeCase:
        """The second matrix."""
        return self._product("down", self.k, self.n // 2, "contiguous", self.tokens)

    def products(self, tokens: Sequence[int]) -> list[Case]:
        # A layer writes the tokens that it quantises by expert.
        layout = "indexed" if self.activation == "bf16" else "contiguous"
        return [
            self._product("down", self.k, self.n // 2, "contiguous", tuple(tokens)),
            self._product("gate_up", self.n, self.k, layout, tuple(tokens)),
        ]

    def _product(self, matrix: str, n: int, k: int, layout: str, tokens: tuple[int, ...]) -> MoeCase:
        same = ("model", "scheme", "activation", "has_bias", "experts", "top_k", "routing")
        fields = {name: getattr(self, name) for name in same}
        return MoeCase(matrix=matrix, n=n, k=k, layout=layout, tokens=tokens, **fields)


UINT4 = Scheme("uint4-g128-zp", WeightFormat.uint4, 128, has_zero=True)
MXFP4 = Scheme("e2m1-g32-e8m0", WeightFormat.e2m1, 32, torch.float8_e8m0fnu)
E4M3 = Scheme("e4m3-channel", WeightFormat.e4m3)
E3M2 = Scheme("e3m2-channel", WeightFormat.e3m2)
INTEGERS = {bits: Scheme(f"int{bits}-g128", WeightFormat[f"int{bits}"], 128) for bits in range(1, 9)}
CHANNEL_INTEGERS = {bits: Scheme(f"int{bits}-channel", WeightFormat[f"int{bits}"]) for bits in range(1, 9)}
INT4, INT4_CHANNEL = INTEGERS[4], CHANNEL_INTEGERS[4]

ALL_TOKENS = (1, 3, 8, 16, 32, 64, 100, 128, 256, 512, 1024, 4096, 8192, 16384)
TABLE_TOKENS = (1, 16, 64, 256, 1024, 4096, 8192)
MODEL_TOKENS = (1, 3, 16, 64, 100, 256, 1024, 4096, 16384)
RAGGED_TOKENS = (1, 3, 16, 100, 256, 1024)
SKEWED_TOKENS = (64, 1024, 16384)
LAYER_TOKENS = (1, 4, 16, 64, 256, 1024, 8192)

PAIRS = {
    (INT4, "bf16"): ALL_TOKENS,
    (MXFP4, "bf16"): ALL_TOKENS,
    (MXFP4, "e4m3"): ALL_TOKENS,
    (INT4_CHANNEL, "int8"): ALL_TOKENS,
    (UINT4, "bf16"): TABLE_TOKENS,
    (INT4, "int8"): TABLE_TOKENS,
    (E4M3, "e4m3"): TABLE_TOKENS,
    (E3M2, "bf16"): TABLE_TOKENS,
    **{(INTEGERS[bits], "bf16"): TABLE_TOKENS for bits in (3, 2, 1)},
}
# The integers that PAIRS has not, for a row of every width.
WIDTHS = {
    **{(INTEGERS[bits], "bf16"): TABLE_TOKENS for bits in (5, 6, 7, 8)},
    **{(CHANNEL_INTEGERS[bits], "int8"): TABLE_TOKENS for bits in (1, 2, 3, 5, 6, 7, 8)},
}

# For the main loop of Ampere and Ada.
MMA_SYNC = {
    pair: (1, 16, 64, 256, 1024, 4096)
    for pair in ((INT4, "bf16"), (MXFP4, "bf16"), (E4M3, "bf16"), (INT4_CHANNEL, "int8"), (CHANNEL_INTEGERS[8], "int8"))
}

# Matrices (n, k) of one expert, as tensor (TP) and expert (EP) parallelism cut them.
MATRICES = {
    "deepseek-v4-flash": {
        "TP4 gate_up": (1024, 4096),
        "TP4 down": (4096, 512),
        "TP8 gate_up": (512, 4096),
        "TP8 down": (4096, 256),
        "EP4 gate_up": (4096, 4096),
        "EP4 down": (4096, 2048),
    },
    "gpt-oss-120b": {
        "TP1 gate_up": (5760, 2880),
        "TP1 down": (2880, 2880),
        "TP4 gate_up": (1440, 2880),
        "TP4 down": (2880, 720),
        "TP8 gate_up": (720, 2880),
        "TP8 down": (2880, 360),
    },
    "qwen3-30b-a3b": {
        "TP1 gate_up": (1536, 2048),
        "TP1 down": (2048, 768),
        "TP4 gate_up": (384, 2048),
        "TP4 down": (2048, 192),
    },
    "ragged": {
        "short rows": (4096, 80),
        "rows of 4.5 groups": (4096, 288),
        "few rows": (80, 4096),
        "rows in 3 strips": (200, 4096),
        "rows in 5 strips": (360, 4096),
    },
    "small mixture": {
        "gate_up": (160, 128),
        "EP4 down": (128, 80),
    },
}


def _dense(size: int, pairs: dict[tuple[Scheme, str], tuple[int, ...]]) -> list[Case]:
    return [
        Case("dense", "square", size, size, scheme, activation, tokens)
        for (scheme, activation), tokens in pairs.items()
    ]


def _of_model(
    model: str, pairs: list[tuple[Scheme, str]], tokens: tuple[int, ...] = MODEL_TOKENS, *, has_bias: bool = False
) -> list[Case]:
    return [
        Case(model, matrix, n, k, scheme, activation, tokens, has_bias)
        for matrix, (n, k) in MATRICES[model].items()
        for scheme, activation in pairs
    ]


_RANKS = {"EP4": 4}


def _experts(
    model: str,
    pairs: list[tuple[Scheme, str]],
    experts: int,
    top_k: int,
    tokens: tuple[int, ...] = MODEL_TOKENS,
    skewed: tuple[int, ...] = SKEWED_TOKENS,
    *,
    has_bias: bool = False,
) -> list[MoeCase]:
    cases = []
    for matrix, (n, k) in MATRICES[model].items():
        ranks = _RANKS.get(matrix.split()[0], 1)
        layout = "contiguous" if matrix.endswith("down") else "indexed"
        for scheme, activation in pairs:
            variants = [("balanced", "before", tokens), ("skewed", "before", skewed), ("balanced", "timed", tokens)]
            cases += [
                MoeCase(
                    *(model, matrix, n, k, scheme, activation, counts, has_bias),
                    **{"experts": experts // ranks, "top_k": top_k, "ranks": ranks, "layout": layout},
                    **{"routing": routing, "quantisation": None if activation == "bf16" else quantisation},
                )
                for routing, quantisation, counts in variants[: 2 if activation == "bf16" else 3]
            ]
    return cases


def _layers(
    model: str,
    pairs: list[tuple[Scheme, str]],
    hidden: int,
    inner: int,
    tokens: tuple[int, ...] = LAYER_TOKENS,
    **fields: Any,
) -> list[LayerCase]:
    return [
        LayerCase(model, "layer", 2 * inner, hidden, scheme, activation, tokens, **fields)
        for scheme, activation in pairs
    ]


_SWIGLU_OAI = {"function": "swigluoai", "limit": 7.0, "alpha": 1.702, "beta": 1.0, "has_bias": True}

PARTS: dict[str, list[Case]] = {
    "dense8192": _dense(8192, PAIRS),
    "dense4096": _dense(4096, PAIRS),
    "widths8192": _dense(8192, WIDTHS),
    "mma-sync": [replace(case, op="gemm_mma_sync") for case in _dense(8192, MMA_SYNC)],
    "deepseek": _of_model("deepseek-v4-flash", [(MXFP4, "bf16"), (MXFP4, "e4m3")]),
    "gpt-oss": _of_model("gpt-oss-120b", [(MXFP4, "bf16"), (MXFP4, "e4m3")], has_bias=True),
    "qwen3": _of_model("qwen3-30b-a3b", [(INT4, "bf16"), (INT4, "int8")]),
    "ragged": _of_model(
        "ragged",
        [(INT4, "bf16"), (MXFP4, "bf16"), (MXFP4, "e4m3"), (INT4_CHANNEL, "int8")],
        RAGGED_TOKENS,
    ),
    "moe-deepseek": _experts("deepseek-v4-flash", [(MXFP4, "bf16"), (MXFP4, "e4m3")], 256, 6),
    "moe-gpt-oss": _experts("gpt-oss-120b", [(MXFP4, "bf16"), (MXFP4, "e4m3")], 128, 4, has_bias=True),
    "moe-qwen3": _experts("qwen3-30b-a3b", [(INT4, "bf16"), (INT4, "e4m3")], 128, 8),
    "layer-deepseek": _layers(
        *("deepseek-v4-flash", [(MXFP4, "e4m3"), (MXFP4, "bf16")], 4096, 2048), experts=256, top_k=6, limit=10.0
    ),
    "layer-gpt-oss": _layers(
        *("gpt-oss-120b", [(MXFP4, "bf16"), (MXFP4, "e4m3")], 2880, 2880), experts=128, top_k=4, **_SWIGLU_OAI
    ),
    "layer-qwen3": _layers("qwen3-30b-a3b", [(INT4, "bf16"), (INT4, "e4m3")], 2048, 768, experts=128, top_k=8),
    # Every pair once, small enough for a CPU: whether the benchmark itself works.
    "smoke": [Case("smoke", "small", 256, 256, *pair, (1, 17), has_bias=pair[0] is INT4) for pair in PAIRS],
    "moe-smoke": _experts("small mixture", [(INT4, "bf16"), (MXFP4, "e4m3")], 32, 3, (1, 17, 40), (17,), has_bias=True),
    "layer-smoke": [
        *_layers("small", [(MXFP4, "bf16"), (MXFP4, "e4m3")], 128, 80, (1, 17), experts=8, top_k=3, **_SWIGLU_OAI),
        *_layers("small", [(INT4, "bf16"), (INT4, "int8")], 128, 80, (1, 17), experts=8, top_k=3, limit=10.0),
    ],
}
