"""Products to hold kernels against: data made on the device, exact results in float64 there.

Written from the definitions with the oracle's value tables. `run` everywhere is a function (problem, out) that writes
the product into out; it decides what computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from humming_ext import _ops
from oracle.formats import FORMATS, finite_codes, value_table
from support import TORCH, WeightCase, assert_as_accurate, assert_bits_equal, guarded, rebase_window

NATIVE = {"bf16": "bf16", "fp16": "fp16", "e4m3": "e4m3", "s8": "int8", "s4": "int4"}  # x of each operand
VALUES = {**TORCH, "int4": torch.int8}  # of x before int4 are packed two per byte
SIGNIFICANT_BITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}

# Format, operand, scale type, group, zero: every arithmetic that a dense instance has or is meant to get.
PAIRS = [
    *(("int4", operand, "bf16", 128, "none") for operand in ("bf16", "fp16", "e4m3", "s8")),
    *(("int4", operand, "fp32", 128, "none") for operand in ("bf16", "e4m3", "s8")),
    *(("e4m3", operand, "fp32", 128, "none") for operand in ("bf16", "e4m3")),
    ("int8", "s8", "fp32", 128, "none"),
    *(("int4", "bf16", scale, 32, "none") for scale in ("bf16", "fp16")),
    *(("uint4", operand, "fp16", group, "integer") for operand in ("bf16", "fp16") for group in (32, 64, 128)),
    ("uint4", "bf16", "fp16", 32, "floating"),
    *((name, "bf16", "bf16", 128, "none") for name in ("int1", "int2", "int3", "int8")),
    *(("e2m1", operand, "e8m0", 32, "none") for operand in ("bf16", "fp16", "e4m3")),
    ("e2m1", "e4m3", "e8m0", 16, "none"),
    ("e2m1", "bf16", "e4m3", 16, "none"),
    ("nf4", "bf16", "fp32", 64, "none"),
    *((name, operand, "none", 0, "none") for name in ("e4m3", "e3m2", "int8") for operand in ("bf16", "fp16")),
    *((name, "e4m3", "none", 0, "none") for name in ("int2", "int3", "int4", "e2m1", "e3m2", "e4m3")),
    *((name, "s8", "none", 0, "none") for name in ("int1", "int2", "int3", "int4", "int8")),
    *((name, "s4", "none", 0, "none") for name in ("int1", "int2", "int3", "int4")),
    ("int4", "s4", "bf16", 128, "none"),
    *(("uint4", operand, "none", 0, "integer") for operand in ("e4m3", "s8")),
]


def case_of(pair: tuple, n: int, k: int, *, gate_up: bool = False) -> WeightCase:
    """The weight of a pair."""
    return WeightCase(*pair, n=n, k=k, gate_up=gate_up, row_order="gate_up" if gate_up else "plain")


@dataclass(frozen=True)
class Weight:
    """A weight as `prepack` takes it, and its values in float64 [n, k]."""

    case: WeightCase
    codes: torch.Tensor
    scale: torch.Tensor | None
    zero: torch.Tensor | None
    values: torch.Tensor


@dataclass(frozen=True)
class Problem:
    """Arguments of gemm, and what they stand for: `exact` in float64; `plain` is what torch makes of x and of weights
    rounded to the operand, summed in fp32 and rounded to 16 bits."""

    case: WeightCase
    x: torch.Tensor
    x_scale: torch.Tensor | None
    packed: torch.Tensor
    scale2: torch.Tensor | None
    bias: torch.Tensor | None
    exact: torch.Tensor  # [rows, n]
    plain: torch.Tensor

    @property
    def args(self) -> tuple:
        """The positional arguments of the ops."""
        return self.x, self.x_scale, self.packed, self.scale2, self.bias, self.case.desc

    def workspace(self) -> torch.Tensor:
        """As much as the functional op takes; full of 0xFF bytes."""
        size = _ops._row_copy_bytes(self.x, self.case.desc)
        return torch.full((size,), 0xFF, dtype=torch.uint8, device=self.x.device)

    def rows(self, m: int, *, pitched: bool, skew: int = 0) -> Problem:
        """The first m rows, x amid NaN."""
        x = amid_nan(m, self.x.shape[1], self.x.dtype, self.x.device.type, pitched=pitched, skew=skew)
        x.copy_(self.x[:m])
        x_scale = self.x_scale
        if x_scale is not None and len(x_scale) == len(self.x):
            x_scale = x_scale[:m].contiguous()
        return Problem(
            self.case, x, x_scale, self.packed, self.scale2, self.bias, self.exact[:m].contiguous(), self.plain[:m]
        )


Run = Callable[[Problem, torch.Tensor], None]


def amid_nan(rows: int, k: int, dtype: torch.dtype, device: str, *, pitched: bool, skew: int = 0) -> torch.Tensor:
    """[rows, k] of NaN (integers: large numbers), as a view into more of it: rows follow and, if `pitched`, columns.

    Rows that are not pitched begin where they begin, which need not be a multiple of 16 bytes. skew: elements more
    before the first row and between any two.
    """
    size = torch.empty((), dtype=dtype).element_size()
    pitch = ((-(-k * size // 128) + 1) * 128 // size if pitched else k) + skew
    fill = {torch.int8: 0x7F, torch.uint8: 0x77}.get(dtype, 0xFF)  # uint8: two int4
    memory = torch.full(((skew + (rows + 300) * pitch) * size,), fill, dtype=torch.uint8, device=device)
    return memory.view(dtype)[skew:].view(-1, pitch)[:rows, :k]


class Maker:
    """Random tensors of one seed on a device."""

    def __init__(self, device: str, *seed: int) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(hash(seed) & 0xFFFFFFFF)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """float64, low <= value < high."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device).double()

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """float32."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> torch.Tensor:
        """float32."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def codes(self, case: WeightCase, *, simple: bool) -> torch.Tensor:
        """uint8 [n, k]. simple: of floats and tables only quarters up to 8, whose sums stay exact."""
        legal = torch.from_numpy(finite_codes(case.fmt).copy())
        if simple and FORMATS[case.fmt].kind in ("float", "table"):
            values = torch.from_numpy(value_table(case.fmt).copy())[legal.long()]
            legal = legal[(values * 4 == (values * 4).round()) & (values.abs() <= 8)]
        elif case.operand == "fp16" and case.scale not in ("none", "e8m0"):
            # Times a scale below 8 they are numbers of the operand.
            values = torch.from_numpy(value_table(case.fmt).copy())[legal.long()]
            legal = legal[values.abs() <= 2**13]
        return legal.to(self.device)[self.integers(0, len(legal), case.n, case.k).long()]

    def scale(self, case: WeightCase, *, simple: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(scales as prepack takes them, their values in float64): [n, groups]. simple: powers of two."""
        shape = (case.n, -(-case.k // case.group))
        if case.scale == "e8m0":
            spread = min(rebase_window(case), 2 if simple else 8)
            codes = self.integers(118, 128, case.n, 1) + self.integers(0, spread + 1, *shape)
            return codes.to(torch.uint8).view(TORCH["e8m0"]), power_of_two(codes - 127)
        if simple:
            scale = power_of_two(self.integers(-2, 3, *shape)).to(TORCH[case.scale])
        elif case.scale == "e4m3":
            scale = self.integers(0x20, 0x48, *shape).to(torch.uint8).view(TORCH["e4m3"])
        else:
            scale = self.uniform(0.25, 2, *shape).to(TORCH[case.scale])
        return scale, scale.double()

    def weight(self, case: WeightCase, *, simple: bool, all_codes: bool = False) -> Weight:
        """Codes, scales and zero points (or offsets). all_codes: simple but for the codes."""
        n, k = case.n, case.k
        codes = self.codes(case, simple=simple and not all_codes)
        values = torch.from_numpy(value_table(case.fmt).copy()).to(self.device)[codes.long()]
        scale = zero = None
        if case.zero == "integer":
            groups = -(-k // case.group) if case.group else 1
            zero = self.integers(0, min(2 ** FORMATS[case.fmt].bits, 255) + 1, n, groups).to(torch.uint8)
            values = values - columns(zero, k, case.group)
        if case.scale != "none":
            scale, scale_values = self.scale(case, simple=simple)
            values = values * columns(scale_values, k, case.group)
            if case.zero == "floating":
                if simple:
                    highest = 256 - 2 ** FORMATS[case.fmt].bits  # code + offset has no more bits than bf16
                    offset = self.integers(-32, min(32, highest) + 1, *scale.shape) * scale_values
                else:
                    offset = 4 * self.normal(*scale.shape)
                zero = offset.to(scale.dtype)
                values = values + columns(zero, k, case.group)
        return Weight(case, codes, scale, zero, values)

    def x(self, kind: str, rows: int, k: int, *, simple: bool) -> torch.Tensor:
        """[rows, k] of a kind, int4 one per byte.

        simple: small integers; an fp8 tensor core keeps fewer bits of a sum than fp32 has.
        """
        if simple:
            limit = 1 if kind == "e4m3" else 3
            return self.integers(-limit, limit + 1, rows, k).to(VALUES[kind])
        if kind in ("int8", "int4"):
            limit = 128 if kind == "int8" else 8
            return self.integers(-limit, limit, rows, k).to(torch.int8)
        return (self.normal(rows, k) * (20 if kind in ("e4m3", "e5m2") else 1)).to(TORCH[kind])

    def factors(self, *shape: int, simple: bool) -> torch.Tensor:
        """float32. simple: powers of two."""
        return power_of_two(self.integers(-2, 3, *shape)).float() if simple else self.uniform(0.25, 2, *shape)

    def tokens(
        self, kind: str, rows: int, k: int, *, simple: bool, identity: bool, scale: str, group: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """(x, x_scale, their product in float64 [rows, k]).

        identity: x is one (rows must be k), and so are its scales. scale, of 8- and 4-bit kinds: "tensor" [1], "token"
        [rows], "groups" [rows, groups] of `group` columns (0: of all), or "e8m0", which is groups in that type.
        """
        x = torch.eye(k, device=self.device).to(VALUES[kind]) if identity else self.x(kind, rows, k, simple=simple)
        values = x.double()
        if kind == "int4":
            x = (x[:, 0::2] & 0xF | x[:, 1::2] << 4).view(torch.uint8)
        if kind in ("bf16", "fp16"):
            return x, None, values
        shape = {"tensor": (1,), "token": (rows,)}.get(scale, (rows, -(-k // group) if group else 1))
        if identity:
            factors = x_scale = torch.ones(shape, device=self.device)
        elif scale == "e8m0":
            codes = self.integers(125, 130, *shape)
            x_scale, factors = codes.to(torch.uint8).view(TORCH["e8m0"]), power_of_two(codes - 127)
        else:
            factors = x_scale = self.factors(*shape, simple=simple)
        return x, x_scale, values * columns(factors if factors.dim() == 2 else factors[:, None], k, group)


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """float64, exact on every device: the exponent's bits."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def columns(groups: torch.Tensor, k: int, group: int) -> torch.Tensor:
    """float64 [rows, k] of one entry per `group` columns; group 0: one for all."""
    index = torch.arange(k, device=groups.device) // group if group else torch.zeros(k, dtype=torch.long)
    return groups.double()[:, index.to(groups.device)]


def operand_rounded(values: torch.Tensor, operand: str) -> torch.Tensor:
    """The one rounding of the weight that a 16-bit operand may take, without its limits of range."""
    if operand not in ("bf16", "fp16"):
        return values
    mantissa, exponent = torch.frexp(values)
    unit = 2.0 ** SIGNIFICANT_BITS[TORCH[operand]]
    return (mantissa * unit).round() / unit * power_of_two(exponent)


@lru_cache(maxsize=32)
def make_problem(
    case: WeightCase,
    rows: int,
    device: str,
    *,
    simple: bool = False,
    identity: bool = False,
    x_kind: str = "",
    x_scale: str = "groups",
    x_group: int = 0,
    scale2: str = "channel",
    bias: str | None = "bf16",
) -> Problem:
    """A random product with an epilogue.

    simple: every sum and the result before its last rounding are exact in fp32. identity: x is one, with no epilogue,
    and the weights are simple. x_kind: the operand's own without. x_scale, x_group: see `Maker.tokens`. scale2: per
    "channel" or "tensor", or "none".
    """
    simple = simple or identity
    make = Maker(device, rows, simple, x_group, *case.desc)
    n, k = case.n, case.k
    weight = make.weight(case, simple=simple, all_codes=identity)
    packed, row_scale, stats = torch.ops.humming.prepack(
        weight.codes, 8, weight.scale, weight.zero, case.desc, case.row_order
    )
    assert stats.tolist() == [0, 0]

    x, x_factors, x_values = make.tokens(
        x_kind or NATIVE[case.operand], rows, k, simple=simple, identity=identity, scale=x_scale, group=x_group
    )
    exact = x_values @ weight.values.T
    plain = x_values.float() @ operand_rounded(weight.values, case.operand).float().T
    factor = offset = None
    if not identity and scale2 != "none":
        # Random sums are brought to about one, so that no output type overflows.
        unit = 1 / float(exact.square().mean().sqrt() + 1e-9)
        shape = n if scale2 == "channel" else 1
        factor = power_of_two(make.integers(-1, 2, shape)).float() if simple else make.uniform(0.5, 1, shape) * unit
        exact, plain = exact * factor.double(), plain * factor
    if not identity and bias:
        offset = (make.integers(-8, 9, n) if simple else make.normal(n)).to(TORCH[bias])
        exact, plain = exact + offset.double(), plain + offset.float()
    if case.rebased:
        factor = row_scale if factor is None else factor * row_scale  # powers of two
    plain = plain.half() if case.operand == "fp16" else plain.bfloat16()
    if device == "cuda":
        torch.cuda.synchronize()  # a product may fetch weights before the kernel ahead of it has ended
    return Problem(case, x, x_factors, packed, factor, offset, exact, plain)


def product(run: Run, problem: Problem, dtype: torch.dtype = torch.bfloat16, *, pitch: int = 0) -> torch.Tensor:
    """The result, written into NaN (rows `pitch` elements further apart than they need) and nowhere else."""
    m, n = problem.exact.shape
    with guarded((m, n), dtype, problem.x.device.type, pitch=n + pitch) as out:
        run(problem, out)
        return out.clone()


def check_exact(run: Run, problem: Problem, dtype: torch.dtype = torch.bfloat16, *, pitch: int = 8) -> None:
    """Of a simple problem, bit for bit."""
    assert torch.equal(problem.exact.float().double(), problem.exact), "the case itself is not exact"
    expected = problem.exact.to(dtype) + 0.0
    assert_bits_equal(product(run, problem, dtype, pitch=pitch), expected, f"{problem.case} m={len(problem.x)}")


def check_identity(run: Run, pair: tuple, device: str) -> None:
    """Power-of-two scales: the dequantised weight has no rounding in any operand, so it comes back bit for bit.

    That of a table comes back as the bf16 nearest to it, which the operand holds.
    """
    problem = make_problem(case_of(pair, 136, 208), 208, device, identity=True).rows(208, pitched=True)
    assert_case_is_exact(pair, problem.exact)
    check_exact(run, problem)


def assert_case_is_exact(pair: tuple, exact: torch.Tensor) -> None:
    """Of a product with identity; tables have no values that a 16-bit operand holds."""
    is_table = FORMATS[pair[0]].kind == "table"
    assert is_table or torch.equal(exact.bfloat16().double(), exact), "the case itself is not exact"


def check_integers(run: Run, pair: tuple, n: int, k: int, m: int, device: str) -> None:
    """Sums of small integers are exact, and so is all but the last rounding."""
    check_exact(run, make_problem(case_of(pair, n, k), 320, device, simple=True).rows(m, pitched=True))


def check_random(run: Run, problem: Problem, dtype: torch.dtype = torch.bfloat16, *, pitch: int = 8) -> None:
    """As accurate as torch in the operand's type."""
    what = f"{problem.case} m={len(problem.x)}"
    assert_as_accurate(product(run, problem, dtype, pitch=pitch), problem.exact, problem.plain, what)


def assert_one_number_rounded(actual: torch.Tensor, other: torch.Tensor, what: str) -> None:
    """Both are roundings of one number to nearest, each to its own type."""
    pair = (actual, other)
    bound = sum(value.double().abs() * 2.0 ** -SIGNIFICANT_BITS[value.dtype] for value in pair) + 2.0**-25  # subnormals
    error = (actual.double() - other.double()).abs() / bound
    worst = int(error.nan_to_num(torch.inf).argmax())
    row, column = divmod(worst, actual.shape[1])
    assert bool((error <= 1).all()), (
        f"{what}: {actual[row, column].item()} in {actual.dtype} at {(row, column)}, {other[row, column].item()} in "
        f"{other.dtype}"
    )


def output_types(*, scalar: bool) -> Iterator[tuple[torch.dtype, int]]:
    """Output types and what is added to the pitch. scalar: those that have no aligned 16-bit rows."""
    if not scalar:
        yield from ((dtype, pitch) for dtype in (torch.bfloat16, torch.float16) for pitch in (0, 8))
    else:
        yield from ((torch.float32, pitch) for pitch in (0, 5))
        yield from ((dtype, 5) for dtype in (torch.bfloat16, torch.float16))
