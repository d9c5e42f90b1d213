"""Correct calls of every op, whose arguments tests of errors spoil one at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from support import WeightCase

ops = torch.ops.humming


@dataclass
class Call:
    """A correct call of an `.out` form whose arguments a test spoils by name."""

    op: str
    arguments: dict

    def __call__(self, **changes) -> None:
        getattr(ops, self.op).out(**{**self.arguments, **changes})


def gemm_call(operand: str = "bf16", x_dtype: torch.dtype = torch.bfloat16, columns: int = 128) -> Call:
    case = WeightCase("int4", operand, n=64, k=128)
    x = torch.zeros(3, columns).to(x_dtype)
    return Call(
        "gemm",
        {
            "x": x,
            "x_scale": None if x_dtype in (torch.bfloat16, torch.float16) else torch.ones(3),
            "packed": case.make().pack()[0],
            "scale2": torch.ones(64),
            "bias": torch.zeros(64),
            "desc": case.desc,
            "out": torch.empty(3, 64),
            "workspace": torch.empty(0, dtype=torch.uint8),
        },
    )


def moe_call(layout: str) -> Call:
    case = WeightCase("int4", n=64, k=128, experts=3, gate_up=True, row_order="gate_up")
    i32 = lambda *values: torch.tensor(values, dtype=torch.int32)  # noqa: E731
    routing = {
        "indexed": {
            "sorted_token_ids": i32(0, 3, 8, 8, 1, 2, 8, 8),
            "expert_ids": i32(0, 2),
            "num_tokens_post_padded": i32(8),
        },
        "sorted": {"sorted_token_ids": i32(0, 3, 7, 1, 2, -1), "expert_offsets": i32(0, 2, 2, 5)},
        "contiguous": {"expert_offsets": i32(0, 1, 1, 4)},
        "masked": {"expert_counts": i32(1, 0, 4)},
    }[layout]
    names = ("sorted_token_ids", "expert_ids", "num_tokens_post_padded", "expert_offsets", "expert_counts")
    rows = {"indexed": (8,), "sorted": (8,), "contiguous": (4,), "masked": (3, 4)}[layout]
    return Call(
        "moe_gemm",
        {
            "x": torch.zeros(*((3, 4) if layout == "masked" else (4,)), 128, dtype=torch.bfloat16),
            "x_scale": None,
            "packed": case.make().pack()[0],
            "scale2": torch.ones(3, 64),
            "bias": torch.zeros(3, 64),
            "desc": case.desc,
            "layout": "indexed" if layout == "sorted" else layout,
            **dict.fromkeys(names),
            **routing,
            "topk_weights": torch.ones(rows),
            "top_k": 2,
            "activation": "silu",
            "activation_args": [],
            "expected_tokens": None,
            "out": torch.empty(*rows, 32),
            "workspace": torch.empty(0, dtype=torch.uint8),
        },
    )


def layer_call(layout: str) -> Call:
    w13 = WeightCase("int4", n=64, k=128, experts=3, gate_up=True, row_order="gate_up")
    w2 = WeightCase("int4", "s8", n=96, k=32, experts=3)
    rows = {
        "indexed": {
            "topk_weights": torch.ones(4, 2),
            "topk_ids": torch.zeros(4, 2, dtype=torch.int32),
            "expert_map": torch.tensor([2, -1, 0, 1], dtype=torch.int32),
        },
        "contiguous": {"expert_offsets": torch.tensor([0, 1, 1, 4]), "topk_weights": torch.ones(4)},
        "masked": {"expert_counts": torch.tensor([1, 0, 4], dtype=torch.int32), "topk_weights": torch.ones(3, 4)},
    }[layout]
    names = ("topk_weights", "topk_ids", "expert_map", "expert_offsets", "expert_counts")
    lead = (3, 4) if layout == "masked" else (4,)
    weights = {
        **{"w13": w13.make().pack()[0], "w13_scale2": torch.ones(3), "w13_bias": torch.zeros(3, 64)},
        **{"w13_desc": w13.desc, "w2": w2.make().pack()[0], "w2_scale2": torch.ones(3, 96)},
        **{"w2_bias": torch.zeros(3, 96), "w2_desc": w2.desc},
    }
    options = {
        **{"activation": "silu", "activation_args": [], "group": 0, "scale": 2.0 if layout == "indexed" else 1.0},
        **{"add": torch.zeros(4, 96) if layout == "indexed" else None, "apply_router_weight_on_input": False},
        **{"expected_tokens": None, "out": torch.empty(*lead, 96)},
        "workspace": torch.empty(20_000, dtype=torch.uint8),
    }
    x = torch.zeros(*lead, 128, dtype=torch.bfloat16)
    return Call(
        "fused_moe",
        {"x": x, "x_scale": None, **weights, "layout": layout, **dict.fromkeys(names), **rows, **options},
    )


def quantize_call(dtype: torch.dtype = torch.int8) -> Call:
    arguments = {
        "x": torch.zeros(3, 128),
        "group": 32,
        "out": torch.empty(3, 128, dtype=dtype),
        "scale": torch.empty(3, 4),
    }
    return Call(
        "quantize_activation",
        {**arguments, "activation": "none", "activation_args": [], "static_scale": None, "positions": None},
    )


def align_call() -> Call:
    arguments = {"topk_ids": torch.zeros(4, 2, dtype=torch.int32), "num_experts": 4, "block": 4, "expert_map": None}
    shapes = {"sorted_pairs": (8,), "positions": (8,), "blocks": (6, 4), "num_blocks": (1,), "expert_offsets": (5,)}
    outputs = {name: torch.empty(shape, dtype=torch.int32) for name, shape in shapes.items()}
    return Call("moe_align", {**arguments, **outputs})


def reduce_call() -> Call:
    arguments = {
        "y": torch.zeros(4, 2, 16),
        "topk_weights": torch.ones(4, 2),
        "topk_ids": torch.zeros(4, 2, dtype=torch.int32),
    }
    optional = {"num_valid_tokens": torch.tensor([4], dtype=torch.int32), "scale": 1.0, "add": torch.zeros(4, 16)}
    return Call("moe_reduce", {**arguments, **optional, "out": torch.empty(4, 16)})


def prepack_call() -> Call:
    case = WeightCase("uint4", "bf16", "bf16", 32, "integer", n=64, k=128)
    codes, code_bits, scale, zero, desc, row_order = case.make().prepack_args()
    packed = torch.empty(ops.packed_shape(desc), dtype=torch.uint8)
    outputs = {"packed": packed, "row_scale": torch.empty(0), "stats": torch.empty(2, dtype=torch.int64)}
    inputs = {
        "codes": codes,
        "code_bits": code_bits,
        "scale": scale,
        "zero": zero,
        "desc": desc,
        "row_order": row_order,
    }
    return Call("prepack", {**inputs, **outputs})


def decode_call() -> Call:
    case = WeightCase("int4", n=64, k=128)
    arguments = {"packed": case.make().pack()[0], "scale2": torch.ones(64), "desc": case.desc, "codes": False}
    return Call("decode_packed", {**arguments, "out": torch.empty(64, 128)})


CALLS: dict[str, Callable[[], Call]] = {
    "gemm": gemm_call,
    "indexed": lambda: moe_call("indexed"),
    "sorted": lambda: moe_call("sorted"),
    "contiguous": lambda: moe_call("contiguous"),
    "masked": lambda: moe_call("masked"),
    "layer": lambda: layer_call("indexed"),
    "layer-contiguous": lambda: layer_call("contiguous"),
    "layer-masked": lambda: layer_call("masked"),
    "quantize": quantize_call,
    "align": align_call,
    "reduce": reduce_call,
    "prepack": prepack_call,
    "decode": decode_call,
}
