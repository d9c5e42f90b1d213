"""Bad input: every check raises, and its message names the operation and the argument."""

import humming_ext  # noqa: F401 - registers the ops
import pytest
import torch
from op_calls import CALLS, align_call, gemm_call, moe_call
from support import WeightCase

ops = torch.ops.humming


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_that_the_tests_spoil_are_correct(name: str) -> None:
    CALLS[name]()()


def i32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


E8M0 = torch.float8_e8m0fnu

# (call, the argument that the message names, what it becomes)
SPOILED = [
    # gemm: x
    ("gemm", "x", torch.zeros(3, 128)),
    ("gemm", "x", torch.zeros(3, 128).half()),
    ("gemm", "x", torch.zeros(128).bfloat16()),
    ("gemm", "x", torch.zeros(1, 3, 128).bfloat16()),
    ("gemm", "x", torch.zeros(3, 127).bfloat16()),
    ("gemm", "x", torch.zeros(128, 3).bfloat16().T),
    ("gemm", "x", torch.zeros(1, 128).bfloat16().expand(3, 128)),
    ("gemm", "x_scale", torch.ones(3)),
    # gemm: the weight
    ("gemm", "packed", torch.zeros(1, 4096, dtype=torch.int8)),
    ("gemm", "packed", torch.zeros(1, 4095, dtype=torch.uint8)),
    ("gemm", "packed", torch.zeros(2, 4096, dtype=torch.uint8)),
    ("gemm", "packed", torch.zeros(4096, dtype=torch.uint8)),
    ("gemm", "packed", torch.zeros(1, 8192, dtype=torch.uint8)[:, ::2]),
    ("gemm", "scale2", torch.ones(64).half()),
    ("gemm", "scale2", torch.ones(63)),
    ("gemm", "scale2", torch.ones(128)[::2]),
    ("gemm", "bias", torch.zeros(64).double()),
    ("gemm", "bias", torch.zeros(63)),
    ("gemm", "bias", torch.zeros(1, 64)),
    ("gemm", "bias", torch.zeros(128)[::2]),
    ("gemm", "desc", WeightCase("int4", n=64, k=128).desc[:9]),
    ("gemm", "desc", [2, *WeightCase("int4", n=64, k=128).desc[1:]]),
    ("gemm", "desc", [1, 99, *WeightCase("int4", n=64, k=128).desc[2:]]),
    ("gemm", "desc", WeightCase("int4", n=64, k=128, experts=1).desc),
    ("gemm", "desc", []),
    # gemm: outputs
    ("gemm", "out", torch.empty(3, 63)),
    ("gemm", "out", torch.empty(2, 64)),
    ("gemm", "out", torch.empty(64)),
    ("gemm", "out", torch.empty(3, 64).double()),
    ("gemm", "out", torch.empty(64, 3).T),
    ("gemm", "workspace", torch.empty(0)),
    # moe_gemm
    *((layout, "x", torch.zeros(4, 128)) for layout in ("indexed", "contiguous", "masked")),
    ("indexed", "x", torch.zeros(3, 4, 128).bfloat16()),
    ("contiguous", "x", torch.zeros(4, 64).bfloat16()),
    ("masked", "x", torch.zeros(4, 128).bfloat16()),
    ("masked", "x", torch.zeros(2, 4, 128).bfloat16()),
    ("indexed", "layout", "sorted"),
    ("indexed", "desc", WeightCase("int4", n=64, k=128).desc),
    ("indexed", "scale2", torch.ones(2)),
    ("indexed", "scale2", torch.ones(64)),
    ("indexed", "bias", torch.zeros(64)),
    ("indexed", "packed", torch.zeros(2, 1, 4096, dtype=torch.uint8)),
    ("indexed", "sorted_token_ids", None),
    ("indexed", "sorted_token_ids", torch.zeros(8, dtype=torch.int64)),
    ("indexed", "sorted_token_ids", torch.zeros(2, 4, dtype=torch.int32)),
    ("indexed", "sorted_token_ids", torch.zeros(7, dtype=torch.int32)),
    ("indexed", "sorted_token_ids", torch.zeros(16, dtype=torch.int32)[::2]),
    ("indexed", "expert_ids", None),
    ("indexed", "expert_ids", torch.zeros(2, dtype=torch.int64)),
    ("indexed", "expert_ids", i32(0, 3)),
    ("indexed", "expert_ids", i32(-2, 0)),
    ("indexed", "num_tokens_post_padded", None),
    ("indexed", "num_tokens_post_padded", i32(8, 8)),
    ("indexed", "num_tokens_post_padded", torch.tensor([8])),
    ("indexed", "num_tokens_post_padded", i32(9)),
    ("indexed", "num_tokens_post_padded", i32(-1)),
    ("indexed", "expert_offsets", i32(0, 1, 1, 4)),
    ("indexed", "expert_counts", i32(1, 0, 3)),
    ("indexed", "top_k", 0),
    ("indexed", "top_k", -1),
    ("indexed", "topk_weights", torch.ones(4)),
    ("indexed", "topk_weights", torch.ones(8).half()),
    ("indexed", "topk_weights", torch.ones(16)[::2]),
    ("indexed", "activation", "swish"),
    ("indexed", "activation_args", [1.0, 2.0, 3.0, 4.0]),
    ("indexed", "activation_args", [-1.0]),
    ("indexed", "expected_tokens", -1),
    ("indexed", "out", torch.empty(8, 64)),
    ("indexed", "out", torch.empty(4, 32)),
    ("sorted", "sorted_token_ids", None),
    ("sorted", "expert_offsets", None),
    ("sorted", "expert_offsets", i32(0, 2, 5)),
    ("sorted", "expert_offsets", i32(0, 2, 2, 7)),
    ("sorted", "expert_offsets", i32(0, 2, 1, 5)),
    ("sorted", "sorted_token_ids", i32(0, 3, -1, 1, 2, -1)),
    ("sorted", "sorted_token_ids", i32(0, 3, 8, 1, 2, -1)),
    ("sorted", "num_tokens_post_padded", i32(5)),
    ("sorted", "expert_counts", i32(1, 0, 3)),
    ("contiguous", "expert_offsets", None),
    ("contiguous", "expert_offsets", i32(0, 1, 4)),
    ("contiguous", "expert_offsets", torch.tensor([0.0, 1, 1, 4])),
    ("contiguous", "expert_offsets", i32(0, 2, 1, 4)),
    ("contiguous", "expert_offsets", i32(0, 1, 1, 5)),
    ("contiguous", "expert_offsets", i32(-1, 1, 1, 4)),
    ("contiguous", "sorted_token_ids", i32(0)),
    ("contiguous", "expert_ids", i32(0)),
    ("contiguous", "num_tokens_post_padded", i32(1)),
    ("contiguous", "expert_counts", i32(1, 0, 3)),
    ("contiguous", "topk_weights", torch.ones(3)),
    ("masked", "expert_counts", None),
    ("masked", "expert_counts", i32(1, 0)),
    ("masked", "expert_counts", torch.tensor([1, 0, 4])),
    ("masked", "expert_counts", i32(1, 0, 5)),
    ("masked", "expert_counts", i32(1, -1, 4)),
    ("masked", "expert_offsets", i32(0, 1, 1, 4)),
    ("masked", "out", torch.empty(12, 32)),
    # fused_moe
    ("layer", "x", torch.zeros(4, 128)),
    ("layer", "x", torch.zeros(4, 64).bfloat16()),
    ("layer", "x", torch.zeros(1, 4, 128).bfloat16()),
    ("layer", "x", torch.zeros(128, 4).bfloat16().T),
    ("layer-masked", "x", torch.zeros(4, 128).bfloat16()),
    ("layer-masked", "x", torch.zeros(2, 4, 128).bfloat16()),
    ("layer", "x_scale", torch.ones(4)),
    ("layer", "w13", torch.zeros(2, 1, 4096, dtype=torch.uint8)),
    ("layer", "w2", torch.zeros(3, 1, 4096, dtype=torch.int8)),
    ("layer", "w13_scale2", torch.ones(2)),
    ("layer", "w2_scale2", torch.ones(3).half()),
    ("layer", "w13_bias", torch.zeros(64)),
    ("layer", "w2_bias", torch.zeros(3, 64)),
    ("layer", "w13_desc", WeightCase("int4", n=64, k=128).desc),
    ("layer", "w13_desc", []),
    ("layer", "w2_desc", WeightCase("int4", n=96, k=32, experts=2).desc),
    ("layer", "w2_desc", WeightCase("int4", n=96, k=64, experts=3).desc),
    ("layer", "layout", "sorted"),
    ("layer", "topk_weights", None),
    ("layer", "topk_weights", torch.ones(4, 3)),
    ("layer", "topk_weights", torch.ones(4, 2).half()),
    ("layer", "topk_ids", None),
    ("layer", "topk_ids", torch.zeros(3, 2, dtype=torch.int32)),
    ("layer", "topk_ids", torch.zeros(4, 0, dtype=torch.int32)),
    ("layer", "topk_ids", torch.zeros(4, 2)),
    ("layer", "topk_ids", torch.zeros(2, 4, dtype=torch.int32).T),
    ("layer", "expert_map", torch.zeros(4, dtype=torch.int64)),
    ("layer", "expert_offsets", i32(0, 1, 1, 4)),
    ("layer", "expert_counts", i32(1, 0, 3)),
    ("layer", "activation", "swish"),
    ("layer", "activation", "silu_no_mul"),
    ("layer", "activation_args", [-1.0]),
    ("layer", "group", 64),
    ("layer", "add", torch.zeros(4, 64)),
    ("layer", "add", torch.zeros(4, 96).half()),
    ("layer", "apply_router_weight_on_input", True),
    ("layer", "expected_tokens", -1),
    ("layer", "out", torch.empty(4, 64)),
    ("layer", "out", torch.empty(4, 96).double()),
    ("layer", "workspace", torch.empty(1_000, dtype=torch.uint8)),
    ("layer", "workspace", torch.empty(20_000)),
    ("layer-contiguous", "topk_weights", torch.ones(3)),
    ("layer-contiguous", "topk_ids", torch.zeros(4, 1, dtype=torch.int32)),
    ("layer-contiguous", "expert_map", i32(0, 1, 2)),
    ("layer-contiguous", "expert_offsets", None),
    ("layer-contiguous", "scale", 2.0),
    ("layer-contiguous", "add", torch.zeros(4, 96)),
    ("layer-masked", "expert_counts", None),
    ("layer-masked", "out", torch.empty(12, 96)),
    # quantize_activation
    ("quantize", "x", torch.zeros(3, 128).double()),
    ("quantize", "x", torch.zeros(3, 128).int()),
    ("quantize", "x", torch.zeros(128)),
    ("quantize", "x", torch.zeros(128, 3).T),
    ("quantize", "x", torch.zeros(3, 0)),
    ("quantize", "group", 16),
    ("quantize", "group", -1),
    ("quantize", "group", 256),
    ("quantize", "activation", "tanh"),
    ("quantize", "activation_args", [1.0]),
    ("quantize", "static_scale", torch.ones(1)),  # together with a group
    ("quantize", "positions", i32(0, 1)),
    ("quantize", "positions", i32(0, 1, 2).long()),
    ("quantize", "positions", i32(0, 1, 2).view(3, 1)),
    ("quantize", "out", torch.empty(3, 127, dtype=torch.int8)),
    ("quantize", "out", torch.empty(3, 128)),
    ("quantize", "out", torch.empty(128, 3, dtype=torch.int8).T),
    ("quantize", "scale", torch.empty(3, 1)),
    ("quantize", "scale", torch.empty(3, 4).half()),
    ("quantize", "scale", torch.empty(4, 3).T),
    # moe_align
    ("align", "topk_ids", torch.zeros(4, 2)),
    ("align", "topk_ids", torch.zeros(4, 2, dtype=torch.int16)),
    ("align", "topk_ids", torch.zeros(2, 4, dtype=torch.int32).T),
    ("align", "topk_ids", i32(0, 1, 2, 3, 4, 0, 0, 0).view(4, 2)),
    ("align", "topk_ids", i32(0, 1, 2, -2, 0, 0, 0, 0).view(4, 2)),
    ("align", "num_experts", 0),
    ("align", "block", 0),
    ("align", "expert_map", torch.zeros(8, dtype=torch.int64)),
    ("align", "expert_map", torch.zeros(2, 4, dtype=torch.int32)),
    ("align", "expert_map", i32(4, 0, 0, 0)),
    ("align", "expert_map", i32(-2, 0, 0, 0)),
    ("align", "sorted_pairs", torch.empty(7, dtype=torch.int32)),
    ("align", "positions", torch.empty(8, dtype=torch.int64)),
    ("align", "blocks", torch.empty(5, 4, dtype=torch.int32)),
    ("align", "num_blocks", torch.empty(2, dtype=torch.int32)),
    ("align", "expert_offsets", torch.empty(4, dtype=torch.int32)),
    # moe_reduce
    ("reduce", "y", torch.zeros(4, 32)),
    ("reduce", "y", torch.zeros(4, 2, 16).double()),
    ("reduce", "y", torch.zeros(4, 16, 2).transpose(1, 2)),
    ("reduce", "topk_weights", torch.ones(4, 3)),
    ("reduce", "topk_weights", torch.ones(4, 2).half()),
    ("reduce", "topk_ids", torch.zeros(8, dtype=torch.int32)),
    ("reduce", "topk_ids", torch.zeros(4, 2, dtype=torch.int16)),
    ("reduce", "num_valid_tokens", torch.tensor([4])),
    ("reduce", "num_valid_tokens", i32(4, 4)),
    ("reduce", "add", torch.zeros(4, 15)),
    ("reduce", "add", torch.zeros(4, 16).half()),
    ("reduce", "out", torch.empty(4, 15)),
    ("reduce", "out", torch.empty(4, 16).half()),
    # prepack
    ("prepack", "codes", torch.zeros(64, 64, dtype=torch.int8)),
    ("prepack", "codes", torch.zeros(64, 63, dtype=torch.uint8)),
    ("prepack", "codes", torch.zeros(1, 64, 64, dtype=torch.uint8)),
    ("prepack", "codes", torch.zeros(64, 64, dtype=torch.uint8).T),
    ("prepack", "code_bits", 5),
    ("prepack", "code_bits", 0),
    ("prepack", "scale", None),
    ("prepack", "scale", torch.ones(64, 4)),
    ("prepack", "scale", torch.ones(64, 3).bfloat16()),
    ("prepack", "scale", torch.ones(4, 64).bfloat16().T),
    ("prepack", "zero", None),
    ("prepack", "zero", torch.zeros(64, 4).bfloat16()),
    ("prepack", "zero", torch.zeros(64, 1, dtype=torch.uint8)),
    ("prepack", "desc", [0] * 10),
    ("prepack", "row_order", "gate_up"),
    ("prepack", "row_order", "interleaved"),
    ("prepack", "packed", torch.empty(1, 4608, dtype=torch.uint8)),
    ("prepack", "row_scale", torch.empty(64)),
    ("prepack", "stats", torch.empty(2, dtype=torch.int32)),
    # decode_packed
    ("decode", "packed", torch.zeros(1, 4095, dtype=torch.uint8)),
    ("decode", "scale2", torch.ones(2)),
    ("decode", "scale2", torch.ones(64).bfloat16()),
    ("decode", "desc", [1, 4]),
    ("decode", "out", torch.empty(64, 127)),
    ("decode", "out", torch.empty(64, 128).bfloat16()),
]


def describe(value) -> str:
    if isinstance(value, torch.Tensor):
        text = f"{str(value.dtype)[6:]}{list(value.shape)}".replace(" ", "")
        return text if value.numel() and value.is_contiguous() else f"{text}-strided"
    return str(value).replace(" ", "")


@pytest.mark.parametrize(
    ("call", "argument", "value"),
    SPOILED,
    ids=[f"{i}-{call}-{argument}-{describe(value)}" for i, (call, argument, value) in enumerate(SPOILED)],
)
def test_a_bad_argument_is_named(call: str, argument: str, value) -> None:
    good = CALLS[call]()
    with pytest.raises((RuntimeError, ValueError)) as error:
        good(**{argument: value})
    assert f"humming::{good.op}: " in str(error.value)
    assert argument in str(error.value).split(": ", 1)[1]


@pytest.mark.parametrize(
    ("call", "argument", "value"),
    [
        ("layer", "topk_ids", i32(0, 1, 2, 4, 0, 0, 0, 0).view(4, 2)),
        ("layer", "topk_ids", i32(0, 1, 2, -2, 0, 0, 0, 0).view(4, 2)),
        ("layer", "expert_map", i32(3, 0, 0, 0)),
        ("layer-contiguous", "expert_offsets", i32(0, 1, 1, 5)),
        ("layer-masked", "expert_counts", i32(1, 0, 5)),
    ],
)
def test_bad_numbers_are_found_by_the_ops_of_a_layer(call: str, argument: str, value) -> None:
    with pytest.raises(RuntimeError, match=rf"humming::moe_(align|gemm): .*{argument}"):
        CALLS[call]()(**{argument: value})


def test_a_named_instance_runs_on_gpus_only() -> None:
    with pytest.raises(RuntimeError, match=r'humming::gemm: instance = "gemm_sm90_x" .* x is on the CPU'):
        ops.gemm.instance(**gemm_call().arguments, instance="gemm_sm90_x")
    moe_arguments = moe_call("indexed").arguments
    moe_arguments.pop("expected_tokens")
    with pytest.raises(RuntimeError, match=r'humming::moe_gemm: instance = "moe_gemm_sm90_x" .* x is on the CPU'):
        ops.moe_gemm.instance(**moe_arguments, instance="moe_gemm_sm90_x")


@pytest.mark.parametrize(
    ("operand", "x", "accepted"),
    [
        ("bf16", torch.float16, False),
        ("bf16", torch.int16, False),
        ("fp16", torch.bfloat16, False),
        ("fp16", torch.float8_e4m3fn, False),
        ("fp16", torch.int8, False),
        ("e4m3", torch.bfloat16, False),
        ("e4m3", torch.float8_e5m2, False),
        ("e4m3", torch.int8, False),
        ("s8", torch.float8_e4m3fn, False),
        ("s8", torch.bfloat16, False),
        ("s4", torch.int8, False),
        ("s4", torch.bfloat16, False),
        ("bf16", torch.float8_e5m2, True),
        ("bf16", torch.int8, True),
        ("s8", torch.uint8, True),
        ("s4", torch.uint8, True),
        ("e4m3", torch.float8_e4m3fn, True),
        ("fp16", torch.float16, True),
    ],
)
def test_pairs_of_operand_and_activation(operand: str, x: torch.dtype, accepted: bool) -> None:
    call = gemm_call(operand, x, 64 if x == torch.uint8 else 128)
    if accepted:
        call()
        return
    with pytest.raises(RuntimeError, match=f"x has dtype .*operand {operand}"):
        call()


@pytest.mark.parametrize(
    ("x_scale", "message"),
    [
        (None, "x_scale is None"),
        (torch.ones(2), "x_scale has shape"),
        (torch.ones(3, 3), "x_scale has 3 groups"),
        (torch.ones(3, 1, 1), "x_scale has shape"),
        (torch.ones(3).double(), "x_scale has dtype float64"),
        (torch.ones(3).half(), "x_scale has dtype float16"),
        (torch.ones(1, 3).T.expand(3, 2), "x_scale is not contiguous"),
        (torch.ones(4, 3).T, "x_scale is not contiguous"),
        (torch.full((3,), 127, dtype=torch.uint8).view(E8M0), None),  # one group of 128
    ],
)
def test_token_scales(x_scale: torch.Tensor | None, message: str | None) -> None:
    call = gemm_call("bf16", torch.int8)
    if message is None:
        call(x_scale=x_scale)
        return
    with pytest.raises(RuntimeError, match=f"humming::gemm: {message}"):
        call(x_scale=x_scale)


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_of_token_scales_that_only_bf16_takes(groups: int) -> None:
    gemm_call("bf16", torch.int8)(x_scale=torch.ones(3, groups))
    with pytest.raises(RuntimeError, match=r"x_scale has groups of .*bf16"):
        gemm_call("s8", torch.int8)(x_scale=torch.ones(3, groups))


def test_a_gated_activation_needs_gate_and_up() -> None:
    call = moe_call("contiguous")
    plain = WeightCase("int4", n=64, k=128, experts=3)
    with pytest.raises(RuntimeError, match=r"humming::moe_gemm: activation .silu. is gated.*gate_up"):
        call(desc=plain.desc)


def test_int4_needs_even_columns() -> None:
    case = WeightCase("int4", "s8", n=64, k=127)
    packed, _ = case.make().pack()
    with pytest.raises(RuntimeError, match="k = 127 is odd"):
        ops.gemm(torch.zeros(2, 64, dtype=torch.uint8), torch.ones(1), packed, None, None, case.desc)
    with pytest.raises(RuntimeError, match="127"):
        ops.quantize_activation(torch.zeros(2, 127), torch.uint8, 0)


def test_scales_of_powers_of_two_need_a_group() -> None:
    with pytest.raises(RuntimeError, match=r"humming::quantize_activation: scale is float8_e8m0fnu"):
        ops.quantize_activation(torch.zeros(2, 64), torch.int8, 0, scale_dtype=E8M0)


def test_a_static_scale_is_one_number() -> None:
    with pytest.raises(RuntimeError, match="static_scale"):
        ops.quantize_activation(torch.zeros(2, 64), torch.int8, 0, static_scale=torch.ones(2))
    with pytest.raises(RuntimeError, match="static_scale"):
        ops.quantize_activation(torch.zeros(2, 64), torch.int8, 0, static_scale=torch.ones(1).double())


def test_more_than_2_31_rows_or_pairs_are_refused() -> None:
    """Rows of one column repeated by a stride of zero would take no memory, so overlapping rows are refused first."""
    call = align_call()
    with pytest.raises(RuntimeError, match="topk_ids"):
        call(topk_ids=torch.zeros(1, dtype=torch.int32).expand(2**31))
    moe = moe_call("indexed")
    with pytest.raises(RuntimeError, match=r"humming::moe_gemm: .*pairs; split the call"):
        moe(top_k=2**31 - 1)


@pytest.mark.parametrize("function", ["gemm", "moe_gemm", "quantize_activation", "moe_reduce"])
def test_functional_forms_name_a_wrong_rank(function: str) -> None:
    flat = torch.zeros(128, dtype=torch.bfloat16)
    dense, moe = gemm_call().arguments, moe_call("contiguous").arguments
    calls = {
        "gemm": lambda: ops.gemm(flat, None, dense["packed"], None, None, dense["desc"]),
        "moe_gemm": lambda: ops.moe_gemm(
            *(
                flat,
                None,
                moe["packed"],
                None,
                None,
                moe["desc"],
                "contiguous",
                None,
                None,
                None,
                moe["expert_offsets"],
            ),
            *(None, None, 1),
        ),
        "quantize_activation": lambda: ops.quantize_activation(flat, torch.int8, 0),
        "moe_reduce": lambda: ops.moe_reduce(flat, torch.ones(1, 1), None, None),
    }
    with pytest.raises((ValueError, RuntimeError), match=r"(x|y): expected . dimensions"):
        calls[function]()
