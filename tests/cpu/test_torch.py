"""The ops as torch sees them: opcheck, fake tensors, torch.compile with dynamic shapes."""

from collections.abc import Callable

import humming_ext  # noqa: F401 - registers the ops
import pytest
import torch
from support import WeightCase, assert_bits_equal

ops = torch.ops.humming
WEIGHT = WeightCase("uint4", "bf16", "bf16", 32, "integer", n=72, k=160)
EXPERTS = WeightCase("e2m1", "bf16", "e8m0", 32, n=80, k=160, experts=3, gate_up=True, row_order="gate_up")


def i32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def random_x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()


def as_tuple(result: torch.Tensor | tuple) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def gemm_args(rows: int = 3) -> tuple:
    return random_x(rows, 160), None, WEIGHT.make().pack()[0], torch.ones(72), torch.ones(72), WEIGHT.desc


def moe_args(layout: str, rows: int = 4) -> tuple:
    routing = {
        "indexed": (i32(*range(2 * rows)), i32(0, 2), i32(2 * rows), None, None),
        "contiguous": (None, None, None, i32(0, 1, 1, rows), None),
        "masked": (None, None, None, None, i32(rows, rows, rows)),  # all rows, so that none is undefined
    }[layout]
    x = random_x(*((3, rows) if layout == "masked" else (rows,)), 160)
    return x, None, EXPERTS.make().pack()[0], None, torch.ones(3, 80), EXPERTS.desc, layout, *routing, None, 2, "silu"


def fused_args(layout: str, rows: int = 4) -> tuple:
    down = WeightCase("int4", "s8", n=72, k=40, experts=3)
    weights = (EXPERTS.make().pack()[0], None, torch.ones(3, 80), EXPERTS.desc, down.make().pack()[0], None, None)
    routing = {
        "indexed": (torch.rand(rows, 2), (torch.arange(2 * rows) % 3).view(rows, 2), None, None, None),
        "contiguous": (None, None, None, i32(0, 1, 1, rows), None),
        "masked": (None, None, None, None, i32(rows, rows, rows)),
    }[layout]
    x = random_x(*((3, rows) if layout == "masked" else (rows,)), 160)
    return x, None, *weights, down.desc, layout, *routing


def reduce_args(tokens: int = 4) -> tuple:
    return (
        random_x(tokens, 2, 16),
        torch.rand(tokens, 2),
        torch.zeros(tokens, 2, dtype=torch.int64),
        i32(3),
        2.0,
        random_x(tokens, 16),
    )


def prepack_experts_args() -> tuple:
    codes, code_bits, scale, zero, desc, row_order = EXPERTS.make().prepack_args()
    return codes, code_bits, scale.view(torch.uint8), zero, desc, row_order


FUNCTIONAL: dict[str, Callable[[], tuple[str, tuple, dict]]] = {
    "gemm": lambda: ("gemm", gemm_args(), {}),
    "gemm-fp32": lambda: ("gemm", gemm_args(), {"out_dtype": torch.float32}),
    "gemm-empty": lambda: ("gemm", gemm_args(0), {}),
    "moe_gemm-indexed": lambda: ("moe_gemm", moe_args("indexed"), {"expected_tokens": 5}),
    "moe_gemm-contiguous": lambda: ("moe_gemm", moe_args("contiguous"), {"out_dtype": torch.float16}),
    "moe_gemm-masked": lambda: ("moe_gemm", moe_args("masked"), {}),
    "fused_moe-indexed": lambda: ("fused_moe", fused_args("indexed"), {"scale": 2.0, "add": random_x(4, 72)}),
    "fused_moe-contiguous": lambda: ("fused_moe", fused_args("contiguous"), {"out_dtype": torch.float16}),
    "fused_moe-masked": lambda: ("fused_moe", fused_args("masked"), {"group": 128, "expected_tokens": 5}),
    "fused_moe-empty": lambda: ("fused_moe", fused_args("indexed", 0), {}),
    "quantize_activation": lambda: ("quantize_activation", (random_x(3, 160), torch.float8_e4m3fn, 0), {}),
    "quantize_activation-int4": lambda: (
        "quantize_activation",
        (random_x(3, 320), torch.uint8, 128),
        {"activation": "silu", "activation_args": [7.0]},
    ),
    "quantize_activation-e8m0": lambda: (
        "quantize_activation",
        (random_x(3, 160), torch.float8_e5m2, 32),
        {"scale_dtype": torch.float8_e8m0fnu},
    ),
    "quantize_activation-static": lambda: (
        "quantize_activation",
        (random_x(3, 160), torch.int8, 0),
        {"static_scale": torch.ones(1)},
    ),
    "quantize_activation-positions": lambda: (
        "quantize_activation",
        (random_x(3, 160), torch.int8, 0),
        {"positions": i32(0, 2, 1, 5, 4, 3)},
    ),
    "moe_align": lambda: ("moe_align", (i32(0, 2, 1, 0, 2, 2).view(3, 2), 3, 2, None), {}),
    "moe_align-map": lambda: ("moe_align", (i32(0, 2, 1, 0, 2, -1).view(3, 2), 2, 2, i32(0, -1, 1)), {}),
    "moe_reduce": lambda: ("moe_reduce", reduce_args(), {}),
    "prepack": lambda: ("prepack", WEIGHT.make().prepack_args(), {}),
    "prepack-experts": lambda: ("prepack", prepack_experts_args(), {}),
    "decode_packed": lambda: ("decode_packed", (gemm_args()[2], torch.ones(72), WEIGHT.desc), {}),
    "decode_packed-codes": lambda: ("decode_packed", (gemm_args()[2], None, WEIGHT.desc), {"codes": True}),
}

OUT_NAMES = {
    "gemm": ("out",),
    "moe_gemm": ("out",),
    "fused_moe": ("out",),
    "quantize_activation": ("out", "scale"),
    "moe_align": ("sorted_pairs", "positions", "blocks", "num_blocks", "expert_offsets"),
    "moe_reduce": ("out",),
    "prepack": ("packed", "row_scale", "stats"),
    "decode_packed": ("out",),
}


def out_form(name: str) -> tuple[str, tuple, dict]:
    """The `.out` call that a functional call makes."""
    op, args, kwargs = FUNCTIONAL[name]()
    result = getattr(ops, op)(*args, **kwargs)
    outputs = as_tuple(result)
    kwargs = {key: value for key, value in kwargs.items() if key not in ("out_dtype", "scale_dtype")}
    kwargs |= dict(zip(OUT_NAMES[op], (torch.zeros_like(out) for out in outputs), strict=True))
    if op in ("gemm", "moe_gemm", "fused_moe"):
        kwargs["workspace"] = torch.zeros(100_000 if op == "fused_moe" else 0, dtype=torch.uint8)
    if op == "quantize_activation":
        args = (args[0], args[2])
        kwargs["out"] = torch.empty_strided(outputs[0].shape, outputs[0].stride(), dtype=outputs[0].dtype)
    return op, args, kwargs


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_opcheck(name: str) -> None:
    op, args, kwargs = FUNCTIONAL[name]()
    torch.library.opcheck(getattr(ops, op).default, args, kwargs)


# opcheck compares the arguments before and after with allclose, which torch has not for 8-bit floats.
OUT_FORMS = [name for name in FUNCTIONAL if name not in ("quantize_activation", "quantize_activation-e8m0")]


@pytest.mark.parametrize("name", OUT_FORMS)
def test_opcheck_of_the_out_form(name: str) -> None:
    op, args, kwargs = out_form(name)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(getattr(ops, op).out, args, kwargs, test_utils=checks)


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_fake_results_have_the_real_shapes(name: str) -> None:
    op, args, kwargs = FUNCTIONAL[name]()
    real = getattr(ops, op)(*args, **kwargs)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_args = [mode.from_tensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
        fake_kwargs = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        fake = getattr(ops, op)(*fake_args, **fake_kwargs)
    for a, b in zip(as_tuple(real), as_tuple(fake), strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


COMPILED: dict[str, tuple[Callable, Callable[[int], tuple]]] = {
    "gemm": (ops.gemm, gemm_args),
    "moe_gemm-contiguous": (ops.moe_gemm, lambda rows: moe_args("contiguous", rows)),
    "moe_gemm-indexed": (ops.moe_gemm, lambda rows: moe_args("indexed", rows)),
    "fused_moe": (ops.fused_moe, lambda rows: fused_args("indexed", rows)),
    "quantize_activation": (
        lambda x: ops.quantize_activation(x, torch.float8_e4m3fn, 128, activation="silu"),
        lambda rows: (random_x(rows, 320),),
    ),
    "moe_align": (
        lambda ids: ops.moe_align(ids, 4, 2, None),
        lambda rows: (torch.arange(2 * rows, dtype=torch.int32).view(rows, 2) % 4,),
    ),
    "moe_reduce": (ops.moe_reduce, reduce_args),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compile_as_one_graph_with_dynamic_rows(name: str) -> None:
    function, make_args = COMPILED[name]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (5, 7, 11):
            args = make_args(rows)
            for ours, real in zip(*map(as_tuple, (compiled(*args), function(*args))), strict=True):
                assert_bits_equal(ours.contiguous(), real.contiguous())
                assert ours.stride() == real.stride()


@pytest.mark.parametrize("name", ["gemm", "moe_gemm-indexed"])
def test_a_named_instance_is_traced_like_the_out_form(name: str) -> None:
    """Only a GPU runs it; its fake kernel writes to `out` and is not mistaken for another overload."""
    op, args, kwargs = out_form(name)
    kwargs.pop("expected_tokens", None)  # only selection asks
    packet = getattr(ops, op)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert packet.instance(*args, **kwargs, instance="any") is None
        assert packet(*args, **kwargs, instance="any") is None
    assert packet.instance._schema.is_mutable


def test_a_compiled_network_equals_the_eager_one() -> None:
    """Around the ops: quantise, multiply, activate, add, as one graph."""
    case = WeightCase("int4", "s8", n=72, k=160)
    packed, _ = case.make().pack()

    def layer(x: torch.Tensor) -> torch.Tensor:
        q, scale = ops.quantize_activation(x * 2, torch.int8, 0)
        return torch.relu(ops.gemm(q, scale, packed, None, None, case.desc, out_dtype=torch.float32)) + 1

    x = random_x(5, 160).float()
    torch.compiler.reset()
    assert_bits_equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
