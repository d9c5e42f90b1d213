"""Random problems, each from one number, and their check: what gemm and moe_gemm give is held against float64.

`python tests/fuzz.py SEED... [--device cuda]` repeats draws. A seed draws the same problem everywhere; its numbers are
drawn on the device, so those of a GPU are others than those of the CPU.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

import humming_ext  # noqa: F401 - registers the ops
import moe_products
import products
import torch
from cases import legal
from moe_products import BLOCKS, LAYOUTS, Epilogue, lay_out, make_mixture
from moe_routings import Routing
from oracle.formats import FORMATS
from products import NATIVE, case_of, make_problem
from support import OPERANDS, takes_operand

ops = torch.ops.humming

TINY = (1, 2, 3, 7, 8, 9, 15, 16, 17)
EDGES = (31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257)
X_KINDS = {  # of each operand
    "bf16": ("bf16", "e4m3", "e5m2", "int8", "int4"),
    "fp16": ("fp16",),
    "e4m3": ("e4m3",),
    "s8": ("int8", "int4"),
    "s4": ("int4",),
}
ACTIVATIONS = {  # their optional arguments
    "none": (),
    "silu": (0.75,),
    "swigluoai": (0.5, 1.25, 0.75),
    "gelu": (),
    "gelu_tanh": (),
    "relu2": (),
    "silu_no_mul": (),
    "gelu_no_mul": (),
    "gelu_tanh_no_mul": (),
    "relu2_no_mul": (),
}
ROUTINGS = {"balanced": 2, "skewed": 4, "one": 2, "gaps": 2, "mapped": 4, "nobody": 1}  # how often
REFUSED = re.compile(r"humming::(moe_)?gemm: no CUDA instance in this build")


@dataclass(frozen=True)
class Draw:
    """A problem, how its tensors lie, and how it is checked."""

    pair: tuple  # as of `products.PAIRS`
    n: int
    k: int
    gate_up: bool
    x_kind: str
    x_scale: str
    x_group: int
    pitched: bool
    skew: int
    out: torch.dtype
    out_pitch: int
    simple: bool  # exact, bit for bit
    # a dense product
    rows: int = 0
    scale2: str = "channel"
    bias: str | None = None
    # a product of experts
    routing: Routing | None = None
    layout: str = ""
    block: int = 1
    epilogue: Epilogue = moe_products.BARE

    def problem(self, device: str) -> products.Problem | moe_products.Problem:
        """Its tensors. Draws that differ in nothing but these numbers share them."""
        x = {"x_kind": self.x_kind, "x_scale": self.x_scale, "x_group": self.x_group}
        if self.routing is None:
            case = case_of(self.pair, self.n, self.k, gate_up=self.gate_up)
            options = {"simple": self.simple, "scale2": self.scale2, "bias": self.bias, **x}
            made = make_problem(case, max(self.rows, 1), device, **options)
            return made.rows(self.rows, pitched=self.pitched, skew=self.skew)
        mixture = make_mixture(
            *(self.pair, self.n, self.k, self.routing, self.epilogue, device),
            simple=self.simple,
            gate_up=self.gate_up,
            **x,
        )
        return lay_out(mixture, self.layout, block=self.block, pitched=self.pitched, skew=self.skew)


def draw(seed: int) -> Draw:
    """Every second pair is one that GPUs have kernels for; the others are of all that is legal."""
    rng = random.Random(seed)

    def size(limit: int) -> int:
        choices = rng.choices((TINY, [edge for edge in EDGES if edge <= limit], range(1, limit + 1)), (1, 4, 3))[0]
        return rng.choice(choices)

    experts = rng.choice((0, 0, 0, 1, 2, 3, 8, 32))
    limit = 720 if experts == 0 else 260 if experts < 8 else 130
    if rng.random() < 0.5:
        pair = rng.choice(moe_products.PAIRS if experts else products.PAIRS)
    else:
        fmt = rng.choice(list(FORMATS))
        case = rng.choice(legal(fmt, rng.choice([operand for operand in OPERANDS if takes_operand(fmt, operand)])))
        pair = (fmt, case.operand, case.scale, case.group, case.zero)
    operand = pair[1]
    x_kind = NATIVE[operand] if rng.random() < 0.6 else rng.choice(X_KINDS[operand])
    x_group = rng.choice((0, 0, 32, 64, 128) if operand == "bf16" else (0, 0, 128))
    x_scale = rng.choice(("groups", "groups", "e8m0") if x_group else ("tensor", "token", "groups"))

    gate_up = rng.random() < 0.5
    n, k, rows = size(limit // 2) * 2 if gate_up else size(limit), size(limit), size(300) if rng.random() < 0.95 else 0
    k += k % 2 if x_kind == "int4" else 0
    tokens, top_k = min(rows, 130), rng.randint(1, min(experts, 6)) if experts else 1
    used = rng.randint(0, tokens) if rng.random() < 0.2 else tokens
    # Rounding errors of a few numbers may happen to be none, so that twice theirs is no bound.
    few = k < 32 or n * used * top_k < 256
    simple = few or rng.random() < 0.4
    common = {
        **{"pair": pair, "n": n, "k": k, "gate_up": gate_up, "simple": simple},
        **{"x_kind": x_kind, "x_scale": x_scale, "x_group": x_group},
        **{"pitched": rng.random() < 0.5, "skew": rng.choice((0, 0, 0, 1, 3, 8, 16))},
        "out": rng.choice((torch.bfloat16, torch.bfloat16, torch.float16, torch.float32)),
        "out_pitch": rng.choice((0, 0, 1, 5, 8)),
    }
    bias = rng.choice((None, "bf16", "fp16", "fp32"))
    if not experts:
        # Without a factor random sums may be too large for the output type.
        scale2 = rng.choice(("channel", "tensor", "none") if simple else ("channel", "tensor"))
        return Draw(rows=rows, scale2=scale2, bias=bias, **common)
    activation = rng.choice([name for name in ACTIVATIONS if gate_up or name == "none" or name.endswith("_no_mul")])
    activation = "none" if simple else activation  # others are not exact
    kind = rng.choices(list(ROUTINGS), ROUTINGS.values())[0]
    kind = "balanced" if kind == "gaps" and experts == 1 else kind
    return Draw(
        routing=Routing(kind, tokens, top_k, experts, used),
        layout=rng.choice(LAYOUTS),
        block=rng.choice(BLOCKS),
        epilogue=Epilogue(
            activation,
            ACTIVATIONS[activation] if rng.random() < 0.5 else (),
            rng.choice(("channel", "expert")),
            bias,
            rng.random() < 0.5,
        ),
        **common,
    )


def run(problem: products.Problem | moe_products.Problem, out: torch.Tensor) -> None:
    """Writes the product into out."""
    op = ops.gemm if isinstance(problem, products.Problem) else ops.moe_gemm
    op.out(*problem.args, out=out, workspace=problem.workspace())


def check(seeds: Iterable[int], device: str) -> int:
    """Checks draws; how many of them this build has no kernel for.

    Raises AssertionError with the seeds of those that fail, and with what each of them says.
    """
    refused, failures = 0, []
    for seed in seeds:
        drawn = draw(seed)
        checks = products if drawn.routing is None else moe_products
        try:
            problem = drawn.problem(device)
            (checks.check_exact if drawn.simple else checks.check_random)(
                run, problem, drawn.out, pitch=drawn.out_pitch
            )
        except Exception as error:
            if device == "cuda" and REFUSED.search(str(error)):
                refused += 1
                continue
            failures.append((f"seed {seed}: {error}\n{drawn}", error))
    if failures:
        raise AssertionError("\n".join(text for text, _ in failures)) from failures[0][1]
    return refused


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    for given in args.seeds:
        print(given, draw(given), flush=True)
        print("refused" if check([given], args.device) else "passed")
