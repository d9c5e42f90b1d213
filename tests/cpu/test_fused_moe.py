"""The MoE layer against the oracle and, bit for bit, against the ops that it is made of."""

from dataclasses import replace

import humming_ext
import numpy as np
import pytest
import torch
from moe_layers import BY_NAME, CASES, COMPOSED, LAYOUTS, LayerCase, composed, make_problem, quantise_tokens, routings
from moe_routings import Routing
from oracle.activations import quantise
from oracle.rounding import ROUND, round_bf16
from oracle.routing import moe_reduce
from support import WeightCase, array, assert_bits_equal, tensor

ops = torch.ops.humming
# Every case with every routing in the layout indexed, and in the others by turns.
PROBLEMS = [
    (case, routing, layout)
    for first, case in enumerate(CASES)
    for turn, routing in enumerate(routings(case), first)
    for layout in ("indexed", LAYOUTS[1 + turn % 2])
]
V4, V4_FP8, GPT_OSS, QWEN3, QWEN3_INT8 = (
    BY_NAME[name] for name in ("v4-bf16", "v4-fp8_g128", "gpt_oss-bf16", "qwen3-bf16", "qwen3-int8")
)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def mapped(case: LayerCase, tokens: int = 33) -> Routing:
    """Experts elsewhere, empty slots, experts without tokens."""
    return Routing("mapped", tokens, case.top_k, case.experts)


@pytest.mark.parametrize(
    ("case", "routing", "layout"), PROBLEMS, ids=["-".join(map(str, problem)) for problem in PROBLEMS]
)
def test_layers_are_as_accurate_as_their_roundings(case: LayerCase, routing: Routing, layout: str) -> None:
    problem = make_problem(case, routing, layout)
    problem.check(problem.run())


@pytest.mark.parametrize("case", [V4_FP8, QWEN3_INT8], ids=str)
@pytest.mark.parametrize("tokens", [1000, 4096])
def test_many_tokens(case: LayerCase, tokens: int) -> None:
    small = replace(case, hidden=128, inner=64, experts=8, top_k=2)
    problem = make_problem(small, Routing("skewed", tokens, 2, 8))
    problem.check(problem.run())


@layouts
@pytest.mark.parametrize("case", COMPOSED, ids=str)
def test_layers_are_the_composition_of_their_ops(case: LayerCase, layout: str) -> None:
    """So no quantisation is left out (vllm#51661, vllm#38066: silently W4A16), no bias (tokenspeed#1036) and no clamp
    (the limit of SwiGLU was missed on one path)."""
    problem = make_problem(case, mapped(case), layout)
    assert_bits_equal(problem.run()[problem.written], composed(problem)[problem.written])


@pytest.mark.parametrize(("operand", "down"), [("bf16", "bf16"), ("s8", "s8"), ("bf16", "s8"), ("s8", "bf16")])
def test_small_integers_give_the_bits_of_the_oracle(operand: str, down: str) -> None:
    """Sums are exact, so every bit follows from the documented roundings: of the activated rows, of every expert's
    result, and of the weighted sum, one fma per slot in fp32."""
    tokens, top_k, experts, hidden, inner = 21, 3, 5, 72, 48
    w13 = WeightCase("int4", operand, n=inner, k=hidden, experts=experts)
    w2 = WeightCase("int4", down, n=hidden, k=inner, experts=experts)
    first, second = w13.make(), w2.make()
    rng = first.rng
    x = rng.integers(-3, 4, (tokens, hidden))
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k].copy()
    ids[rng.random(ids.shape) < 0.2] = -1
    weights = rng.random(ids.shape).astype(np.float32)
    add = round_bf16(rng.standard_normal((tokens, hidden)))

    def product(rows: np.ndarray, values: np.ndarray, to_int8: bool) -> np.ndarray:
        scale = np.float32(1)
        if to_int8:
            rows, scale = quantise(rows, "int8", 0)
        sums = rows.astype(np.float64) @ values.T
        assert np.abs(sums).max() < 2**24
        return sums.astype(np.float32) * scale

    y = np.zeros((tokens, top_k, hidden))
    for token, slot in np.argwhere(ids >= 0):
        expert = ids[token, slot]
        h = np.maximum(product(x[token : token + 1], first.values()[expert], operand == "s8"), 0)
        y[token, slot] = round_bf16(product(round_bf16(h * h), second.values()[expert], down == "s8"))
    expected = moe_reduce(y, weights, topk_ids=ids, scale=1.5, add=add)

    packed = (first.pack()[0], None, None, w13.desc, second.pack()[0], None, None, w2.desc)
    routing = ("indexed", torch.from_numpy(weights), torch.from_numpy(ids), None, None, None)
    options = {"activation": "relu2_no_mul", "scale": 1.5, "add": tensor(add, "bf16")}
    out = ops.fused_moe(tensor(x, "bf16"), None, *packed, *routing, **options)
    np.testing.assert_array_equal(array(out), ROUND["bf16"](expected))


# ---- repeats


@layouts
@pytest.mark.parametrize("case", [V4, V4_FP8, QWEN3_INT8], ids=str)
def test_runs_and_thread_counts_give_the_same_bits(case: LayerCase, layout: str) -> None:
    """An aligner whose order depends on atomics, and sums by atomics, changed the results of peers between runs."""
    problem = make_problem(case, mapped(case), layout)
    first = problem.run()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert_bits_equal(problem.run(), first, f"{count} threads")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("case", [V4, V4_FP8, QWEN3_INT8], ids=str)
def test_layouts_agree_bit_for_bit(case: LayerCase) -> None:
    """The result of a pair does not depend on how its row came to its expert."""
    routing = Routing("gaps", 20, 1, case.experts)
    one = replace(case, top_k=1, options=())
    indexed, contiguous, masked = (make_problem(one, routing, layout, shared=False) for layout in LAYOUTS)
    indexed.rows = (torch.ones(20, 1), indexed.rows[1])
    contiguous.rows, masked.rows = contiguous.rows[:1], masked.rows[:1]
    by_expert = indexed.run()[routing.local().argsort(stable=True)]
    assert_bits_equal(contiguous.run()[contiguous.written], by_expert, "contiguous")
    assert_bits_equal(masked.run()[masked.written], by_expert, "masked")


@pytest.mark.parametrize("case", [V4, V4_FP8, GPT_OSS, QWEN3_INT8], ids=str)
def test_a_token_does_not_depend_on_the_batch(case: LayerCase) -> None:
    """vllm#46639, vllm#57016: results changed with the other tokens of a call."""
    problem = make_problem(case, mapped(case))
    together, x, rows, shared = problem.run(), problem.x, problem.rows, problem.options["shared_output"]
    for token in (0, 7, 32):
        one = slice(token, token + 1)
        problem.x, problem.rows = x[one], tuple(part[one] for part in rows)
        problem.options["shared_output"] = shared[one]
        assert_bits_equal(problem.run(), together[one], f"token {token}")


@layouts
def test_the_hint_changes_nothing(layout: str) -> None:
    """vllm#56744: a kernel was chosen for the capacity; the number of rows that are there is a hint, no more."""
    problem = make_problem(V4, mapped(V4), layout)
    first = problem.run()
    problem.options["expected_tokens"] = 1
    assert_bits_equal(problem.run(), first)


# ---- routing


def test_every_slot_has_its_own_weight() -> None:
    """vllm#48895: weights met the wrong experts. Swapping slots changes only the order of the sum."""
    problem = make_problem(GPT_OSS, Routing("skewed", 9, GPT_OSS.top_k, GPT_OSS.experts))
    weights, ids = problem.rows
    problem.rows = (weights.flip(1), ids.flip(1).contiguous())
    problem.check(problem.run())
    problem.rows = (weights.flip(1).contiguous(), ids)
    with pytest.raises(AssertionError, match="worst error"):
        problem.check(problem.run())


@pytest.mark.parametrize("case", [V4, QWEN3_INT8], ids=str)
def test_tokens_of_no_expert_here_are_the_shared_output(case: LayerCase) -> None:
    """vllm#47281: ids of -1; and what the workspace held before may be NaN."""
    problem = make_problem(case, Routing("nobody", 7, case.top_k, case.experts))
    assert_bits_equal(problem.run(), problem.options.pop("shared_output"))
    assert_bits_equal(problem.run(), torch.zeros(7, case.hidden, dtype=torch.bfloat16))


@layouts
@pytest.mark.parametrize("case", [V4, V4_FP8, GPT_OSS, QWEN3_INT8], ids=str)
def test_no_tokens(case: LayerCase, layout: str) -> None:
    """A rank that gets no token (the empty batches of DeepEP)."""
    problem = make_problem(case, Routing("balanced", 0, case.top_k, case.experts), layout)
    lead = {"indexed": (0,), "contiguous": (0,), "masked": (case.experts, 0)}[layout]
    problem.x = problem.x.new_empty(*lead, case.hidden)
    if layout != "indexed":
        routed = torch.zeros_like(problem.rows[0])
        problem.rows = (routed, torch.ones(lead))
    assert tuple(problem.call().shape) == (*lead, case.hidden)
    assert problem.run().shape == (0, case.hidden)


def test_an_expert_map_is_the_same_as_ids_of_minus_one() -> None:
    problem = make_problem(QWEN3, mapped(QWEN3))
    first, ids = problem.run(), problem.rows[1]
    assert problem.expert_map is not None
    local = torch.where(ids >= 0, problem.expert_map[ids.clamp(min=0)].to(ids.dtype), -1)
    problem.rows, problem.expert_map = (problem.rows[0], local), None
    assert_bits_equal(problem.run(), first)


# ---- tokens that come quantised


@layouts
@pytest.mark.parametrize("case", [V4_FP8, BY_NAME["v4-fp8"], QWEN3_INT8], ids=str)
def test_quantised_tokens_give_the_bits_of_the_layers_own(case: LayerCase, layout: str) -> None:
    """As DeepEP dispatches them: fp8 with a float32 scale per 128 columns (sglang#24289: garbled tokens with mxfp4)."""
    problem = make_problem(case, mapped(case), layout)
    first = problem.run()
    quantise_tokens(problem)
    assert_bits_equal(problem.run(), first)


# ---- one graph


@layouts
@pytest.mark.parametrize("case", [V4, V4_FP8], ids=str)
@pytest.mark.parametrize("form", ["functional", "out"])
def test_compile_as_one_graph(case: LayerCase, layout: str, form: str) -> None:
    torch.compiler.reset()
    problem = make_problem(case, mapped(case, 12), layout)
    wide = {"out": torch.empty(problem.out_shape, dtype=torch.bfloat16)}
    wide["workspace"] = torch.empty(problem.workspace_shape, dtype=torch.uint8)

    def around(x: torch.Tensor, *rows: torch.Tensor) -> torch.Tensor:
        given = {} if form == "functional" else wide
        return getattr(problem.layer.module, "forward" if layout == "indexed" else layout)(x * 2, *rows, **given) + 1

    problem.layer.module.expert_map = problem.expert_map
    arguments = (problem.x, *problem.rows)
    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")(*arguments).clone()
    eager = around(*arguments)
    rows = problem.written
    assert_bits_equal(compiled.view(-1, case.hidden)[rows], eager.view(-1, case.hidden)[rows])


# ---- the module


def test_a_module_keeps_its_weights_in_its_state() -> None:
    problem = make_problem(GPT_OSS, mapped(GPT_OSS))
    first, state = problem.run(), problem.layer.module.state_dict()
    names = ("packed", "scale2", "desc", "bias")
    assert set(state) == {f"{weight}.{name}" for weight in ("w13", "w2") for name in names}
    zeros = {name: torch.zeros_like(value) if "desc" not in name else value for name, value in state.items()}
    saved = {name: value.clone() for name, value in state.items()}
    problem.layer.module.load_state_dict(zeros)
    problem.layer.module.load_state_dict(saved)
    assert_bits_equal(problem.run(), first)
    with pytest.raises(ValueError, match=r"w13.desc"):
        problem.layer.module.load_state_dict({**saved, "w13.desc": saved["w2.desc"]})


def test_a_module_on_bfloat16_keeps_its_scales() -> None:
    module = make_problem(QWEN3, mapped(QWEN3)).layer.module
    assert module.to(torch.bfloat16).w13.scale2.dtype == torch.float32


def test_a_module_holds_its_weights_once() -> None:
    """sglang#38092: 3.5 GiB of weights stayed allocated beside their packed form."""
    module = make_problem(GPT_OSS, mapped(GPT_OSS)).layer.module
    weights = (module.w13.weight, module.w2.weight)
    again = humming_ext.FusedMoE(*weights, w13_bias=module.w13.bias, w2_bias=module.w2.bias, activation="swigluoai")
    assert [part.weight.packed.data_ptr() for part in (again.w13, again.w2)] == [w.packed.data_ptr() for w in weights]
    biases = sum(part.bias.nbytes + part.desc.nbytes for part in (again.w13, again.w2))
    assert sum(tensor.nbytes for tensor in again.buffers()) == biases + sum(weight.nbytes for weight in weights)


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_shards_of_the_inner_size_add_up(ranks: int) -> None:
    """Tensor parallelism, by shards that are no multiple of a tile (sglang#25923: a model did not start on 8 GPUs)."""
    experts, hidden, inner, group = 3, 96, 192, 32
    rng = np.random.default_rng(ranks)

    def random_weight(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        scale = rng.uniform(0.01, 0.03, (*shape[:-1], shape[-1] // group))
        return torch.from_numpy(rng.integers(0, 16, shape).astype(np.uint8)), torch.from_numpy(scale).bfloat16()

    gate, up = random_weight(experts, inner, hidden), random_weight(experts, inner, hidden)
    down = random_weight(experts, hidden, inner)
    spec = humming_ext.QuantSpec(humming_ext.WeightFormat.int4, group=group, scale_dtype=torch.bfloat16)
    x, ids = torch.from_numpy(rng.standard_normal((9, hidden))).bfloat16(), torch.arange(18).view(9, 2) % experts
    weights = torch.from_numpy(rng.uniform(0.1, 1, (9, 2))).float()

    def layer_of(rank: int, ranks: int) -> torch.Tensor:
        size = inner // ranks
        rows = slice(rank * size, (rank + 1) * size)
        columns = slice(rows.start // group, rows.stop // group)
        gate_up = [torch.cat([a[:, rows], b[:, rows]], dim=1) for a, b in zip(gate, up, strict=True)]
        w13 = humming_ext.PackedWeight.pack(*gate_up, spec=replace(spec, gate_up=True))
        w2 = humming_ext.PackedWeight.pack(down[0][..., rows], down[1][..., columns], spec=spec)
        return humming_ext.FusedMoE(w13, w2)(x, weights, ids).double()

    whole = layer_of(0, 1)
    shards = torch.stack([layer_of(rank, ranks) for rank in range(ranks)])
    # A rounding to bf16 of every expert's result and one of their sum, in the layer and in each shard.
    error = (shards.sum(0) - whole).abs().max() / torch.cat([shards, whole[None]]).abs().sum(0).max()
    assert error <= 2 * 2**-8


def test_the_workspace_grows_with_the_rows() -> None:
    module = make_problem(QWEN3_INT8, mapped(QWEN3_INT8)).layer.module
    for layout in LAYOUTS:
        sizes = [module.workspace_shape(rows, 8, layout=layout)[0] for rows in (0, 1, 7, 64, 1000)]
        assert sizes == sorted(sizes)


def test_one_workspace_serves_fewer_tokens() -> None:
    """Sized for the most tokens of any call, as a captured graph needs it."""
    workspace = torch.full(
        make_problem(V4_FP8, mapped(V4_FP8)).layer.module.workspace_shape(64, V4_FP8.top_k), 0xFF, dtype=torch.uint8
    )
    for tokens in (64, 3, 0, 17):
        problem = make_problem(V4_FP8, Routing("skewed", tokens, V4_FP8.top_k, V4_FP8.experts))
        out = torch.full(problem.out_shape, float("nan"), dtype=torch.bfloat16)
        problem.check(problem.call(out=out, workspace=workspace))


def test_bad_modules_and_calls() -> None:
    module = make_problem(QWEN3, mapped(QWEN3)).layer.module
    w13, w2 = module.w13.weight, module.w2.weight
    with pytest.raises(ValueError, match="bias: shape"):
        humming_ext.FusedMoE(w13, w2, w13_bias=torch.zeros(16, 3))
    with pytest.raises(RuntimeError, match="neither x nor the activated rows are quantised; pass 0"):
        humming_ext.FusedMoE(w13, w2, activation_group=128)
    fewer = humming_ext.PackedWeight(w2.packed[:8], w2.scale2[:8], [*w2.desc[:5], 8, *w2.desc[6:]])
    with pytest.raises(RuntimeError, match="16 and 8 experts"):
        humming_ext.FusedMoE(w13, fewer)
    x, weights, ids = torch.zeros(2, 192).bfloat16(), torch.ones(2, 8), torch.zeros(2, 8, dtype=torch.int32)
    with pytest.raises(ValueError, match="out, workspace: pass both"):
        module(x, weights, ids, out=x)
