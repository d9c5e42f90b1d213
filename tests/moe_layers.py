"""MoE layers to hold fused_moe against, with the shapes of known models scaled down, on the CPU and on a GPU.

`make_problem` gives one call: the tokens of a routing in a layout, with NaN wherever the layer may not read, and what
the oracle makes of it, with NaN in every row that is not to be written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import humming_ext
import numpy as np
import torch
from moe_routings import Routing
from oracle.activations import quantise, quantised_values
from oracle.layer import exact, expert_results, fused_moe
from oracle.matmul import scaled_rows
from oracle.rounding import ROUND, round_bf16
from support import TORCH, WeightCase, assert_as_accurate, guarded, operand_rounded, tensor

ops = torch.ops.humming
LAYOUTS = ("indexed", "contiguous", "masked")
QUANTISED = {"e4m3": "e4m3", "s8": "int8", "s4": "int4"}  # operand -> what rows are quantised to
NAN = float("nan")


@dataclass(frozen=True)
class LayerCase:
    """What a model's layer is, and what it computes in."""

    name: str
    weight: WeightCase  # format, operand and scales of both weights
    hidden: int
    inner: int
    experts: int = 16
    top_k: int = 4
    activation: str = "silu"
    args: tuple[float, ...] = ()
    bias: str | None = None
    interleaved: bool = False
    down_operand: str | None = None  # as gate_up
    group: int = 0  # columns per scale of quantised rows
    options: tuple[tuple[str, object], ...] = ()  # further ones of FusedMoE

    def __str__(self) -> str:
        return self.name

    @property
    def gated(self) -> bool:
        return not self.activation.endswith("_no_mul")

    @property
    def weights(self) -> tuple[WeightCase, WeightCase]:
        """Of gate_up and down."""
        order = "plain" if not self.gated else "gate_up_interleaved" if self.interleaved else "gate_up"
        shared = replace(self.weight, experts=self.experts)
        n = 2 * self.inner if self.gated else self.inner
        return (
            replace(shared, n=n, k=self.hidden, gate_up=self.gated, row_order=order),
            replace(shared, n=self.hidden, k=self.inner, operand=self.down_operand or self.weight.operand),
        )


def mxfp4(operand: str) -> WeightCase:
    return WeightCase("e2m1", operand, "e8m0", 32)


def int4(operand: str) -> WeightCase:
    return WeightCase("int4", operand, "bf16", 128)


def v4(name: str, operand: str, **changes) -> LayerCase:
    """DeepSeek-V4-Flash: mxfp4, SwiGLU with a limit of 10, six of many experts."""
    case = LayerCase(f"v4-{name}", mxfp4(operand), hidden=192, inner=128, top_k=6, args=(10.0,))
    return replace(case, **changes)


def gpt_oss(name: str, operand: str, **changes) -> LayerCase:
    """gpt-oss: mxfp4 with interleaved gate and up, biases, sizes that are no multiple of 64."""
    shape = {"hidden": 360, "inner": 360, "top_k": 4}
    case = LayerCase(f"gpt_oss-{name}", mxfp4(operand), **shape, activation="swigluoai", bias="bf16", interleaved=True)
    return replace(case, **changes)


def qwen3(name: str, operand: str, **changes) -> LayerCase:
    """Qwen3: int4 in groups of 128, eight of many experts."""
    return replace(LayerCase(f"qwen3-{name}", int4(operand), hidden=192, inner=192, top_k=8), **changes)


ON_INPUT = (("apply_router_weight_on_input", True),)
SCALED = (("routed_scaling_factor", 2.5),)
INT4_CHANNEL = WeightCase("int4", "s8")
CASES = [
    v4("bf16", "bf16", options=SCALED),
    v4("fp8", "e4m3", options=SCALED),
    v4("fp8_g128", "e4m3", group=128),
    v4("fp8_then_bf16", "e4m3", down_operand="bf16"),
    v4("bf16_then_fp8", "bf16", down_operand="e4m3"),
    v4("relu2", "bf16", activation="relu2_no_mul", args=(), inner=80, bias="fp16"),
    v4("on_input_bf16", "bf16", top_k=1, options=ON_INPUT),
    v4("on_input_fp8", "e4m3", top_k=1, options=ON_INPUT),
    gpt_oss("bf16", "bf16"),  # vllm#47769: mxfp4 with sizes that are no multiple of 64
    gpt_oss("fp8", "e4m3"),
    gpt_oss("fp8_g128", "e4m3", group=128, bias="fp32"),
    gpt_oss("nvfp4", "bf16", weight=WeightCase("e2m1", "bf16", "e4m3", 16)),  # vllm#48895
    qwen3("bf16", "bf16"),
    qwen3("fp16", "fp16", options=SCALED),
    qwen3("gptq", "bf16", weight=WeightCase("uint4", "bf16", "fp16", 64, "integer")),  # vllm#47281: zero points
    qwen3("fp8", "e4m3"),
    qwen3("int8", "s8"),  # humming#13: 4-bit weights and int8 rows were broken
    qwen3("int8_g128", "s8", group=128),
    qwen3("bf16_then_int8", "bf16", down_operand="s8"),
    qwen3("int8_channel", "s8", weight=INT4_CHANNEL, inner=104),  # vllm#48624: gate and up are padded each
    qwen3("int4", "s4", weight=WeightCase("int4", "s4")),
    qwen3("gelu_tanh", "s8", weight=INT4_CHANNEL, activation="gelu_tanh"),
    qwen3("on_input_int8", "s8", weight=INT4_CHANNEL, top_k=1, options=ON_INPUT),
]
BY_NAME = {case.name: case for case in CASES}
# No op multiplies 16-bit rows by their weights; the layer makes scales of them.
COMPOSED = [case for case in CASES if case.name != "v4-on_input_bf16"]


def routings(case: LayerCase) -> list[Routing]:
    """Token counts and kinds of routing: every kind, and every count once."""
    kinds = [
        ("balanced", 1),
        ("skewed", 3),
        ("mapped", 16),
        ("gaps", 64),
        ("skewed", 100),
        ("nobody", 5),
        ("balanced", 0),
    ]
    kinds = [(kind, tokens) for kind, tokens in kinds if kind != "gaps" or case.top_k <= case.experts // 2]
    all_to_one = Routing("one", 33, case.top_k, case.experts)
    return [*(Routing(kind, tokens, case.top_k, case.experts) for kind, tokens in kinds), all_to_one]


@dataclass(frozen=True)
class Layer:
    """A module, and its weights and biases in float64: as they are, and rounded to the operand."""

    case: LayerCase
    module: humming_ext.FusedMoE
    values: tuple[np.ndarray, np.ndarray]
    rounded: tuple[np.ndarray, np.ndarray]
    biases: tuple[np.ndarray | None, np.ndarray | None]


GAIN = 4  # standard deviation of gate and up, so that limits cut some


@lru_cache(maxsize=4)
def make_layer(case: LayerCase, device: str = "cpu") -> Layer:
    packed, values, rounded, biases = [], [], [], []
    for turn, (weight, gain) in enumerate(zip(case.weights, (GAIN, 1), strict=True)):
        weights = weight.make(turn)
        data, row_scale = weights.pack()
        plain = weights.values()
        size = gain / (np.sqrt(weight.k) * plain.std())
        scale2 = ROUND["fp32"](weights.rng.uniform(0.5, 1, (case.experts, weight.n)) * size)
        given = torch.from_numpy(scale2).float()
        packed.append(humming_ext.PackedWeight(data, given if row_scale is None else given * row_scale, weight.desc))
        values.append(plain * scale2[..., None])
        rounded.append(operand_rounded(plain, weight.operand) * scale2[..., None])
        biases.append(None if case.bias is None else ROUND[case.bias](weights.rng.standard_normal(scale2.shape)))
    tensors = [None if bias is None else tensor(bias, case.bias) for bias in biases]
    module = humming_ext.FusedMoE(
        *packed,
        w13_bias=tensors[0],
        w2_bias=tensors[1],
        activation=case.activation,
        activation_args=case.args,
        activation_group=case.group,
        **dict(case.options),
    )
    module.to(device)
    if device == "cuda":
        torch.cuda.synchronize()  # a product may fetch weights before the kernel ahead of it has ended
    return Layer(case, module, tuple(values), tuple(rounded), tuple(biases))


def through_quantisation(operand: str, group: int) -> Callable[[np.ndarray], np.ndarray]:
    """Rows as the tensor core gets them: bf16 numbers, quantised or not."""

    def rounding(rows: np.ndarray) -> np.ndarray:
        rows = ROUND["fp16"](rows) if operand == "fp16" else round_bf16(rows)
        if operand not in QUANTISED or rows.size == 0:
            return rows
        codes, scale = quantise(rows, QUANTISED[operand], group)
        return scaled_rows(quantised_values(codes, QUANTISED[operand]), scale, group)

    return rounding


@dataclass
class Problem:
    """One call of a layer. `expert_map` goes to the module; `exact` and `plain` are [rows, outer]."""

    layer: Layer
    layout: str
    x: torch.Tensor
    rows: tuple[torch.Tensor, ...]  # what follows x in the call: routing and weights
    options: dict[str, torch.Tensor] = field(default_factory=dict)
    expert_map: torch.Tensor | None = None
    exact: np.ndarray = field(default_factory=lambda: np.empty(0))
    plain: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype if self.x.dtype == torch.float16 else torch.bfloat16

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.x.shape[:-1], self.layer.case.hidden)

    @property
    def written(self) -> torch.Tensor:
        """bool [rows]."""
        return torch.from_numpy(~np.isnan(self.exact).any(axis=1))

    @property
    def workspace_shape(self) -> list[int]:
        top_k = self.layer.case.top_k if self.layout == "indexed" else 1
        rows = self.x.shape[:-1].numel()
        return self.layer.module.workspace_shape(
            rows, top_k, layout=self.layout, x_dtype=self.x.dtype, out_dtype=self.dtype
        )

    def call(self, **given) -> torch.Tensor:
        """The module's result; `given`: out and workspace, or nothing."""
        module = self.layer.module
        module.expert_map = self.expert_map
        method = {"indexed": module, "contiguous": module.contiguous, "masked": module.masked}[self.layout]
        return method(self.x, *self.rows, **self.options, **given)

    def run(self) -> torch.Tensor:
        """The result [rows, outer], written into NaN from a workspace of NaN, and nothing written around them."""
        device = self.x.device.type
        with (
            guarded(self.out_shape, self.dtype, device) as out,
            guarded(tuple(self.workspace_shape), torch.uint8, device) as workspace,
        ):
            assert self.call(out=out, workspace=workspace) is out
            return out.clone().view(-1, self.layer.case.hidden)

    def check(self, result: torch.Tensor) -> None:
        """As accurate as the same layer with the roundings that it may make; rows of no expert are as they were."""
        idle = result.cpu()[~self.written]
        assert bool((idle.view(torch.int16) == -1).all()), "rows that no expert takes were written"
        assert_as_accurate(result.cpu(), self.exact, self.plain, f"{self.layer.case} {self.layout}")


def make_problem(
    case: LayerCase,
    routing: Routing,
    layout: str = "indexed",
    device: str = "cpu",
    *,
    shared: bool = True,
    capacity: int | None = None,
) -> Problem:
    """shared: with the result of a shared expert to add, in the layout "indexed". capacity: of the layout "masked";
    without it two rows more than the fullest expert has."""
    layer = make_layer(case, device)
    rng = np.random.default_rng([routing.tokens, len(routing.kind), case.hidden])
    w13, w2 = case.weights
    kind = "fp16" if w13.operand == "fp16" else "bf16"
    pairs, local = routing.pairs().numpy(), routing.local().numpy()
    weights = ROUND["fp32"](rng.uniform(0.1, 1, len(pairs)))
    x = ROUND[kind](rng.standard_normal((routing.tokens, case.hidden)))
    on_input = dict(case.options).get("apply_router_weight_on_input", False)
    through_x, through_h = (through_quantisation(weight.operand, case.group) for weight in (w13, w2))
    common = {"biases": layer.biases, "activation": case.activation, "args": case.args}

    if layout == "indexed":
        shape = (routing.tokens, case.top_k)
        add = ROUND[kind](rng.standard_normal(x.shape)) if shared else None
        scale = dict(case.options).get("routed_scaling_factor", 1.0)
        reference = {**common, "scale": scale, "add": add, "weight_on_input": on_input}

        def layer_of(rows, values, **rounding):
            return fused_moe(rows, local.reshape(shape), weights.reshape(shape), *values, **reference, **rounding)

        want, plain = (
            layer_of(x, layer.values),
            layer_of(through_x(x), layer.rounded, inner=through_h, result=ROUND[kind]),
        )
        idle = (local.reshape(shape) < 0).all(axis=1)
        given = np.where(idle[:, None], NAN, x)
        ids = torch.from_numpy(pairs.reshape(shape)).to(torch.int32 if routing.tokens % 2 else torch.int64)
        rows = (torch.from_numpy(weights.reshape(shape)).float(), ids)
        options = {} if add is None else {"shared_output": tensor(add, kind)}
        mapped = routing.expert_map.int() if routing.kind == "mapped" else None
        problem = Problem(layer, layout, tensor(given, kind), rows, options, mapped, want)
    else:
        order = np.argsort(local, kind="stable")[(local < 0).sum() :]  # pairs that go somewhere, by expert
        counts = np.bincount(local[order], minlength=case.experts)
        if layout == "contiguous":
            num_rows = 2 + len(local) + 3
            at = 2 + np.arange(len(order))
            offsets = torch.from_numpy(2 + np.concatenate([[0], counts.cumsum()]))
            routed = offsets.to(torch.int32 if routing.tokens % 2 else torch.int64)
            lead: tuple[int, ...] = (num_rows,)
        else:
            capacity = capacity or int(counts.max(initial=0)) + 2
            num_rows, lead = case.experts * capacity, (case.experts, capacity)
            at = local[order] * capacity + np.arange(len(order)) - (counts.cumsum() - counts)[local[order]]
            routed = torch.from_numpy(counts).int()
        expert = np.full(num_rows, -1)
        expert[at] = local[order]
        values = np.zeros((num_rows, case.hidden))
        values[at] = x[order // case.top_k]
        row_weights = np.ones(num_rows)
        row_weights[at] = weights[order]

        def layer_of(rows, weight_values, inner=exact):
            rows, factors = (rows * row_weights[:, None], None) if on_input else (rows, row_weights)
            return expert_results(rows, expert, *weight_values, **common, row_weights=factors, inner=inner)

        want, plain = layer_of(values, layer.values), layer_of(through_x(values), layer.rounded, through_h)
        given = np.where(expert[:, None] < 0, NAN, values)
        rows = (routed, torch.from_numpy(row_weights).float().view(lead))
        problem = Problem(layer, layout, tensor(given, kind).view(*lead, -1), rows, {}, None, want)
    problem.plain = torch.from_numpy(plain).to(TORCH[kind])
    problem.x, problem.rows = problem.x.to(device), tuple(part.to(device) for part in problem.rows)
    problem.options = {name: part.to(device) for name, part in problem.options.items()}
    problem.expert_map = None if problem.expert_map is None else problem.expert_map.to(device)
    return problem


def quantise_tokens(problem: Problem) -> None:
    """The tokens come quantised to the operand of the gate_up weight, as DeepEP dispatches them."""
    case, lead = problem.layer.case, problem.x.shape[:-1]
    dtype = TORCH[QUANTISED[case.weight.operand]]
    codes, scale = ops.quantize_activation(problem.x.flatten(0, -2), dtype, case.group)
    problem.x, problem.options["x_scale"] = codes.unflatten(0, lead), scale.unflatten(0, lead)


def composed(problem: Problem) -> torch.Tensor:
    """The layer as a sequence of ops, each of which other tests hold against the oracle: [rows, outer]."""
    module, case = problem.layer.module, problem.layer.case
    operands = [weight.operand for weight in case.weights]
    x, arguments = problem.x, (module.w13.arguments, module.w2.arguments)

    def quantised(rows: torch.Tensor, operand: str, factors: torch.Tensor | None = None) -> tuple:
        if operand not in QUANTISED:
            return rows, None
        codes, scale = ops.quantize_activation(rows.flatten(0, -2), TORCH[QUANTISED[operand]], case.group)
        scale = scale if factors is None else scale * factors.view(-1, 1)
        return codes.unflatten(0, rows.shape[:-1]), scale.unflatten(0, rows.shape[:-1])

    def product(rows: tuple, weight: tuple, *rest, **options) -> torch.Tensor:
        return ops.moe_gemm(*rows, *weight, *rest, **options)

    activation = (module.activation, module.activation_args)
    inner_dtype = torch.float16 if operands[1] == "fp16" else torch.bfloat16
    weights = problem.rows[0 if problem.layout == "indexed" else 1]
    on_input = module.apply_router_weight_on_input
    x_rows = quantised(x, operands[0], weights if on_input else None)
    if problem.layout != "indexed":
        routed = problem.rows[0]
        place = (None, None, None, *((routed, None) if problem.layout == "contiguous" else (None, routed)))
        h = product(x_rows, arguments[0], problem.layout, *place, None, 1, *activation, out_dtype=inner_dtype)
        factors = None if on_input else weights
        options = {"out_dtype": problem.dtype}
        y = product(quantised(h, operands[1]), arguments[1], problem.layout, *place, factors, 1, **options)
        return y.flatten(0, -2)
    ids = problem.rows[1]
    pairs, positions, blocks, num_rows, _ = ops.moe_align(ids, case.experts, 1, problem.expert_map)
    place = ("indexed", pairs, blocks[:, 0].contiguous()[: len(pairs)], num_rows, None, None, None)
    h = product(x_rows, arguments[0], *place, case.top_k, *activation, out_dtype=inner_dtype)
    y = product(quantised(h, operands[1]), arguments[1], *place, 1, out_dtype=problem.dtype)
    factors = torch.ones_like(weights) if on_input else weights
    y = y.view(*ids.shape, -1)
    add = problem.options.get("shared_output")
    return ops.moe_reduce(y, factors, positions.view(ids.shape), None, module.routed_scaling_factor, add)
