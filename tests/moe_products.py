"""Products of experts to hold kernels against: the counterpart of products.py for moe_gemm and its three layouts.

A `Mixture` is what tokens, routed to experts, give: one result per pair of a token and a slot, whatever the layout.
`lay_out` makes a `Problem` of it: the arguments of one call, with NaN wherever the op may not read, and NaN expected in
every row of out that it may not write. `run` everywhere is a function (problem, out) that writes the product into out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from humming_ext import _ops
from moe_routings import Routing
from products import NATIVE, Maker, amid_nan, assert_case_is_exact, case_of, operand_rounded
from support import TORCH, WeightCase, assert_as_accurate, assert_bits_equal, guarded

LAYOUTS = ("indexed", "sorted", "contiguous", "masked")  # sorted: of the op's "indexed", without blocks
# Root mean square of random x with its scales.
X_SIZE = {"bf16": 1.0, "fp16": 1.0, "e4m3": 25.0, "e5m2": 25.0, "int8": 91.0, "int4": 6.0}
BLOCKS = (1, 8, 16, 32, 64, 128)  # rows that sorted_token_ids are padded to

# Format, operand, scale type, group, zero: the pairs of products.py that checkpoints of mixtures have.
PAIRS = [
    *(("int4", operand, "bf16", 128, "none") for operand in ("bf16", "fp16", "e4m3")),
    ("nf4", "bf16", "fp32", 64, "none"),
    ("uint4", "bf16", "fp16", 64, "integer"),
    ("uint4", "bf16", "fp16", 32, "floating"),
    *(("e2m1", operand, "e8m0", 32, "none") for operand in ("bf16", "e4m3")),
    *(("int4", operand, "none", 0, "none") for operand in ("e4m3", "s8")),
    *(("e4m3", operand, "none", 0, "none") for operand in ("bf16", "e4m3")),
    ("e2m1", "bf16", "e4m3", 16, "none"),
    ("int8", "s8", "none", 0, "none"),
]
TOKEN_GROUP_PAIRS = [pair for pair in PAIRS if pair[1] in ("e4m3", "s8")]
SHAPES = [(200, 80), (360, 192), (72, 288), (136, 360), (360, 720)]  # n, k: remainders of every tile


# ---- tokens, experts and what they give


@dataclass(frozen=True)
class Epilogue:
    """What follows the sums. scale2: per "channel" or "expert". weighted: times the pair's weight."""

    activation: str = "none"
    args: tuple[float, ...] = ()  # limit, alpha, beta
    scale2: str = "channel"
    bias: str | None = "bf16"
    weighted: bool = True

    @property
    def gated(self) -> bool:
        return self.activation != "none" and not self.activation.endswith("_no_mul")

    def __str__(self) -> str:
        parts = [self.activation, *map(str, self.args), f"scale2_per_{self.scale2}", f"bias_{self.bias}"]
        return "-".join(parts) + ("-weighted" if self.weighted else "")


BARE = Epilogue(bias=None, weighted=False)
EPILOGUES = [
    Epilogue("silu"),
    Epilogue("silu", scale2="expert", bias=None, weighted=False),
    Epilogue("silu", (0.75,), bias="fp32"),
    Epilogue("swigluoai", weighted=False),
    Epilogue("swigluoai", (0.5, 1.25, 0.75), bias="fp16"),
    Epilogue("gelu", weighted=False),
    Epilogue("gelu_tanh", scale2="expert"),
    Epilogue("relu2", bias=None),
    Epilogue("none", scale2="expert", bias="fp32", weighted=False),  # the logical order, gate rows first
    *(Epilogue(f"{name}_no_mul") for name in ("silu", "gelu", "gelu_tanh", "relu2")),
]


def activate(y: torch.Tensor, epilogue: Epilogue) -> torch.Tensor:
    """Of y [rows, n], in y's type; gated activations of gate and up halves."""
    functional = torch.nn.functional
    gate, up = y.chunk(2, dim=1) if epilogue.gated else (y, torch.ones((), dtype=y.dtype, device=y.device))
    name = epilogue.activation.removesuffix("_no_mul")
    if name in ("silu", "swigluoai"):
        defaults = (0.0, 1.0, 0.0) if name == "silu" else (7.0, 1.702, 1.0)
        limit, alpha, beta = (*epilogue.args, *defaults[len(epilogue.args) :])
        if limit:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(alpha * gate) * (up + beta)
    if name == "none":
        return y
    if name == "relu2":
        return functional.relu(gate).square() * up
    return functional.gelu(gate, approximate="tanh" if name == "gelu_tanh" else "none") * up


@dataclass(frozen=True)
class Experts:
    """Packed weights and their values: `values` [experts, n, k] in float64, `rounded` to the operand in fp32."""

    packed: torch.Tensor
    row_scale: torch.Tensor | None  # [experts, n]
    values: torch.Tensor
    rounded: torch.Tensor


@lru_cache(maxsize=16)
def make_experts(case: WeightCase, device: str, *, simple: bool = False, all_codes: bool = False) -> Experts:
    """Random weights. simple, all_codes: as of `Maker.weight`."""
    weight = Maker(device, simple, *case.desc).weight(
        replace(case, n=case.experts * case.n, experts=0), simple=simple, all_codes=all_codes
    )
    codes, scale, zero, values = (
        None if rows is None else rows.view(case.experts, case.n, -1)
        for rows in (weight.codes, weight.scale, weight.zero, weight.values)
    )
    packed, row_scale, stats = torch.ops.humming.prepack(codes, 8, scale, zero, case.desc, case.row_order)
    assert stats.tolist() == [0, 0]
    rounded = operand_rounded(values, case.operand).float()
    if device == "cuda":
        torch.cuda.synchronize()  # a product may fetch weights before the kernel ahead of it has ended
    return Experts(packed, row_scale if case.rebased else None, values, rounded)


@dataclass(frozen=True)
class Mixture:
    """Tokens, their routing, experts and an epilogue; `exact` [pairs, columns] in float64 has NaN where a pair goes
    nowhere; `plain` is what torch makes of it with weights rounded to the operand, in 16 bits."""

    case: WeightCase
    routing: Routing
    epilogue: Epilogue
    experts: Experts
    scale2: torch.Tensor | None  # as the op takes it
    bias: torch.Tensor | None
    x: torch.Tensor  # [tokens, k]
    x_scale: torch.Tensor | None  # per token, or of one element
    topk_weights: torch.Tensor | None  # [pairs]
    exact: torch.Tensor
    plain: torch.Tensor


def expert_sums(x: torch.Tensor, weights: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """[rows, n] of rows [rows, k] sorted by expert and weights [experts, n, k]."""
    return torch.cat([rows @ weight.T for rows, weight in zip(x.split(counts), weights, strict=True)])


@lru_cache(maxsize=8)
def make_mixture(
    pair: tuple,
    n: int,
    k: int,
    routing: Routing,
    epilogue: Epilogue,
    device: str,
    *,
    simple: bool = False,
    identity: bool = False,
    gate_up: bool = False,
    x_kind: str = "",
    x_scale: str = "groups",
    x_group: int = 0,
) -> Mixture:
    """simple: every sum and the result before its last rounding are exact in fp32. identity: x is one (routing.tokens
    must be k) and there are no factors. x_kind: the operand's own without. x_scale, x_group: see `Maker.tokens`."""
    simple = simple or identity
    case = replace(case_of(pair, n, k, gate_up=gate_up), experts=routing.experts)
    experts = make_experts(case, device, simple=simple, all_codes=identity)
    kind, tokens = x_kind or NATIVE[case.operand], routing.tokens
    make = Maker(device, simple, *case.desc)  # what is of the experts does not depend on the routing

    scale2 = torch.ones(routing.experts, n, device=device)
    if not identity:
        # Random sums are brought to about one, so that no output type overflows.
        size = X_SIZE[kind] * float(experts.values.square().sum(dim=2).mean().sqrt())
        shape = (routing.experts, n if epilogue.scale2 == "channel" else 1)
        scale2 = scale2 * make.factors(*shape, simple=simple).clamp(0.5, 1) * (1 if simple else 1 / size)
    bias = None
    if epilogue.bias:
        drawn = make.integers(-8, 9, routing.experts, n) if simple else make.normal(routing.experts, n)
        bias = drawn.to(TORCH[epilogue.bias])

    make = Maker(device, tokens, routing.top_k, simple, x_group, *case.desc)
    x, x_factors, x_values = make.tokens(
        kind, tokens, k, simple=simple, identity=identity, scale=x_scale, group=x_group
    )

    local = routing.local()
    order = local.argsort(stable=True)[int((local < 0).sum()) :]  # pairs that go somewhere, by expert
    counts = local[order].bincount(minlength=routing.experts).tolist()
    order, expert = order.to(device), local[order].to(device)
    exact_sums = expert_sums(x_values[order // routing.top_k], experts.values, counts)
    plain_sums = expert_sums(x_values.float()[order // routing.top_k], experts.rounded, counts)

    topk_weights = make.factors(len(local), simple=simple) if epilogue.weighted else None

    def finished(sums: torch.Tensor) -> torch.Tensor:
        y = sums * scale2[expert]
        y = activate(y if bias is None else y + bias[expert].to(y.dtype), epilogue)
        return y if topk_weights is None else y * topk_weights[order, None]

    width = n // 2 if epilogue.gated else n
    exact = torch.full((len(local), width), torch.nan, dtype=torch.float64, device=device)
    plain = torch.full_like(exact, torch.nan, dtype=torch.float16 if case.operand == "fp16" else torch.bfloat16)
    exact[order] = finished(exact_sums)
    plain[order] = finished(plain_sums).to(plain.dtype)

    given = None if identity else scale2[:, 0].contiguous() if epilogue.scale2 == "expert" else scale2
    if experts.row_scale is not None:
        given = experts.row_scale if given is None else experts.row_scale * scale2  # powers of two
    if device == "cuda":
        torch.cuda.synchronize()
    return Mixture(case, routing, epilogue, experts, given, bias, x, x_factors, topk_weights, exact, plain)


# ---- layouts


def aligned(routing: Routing, block: int) -> dict[str, torch.Tensor]:
    """sorted_token_ids, expert_ids and num_tokens_post_padded as vLLM's moe_align_block_size makes them.

    Pairs by expert of all devices, padded per expert to `block` with the number of pairs; -1 for blocks of experts that
    are elsewhere. The tensors have room for the worst routing, cut to whole blocks (without `pad_sorted_ids` vLLM's end
    within one, which no routing reaches); what the routing leaves over is not to be read.
    """
    pairs, expert_map = routing.pairs(), routing.expert_map
    everywhere = 2 * routing.experts  # of every kind of routing, so that all have the same room
    room = min(len(pairs) + everywhere * (block - 1), len(pairs) * block) // block * block
    ids = torch.full((room,), 2**31 - 1, dtype=torch.int32)
    experts = torch.full((room // block,), 10**6, dtype=torch.int32)
    begin = 0
    for expert, here in enumerate(expert_map):
        mine = (pairs == expert).nonzero()[:, 0]
        end = begin + -(-len(mine) // block) * block
        ids[begin:end] = len(pairs)
        ids[begin : begin + len(mine)] = mine
        experts[begin // block : end // block] = here
        begin = end
    return {
        "sorted_token_ids": ids,
        "expert_ids": experts,
        "num_tokens_post_padded": torch.tensor([begin], dtype=torch.int32),
    }


def offsets_of(counts: torch.Tensor, before: int, routing: Routing) -> torch.Tensor:
    """expert_offsets, in both types that it may have."""
    offsets = before + torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    return offsets.to(torch.int64 if routing.top_k % 2 else torch.int32)


@dataclass(frozen=True)
class Problem:
    """Arguments of moe_gemm, and what they stand for: `exact` and `plain` [rows, columns] per row of out, NaN in rows
    that are not to be written."""

    mixture: Mixture
    layout: str
    x: torch.Tensor
    x_scale: torch.Tensor | None
    routing: dict[str, torch.Tensor]
    topk_weights: torch.Tensor | None
    exact: torch.Tensor
    plain: torch.Tensor

    def __str__(self) -> str:
        mixture = self.mixture
        return f"{self.layout} {mixture.case} {mixture.routing} {mixture.epilogue}"

    @property
    def args(self) -> tuple:
        """The positional arguments of the op."""
        mixture, epilogue = self.mixture, self.mixture.epilogue
        names = ("sorted_token_ids", "expert_ids", "num_tokens_post_padded", "expert_offsets", "expert_counts")
        return (
            *(self.x, self.x_scale, mixture.experts.packed, mixture.scale2, mixture.bias, mixture.case.desc),
            *(self.op_layout, *map(self.routing.get, names), self.topk_weights, mixture.routing.top_k),
            *(epilogue.activation, list(epilogue.args)),
        )

    @property
    def op_layout(self) -> str:
        return "indexed" if self.layout == "sorted" else self.layout

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.x.shape[:-1], self.exact.shape[1]) if self.layout == "masked" else tuple(self.exact.shape)

    @property
    def written(self) -> torch.Tensor:
        """bool [rows]."""
        return ~self.exact.isnan().any(dim=1)

    def workspace(self) -> torch.Tensor:
        """As much as the functional op takes; full of 0xFF bytes."""
        desc, top_k = self.mixture.case.desc, self.mixture.routing.top_k
        size = _ops._moe_gemm_workspace_bytes(self.x, desc, self.op_layout, top_k)
        return torch.full((size,), 0xFF, dtype=torch.uint8, device=self.x.device)

    def overwrite(self, other: Problem) -> None:
        """Puts the other's tokens and routing, of the same shapes, into the tensors of this."""
        mine, theirs = (
            (given.x, given.x_scale, given.topk_weights, *given.routing.values()) for given in (self, other)
        )
        for target, source in zip(mine, theirs, strict=True):
            if target is not None:
                target.copy_(source)


def lay_out(
    mixture: Mixture,
    layout: str,
    *,
    block: int = 16,
    capacity: int | None = None,
    pitched: bool = True,
    skew: int = 0,
) -> Problem:
    """block: of the layout "indexed". capacity: of "masked"; without it two rows more than the fullest expert has.
    pitched, skew: see `amid_nan`."""
    routing, device = mixture.routing, mixture.x.device.type
    local, experts = routing.local(), routing.experts
    by_expert = local.argsort(stable=True)[int((local < 0).sum()) :]
    counts = local[by_expert].bincount(minlength=experts)
    row_of = by_expert - by_expert  # of out, where by_expert's pairs go
    if layout == "indexed":
        tensors, shape, row_of, rows = aligned(routing, block), (routing.tokens,), by_expert, len(local)
    elif layout == "sorted":
        before = routing.tokens % 3  # elements that no expert takes
        ids = torch.full((len(local) + 5,), -1)
        ids[before : before + len(by_expert)] = by_expert
        tensors = {"sorted_token_ids": ids.int(), "expert_offsets": offsets_of(counts, before, routing)}
        shape, row_of, rows = (routing.tokens,), by_expert, len(local)
    elif layout == "contiguous":
        before, after = routing.tokens % 3, 3 if routing.tokens else 0  # rows that no expert takes
        rows = before + len(local) + after
        shape, row_of = (rows,), before + torch.arange(len(by_expert))
        tensors = {"expert_offsets": offsets_of(counts, before, routing)}
    else:
        capacity = capacity if capacity is not None else int(counts.max()) + 2 if routing.tokens else 0
        rows, shape = experts * capacity, (experts, capacity)
        starts = counts.cumsum(0) - counts
        expert = local[by_expert]
        row_of = expert * capacity + torch.arange(len(by_expert)) - starts[expert]
        tensors = {"expert_counts": counts.int()}

    by_expert, row_of = by_expert.to(device), row_of.to(device)
    token = by_expert // routing.top_k
    x_row = token if layout in ("indexed", "sorted") else row_of
    num_x_rows = torch.Size(shape).numel()
    x = amid_nan(num_x_rows, mixture.x.shape[1], mixture.x.dtype, device, pitched=pitched, skew=skew)
    x.view(INTEGER[x.element_size()])[x_row] = mixture.x.view(INTEGER[x.element_size()])[token]

    def spread(values: torch.Tensor, size: int, to: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        integer = INTEGER[values.element_size()]
        result = torch.full((size, *values.shape[1:]), -1, dtype=integer, device=device)  # NaN in every float type
        result[to] = values.view(integer)[source]
        return result.view(values.dtype)

    x_scale, weights = mixture.x_scale, mixture.topk_weights
    if x_scale is not None and len(x_scale) == routing.tokens:
        x_scale = spread(x_scale, num_x_rows, x_row, token).view(*shape, *x_scale.shape[1:])
    return Problem(
        mixture,
        layout,
        x.unflatten(0, shape) if layout == "masked" else x,
        x_scale,
        {name: tensor.to(device) for name, tensor in tensors.items()},
        None if weights is None else spread(weights, rows, row_of, by_expert),
        spread(mixture.exact, rows, row_of, by_expert),
        spread(mixture.plain, rows, row_of, by_expert),
    )


INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # indexing has no fp8


# ---- checks

Run = Callable[[Problem, torch.Tensor], None]


def product(run: Run, problem: Problem, dtype: torch.dtype = torch.bfloat16, *, pitch: int = 0) -> torch.Tensor:
    """The result [rows, columns], written into NaN (rows `pitch` elements further apart than they need) and nowhere
    else: no byte of rows that no pair has, of what lies between rows, or of what lies around them."""
    rows, n = problem.exact.shape
    with guarded((rows, n), dtype, problem.x.device.type, pitch=n + pitch) as out:
        run(problem, out.unflatten(0, problem.out_shape[:-1]) if problem.layout == "masked" else out)
        result = out.clone()
    idle = result[~problem.written].view(torch.uint8)
    assert bool((idle == 0xFF).all()), f"{problem}: rows that no expert takes were written"
    return result


def check_exact(run: Run, problem: Problem, dtype: torch.dtype = torch.bfloat16, *, pitch: int = 8) -> None:
    """Of a simple mixture, bit for bit."""
    exact, actual = problem.exact[problem.written], product(run, problem, dtype, pitch=pitch)[problem.written]
    assert torch.equal(exact.float().double(), exact), "the case itself is not exact"
    assert_bits_equal(actual, exact.to(dtype) + 0.0, str(problem))


def check_random(run: Run, problem: Problem, dtype: torch.dtype = torch.bfloat16, *, pitch: int = 8) -> None:
    """As accurate as torch in the operand's type."""
    assert_as_accurate(product(run, problem, dtype, pitch=pitch), problem.exact, problem.plain, str(problem))


def check_identity(run: Run, pair: tuple, layout: str, device: str) -> None:
    """Every column of K through every expert: the dequantised weights come back bit for bit, of tables rounded once."""
    k = 208
    mixture = make_mixture(pair, 136, k, Routing("balanced", k, 3, 3), BARE, device, identity=True)
    assert_case_is_exact(pair, mixture.exact)
    check_exact(run, lay_out(mixture, layout))


def check_integers(run: Run, pair: tuple, layout: str, device: str) -> None:
    """Sums of small integers are exact, and so is all but the last rounding."""
    for n, k, gate_up, routing in [
        (200, 360, False, Routing("skewed", 17, 4, 8)),
        (72, 720, False, Routing("gaps", 300, 2, 5)),
        (208, 80, True, Routing("mapped", 33, 3, 4)),
    ]:
        mixture = make_mixture(pair, n, k, routing, Epilogue(), device, simple=True, gate_up=gate_up)
        check_exact(run, lay_out(mixture, layout))


def check_replays(run: Run, capture: Callable, recorded: Problem, problems: Sequence[Problem]) -> None:
    """What was recorded of one problem serves others, whose tokens and routing are written over its own: as accurately,
    and with the bits of a call of their own.

    capture: makes of a function one that does the same again.
    """
    out = torch.empty(recorded.out_shape, dtype=torch.bfloat16, device=recorded.x.device)
    run(recorded, out)  # what is loaded at the first call is loaded
    replay = capture(lambda: run(recorded, out))
    for problem in problems:
        recorded.overwrite(problem)
        out.view(torch.int16).fill_(-1)
        replay()
        rows = out.view(problem.exact.shape)
        assert_as_accurate(rows, problem.exact, problem.plain, str(problem))
        assert_bits_equal(rows, product(run, problem), f"recorded, then {problem}")


def replays(pair: tuple, n: int, k: int, tokens: int, layout: str, device: str) -> tuple[Problem, list[Problem]]:
    """A problem to record and those to put in its place: other routings, fewer tokens, none, and then its own."""
    routings = [
        Routing("one", tokens, 2, 8),
        Routing("mapped", tokens, 2, 8),
        Routing("gaps", tokens, 2, 8, used=tokens // 3),
        Routing("balanced", tokens, 2, 8, used=1),
        Routing("nobody", tokens, 2, 8),
        Routing("skewed", tokens, 2, 8),
    ]

    def problem(routing: Routing) -> Problem:
        return lay_out(make_mixture(pair, n, k, routing, Epilogue(), device), layout, capacity=2 * tokens)

    return problem(routings[-1]), [problem(routing) for routing in routings]
