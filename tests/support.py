"""What the op tests share: weight cases, conversions between numpy and torch, tolerances, guarded buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from oracle.formats import FORMATS, finite_codes, value_table
from oracle.matmul import scaled_rows
from oracle.rounding import ROUND, e8m0_value, encode_e4m3, encode_e5m2, pack_int4, round_to_float
from oracle.weights import decode, dequantise, pack_bitstream, source_rows
from torch.utils._python_dispatch import TorchDispatchMode

LAYOUT_VERSION = 4
OPERANDS = {"bf16": 1, "fp16": 2, "e4m3": 3, "s8": 4, "s4": 5}
SCALE_TYPES = {"none": 0, "fp32": 1, "bf16": 2, "fp16": 3, "e8m0": 4, "e4m3": 5}
ZERO_KINDS = {"none": 0, "integer": 1, "floating": 2}
TORCH = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "e8m0": torch.float8_e8m0fnu,
    "int8": torch.int8,
    "int4": torch.uint8,
}


def takes_operand(name: str, operand: str) -> bool:
    """Whether the operand type holds all values of the format (uint: all differences to a zero), as documented."""
    fmt = FORMATS[name]
    if operand in ("bf16", "fp16"):
        return True
    if operand == "e4m3" and fmt.kind == "float":
        return name != "e5m2"
    widest = {"e4m3": {"int": 5, "uint": 4}, "s8": {"int": 8, "uint": 7}, "s4": {"int": 4, "uint": 3}}[operand]
    return fmt.bits <= widest.get(fmt.kind, 0)


@dataclass(frozen=True)
class WeightCase:
    """A packed weight to make: what the descriptor says, plus how the test fills it."""

    fmt: str
    operand: str = "bf16"
    scale: str = "none"
    group: int = 0
    zero: str = "none"
    n: int = 80
    k: int = 192
    experts: int = 0
    gate_up: bool = False
    row_order: str = "plain"
    power_of_two_scales: bool = False

    @property
    def desc(self) -> list[int]:
        return [
            LAYOUT_VERSION,
            FORMATS[self.fmt].id,
            OPERANDS[self.operand],
            self.n,
            self.k,
            self.experts,
            SCALE_TYPES[self.scale],
            self.group,
            ZERO_KINDS[self.zero],
            int(self.gate_up),
        ]

    @property
    def is_legal(self) -> bool:
        """Whether this combination is documented as legal."""
        kind = FORMATS[self.fmt].kind
        if not takes_operand(self.fmt, self.operand) or (self.group == 0) != (self.scale == "none"):
            return False
        if self.zero != "none" and kind != "uint":
            return False
        if self.operand in ("bf16", "fp16"):
            if self.scale == "e8m0" and self.operand == "fp16" and kind != "float":
                return False
            return self.zero != "floating" or self.scale in ("fp32", "bf16", "fp16")
        if self.zero == "floating":
            return False
        if self.scale == "e8m0":
            return self.operand == "e4m3" and kind == "float"
        return self.scale == "none" or (self.group == 128 and self.scale in ("fp32", "bf16", "fp16"))

    @property
    def rebased(self) -> bool:
        """Whether prepack moves a power of two of every row into `row_scale`."""
        return self.scale == "e8m0" and FORMATS[self.fmt].kind == "float"

    def __str__(self) -> str:
        parts = [self.fmt, self.operand]
        if self.scale != "none":
            parts.append(f"{self.scale}-g{self.group}")
        if self.zero != "none":
            parts.append(self.zero)
        parts.append(f"{self.n}x{self.k}")
        if self.experts:
            parts.append(f"E{self.experts}")
        if self.gate_up:
            parts.append(self.row_order)
        return "-".join(parts)

    def make(self, seed: int = 0) -> Weights:
        return Weights(self, np.random.default_rng([seed, *self.desc]))


def rebase_window(case: WeightCase) -> int:
    """Binades between the largest and the smallest scale of a row that stay exact, from the operand's range."""
    if case.operand == "bf16":
        return 127  # the stored byte's range; bf16 has more
    values = np.abs(value_table(case.fmt)[finite_codes(case.fmt)])
    smallest, largest = {"fp16": (2.0**-24, 65504.0), "e4m3": (2.0**-9, 448.0)}[case.operand]
    if (case.fmt, case.operand) == ("e2m1", "e4m3"):
        smallest = 2.0**-6  # the table of its dequantiser holds normal numbers
    window = 0
    while values.max() / values[values > 0].min() * 2.0 ** (window + 1) * smallest <= largest:
        window += 1
    return window


@dataclass
class Weights:
    """Random codes, scales and zeros of a case in logical row order, as numbers and as the tensors prepack takes."""

    case: WeightCase
    rng: np.random.Generator
    codes: np.ndarray = field(init=False)
    scale: np.ndarray | None = field(init=False, default=None)  # float64 values
    zero: np.ndarray | None = field(init=False, default=None)
    offset: np.ndarray | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        case = self.case
        lead = (case.experts,) if case.experts else ()
        groups = -(-case.k // case.group) if case.group else 1
        self.codes = self.rng.choice(finite_codes(case.fmt), (*lead, case.n, case.k))
        if case.scale != "none":
            self.scale = self._random_scale((*lead, case.n, groups))
        if case.zero == "integer":
            highest = min(2 ** FORMATS[case.fmt].bits, 255)
            self.zero = self.rng.integers(0, highest + 1, (*lead, case.n, groups)).astype(np.uint8)
        elif case.zero == "floating":
            self.offset = ROUND[case.scale](self.rng.standard_normal((*lead, case.n, groups)) * 4)

    def _random_scale(self, shape: tuple[int, ...]) -> np.ndarray:
        if self.case.scale == "e8m0":
            spread = min(rebase_window(self.case), 8) if self.case.rebased else 8
            row = self.rng.integers(118, 128, (*shape[:-1], 1))
            return e8m0_value(row + self.rng.integers(0, spread + 1, shape))
        if self.case.power_of_two_scales:
            return np.exp2(self.rng.integers(-2, 3, shape))
        if self.case.scale == "e4m3":
            return value_table("e4m3")[self.rng.integers(0x20, 0x48, shape)]
        return ROUND[self.case.scale](self.rng.uniform(0.25, 2.0, shape))

    @property
    def quantisation(self) -> dict:
        """The keywords of the oracle's `dequantise` and `decode`."""
        return {"scale": self.scale, "group": self.case.group, "zero": self.zero, "offset": self.offset}

    def values(self, scale2=None) -> np.ndarray:
        """float64 [E?, N, K]: the real weights."""
        return dequantise(self.codes, self.case.fmt, **self.quantisation, scale2=scale2)

    def decoded(self, scale2=None) -> np.ndarray:
        """float32 [E?, N, K]: the weights as decode_packed rounds them."""
        return decode(self.codes, self.case.fmt, **self.quantisation, scale2=scale2)

    def _source(self, array: np.ndarray) -> np.ndarray:
        """Logical rows in the order of the checkpoint."""
        source = np.empty_like(array)
        source[..., source_rows(self.case.row_order, self.case.n), :] = array
        return source

    def prepack_args(self, device: str = "cpu", *, bitstream: bool = True) -> tuple:
        """Arguments of `prepack`."""
        case = self.case
        bits = FORMATS[case.fmt].bits if bitstream else 8
        codes = torch.from_numpy(pack_bitstream(self._source(self.codes), bits)).to(device)
        scale = None if self.scale is None else tensor(self._source(self.scale), case.scale, device)
        zero = None
        if self.zero is not None:
            zero = torch.from_numpy(self._source(self.zero)).to(device)
        elif self.offset is not None:
            zero = tensor(self._source(self.offset), case.scale, device)
        return codes, bits, scale, zero, case.desc, case.row_order

    def pack(self, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor | None]:
        """(packed, the scale2 to pass): prepacked without loss, checked."""
        packed, row_scale, stats = torch.ops.humming.prepack(*self.prepack_args(device))
        assert stats.tolist() == [0, 0]
        return packed, row_scale if self.case.rebased else None


def tensor(values, dtype: str, device: str = "cpu") -> torch.Tensor:
    """A tensor of `dtype` from numbers that it holds exactly."""
    values = np.array(values, np.float64)
    if dtype == "e8m0":
        codes = np.where(np.isnan(values), 255, np.frexp(values)[1] + 126).astype(np.uint8)
        return torch.from_numpy(codes).view(TORCH[dtype]).to(device)
    return torch.from_numpy(values).to(TORCH[dtype]).to(device)


@dataclass
class Activations:
    """Random x of `rows` x k as the ops take it, and as numbers.

    kind: bf16, fp16, e4m3, e5m2, int8 or int4. scale: none (16-bit), tensor, token, column ([rows, 1]), or a group per
    token: g32, g64, g128, e8m0-g32, ...
    """

    kind: str
    scale: str
    x: torch.Tensor
    x_scale: torch.Tensor | None
    numbers: np.ndarray  # float64 [rows, k]: what x holds
    values: np.ndarray  # float64 [rows, k]: numbers times their scales

    @classmethod
    def make(
        cls, rng: np.random.Generator, kind: str, rows: int, k: int, scale: str = "none", *, small: bool = False
    ) -> Activations:
        """`small`: integers in -3..3 with scales that are powers of two, so that sums are exact."""
        if small:
            numbers = rng.integers(-3, 4, (rows, k)).astype(np.float64)
        elif kind in ("int8", "int4"):
            limit = 127 if kind == "int8" else 7
            numbers = rng.integers(-limit - 1, limit + 1, (rows, k)).astype(np.float64)
        else:
            numbers = rng.standard_normal((rows, k)) * {"e4m3": 20, "e5m2": 50}.get(kind, 1)
        if kind == "int4":
            x = torch.from_numpy(pack_int4(numbers))
        elif kind in ("e4m3", "e5m2"):
            codes = {"e4m3": encode_e4m3, "e5m2": encode_e5m2}[kind](numbers)
            numbers = value_table(kind)[codes]
            x = torch.from_numpy(codes).view(TORCH[kind])
        else:
            numbers = ROUND[kind](numbers) if kind in ROUND else numbers
            x = tensor(numbers, kind)
        if scale == "none":
            return cls(kind, scale, x, None, numbers, numbers)
        group = int(scale.rpartition("g")[2]) if "g" in scale else 0
        shape = {"tensor": (1,), "token": (rows,), "column": (rows, 1)}.get(scale, (rows, -(-k // max(group, 1))))
        e8m0 = scale.startswith("e8m0")
        factors = np.exp2(rng.integers(-2, 3, shape)) if small or e8m0 else ROUND["fp32"](rng.uniform(0.25, 2, shape))
        x_scale = tensor(factors, "e8m0" if e8m0 else "fp32")
        return cls(kind, scale, x, x_scale, numbers, scaled_rows(numbers, factors, group))

    @property
    def group(self) -> int:
        return int(self.scale.rpartition("g")[2]) if "g" in self.scale else 0


def operand_rounded(weights: np.ndarray, operand: str) -> np.ndarray:
    """The one rounding of the weight that a 16-bit operand may take, without its limits of range."""
    mantissa_bits = {"bf16": 7, "fp16": 10}.get(operand)
    return weights if mantissa_bits is None else round_to_float(weights, mantissa_bits, -1000, np.inf)


def padded_blocks(topk_ids: np.ndarray, experts: int, block: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(sorted_token_ids, expert_ids, num_tokens_post_padded) as the engines make them.

    Pairs by expert, each expert's padded to `block` with the id one past the last pair; some slack at the end.
    """
    topk_ids = np.asarray(topk_ids).reshape(-1)
    sorted_ids: list[int] = []
    expert_ids: list[int] = []
    for expert in range(experts):
        pairs = np.flatnonzero(topk_ids == expert).tolist()
        pairs += [len(topk_ids)] * (-len(pairs) % block)
        sorted_ids += pairs
        expert_ids += [expert] * (len(pairs) // block)
    padded = len(sorted_ids)
    sorted_ids += [len(topk_ids)] * (2 * block)
    expert_ids += [-1] * 2
    return np.array(sorted_ids, np.int32), np.array(expert_ids, np.int32), padded


def array(values: torch.Tensor) -> np.ndarray:
    """float64 numbers of a tensor of any type."""
    return values.detach().cpu().double().numpy()


def bits(values: torch.Tensor) -> np.ndarray:
    """uint8: the bytes of a tensor, for comparisons that tell -0 from 0 and accept equal NaN."""
    return values.detach().cpu().contiguous().view(torch.uint8).numpy()


def assert_bits_equal(actual: torch.Tensor, expected: torch.Tensor, what: str = "result") -> None:
    """Same type, shape and bytes; names the first differing element."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, (actual, expected)
    actual, expected = actual.contiguous(), expected.contiguous().to(actual.device)
    if actual.numel() == 0 or torch.equal(actual.view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8)):
        return
    size = actual.element_size()
    differs = (bits(actual).reshape(-1, size) != bits(expected).reshape(-1, size)).any(axis=1)
    if differs.any():
        first = np.unravel_index(int(np.argmax(differs)), tuple(actual.shape))
        raise AssertionError(
            f"{what}: {int(differs.sum())} of {differs.size} elements differ, first at {tuple(map(int, first))}: "
            f"{actual.cpu()[first].item()} instead of {expected.cpu()[first].item()}"
        )


_MANTISSA_BITS = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}


def assert_as_accurate(
    actual: torch.Tensor, exact: np.ndarray | torch.Tensor, plain: torch.Tensor, what: str = "result"
) -> None:
    """The error against float64 is at most twice that of the plain low-precision `plain`, plus one rounding.

    Holds for the worst element, where that of `plain` counts as one rounding at least, which it may have been lucky to
    be spared, and for the root mean square; elements that are NaN in `exact` must be NaN in `actual`.
    """
    exact = torch.as_tensor(exact, device=actual.device)
    covered = ~exact.isnan()
    assert torch.equal(actual.isnan(), ~covered), f"{what}: wrong set of written elements"
    if not bool(covered.any()):
        return
    rounding = 2.0 ** -(_MANTISSA_BITS[actual.dtype] + 1)
    error = torch.where(covered, (actual.double() - exact).abs(), 0.0)
    plain_error = (plain.to(actual.device).double() - exact).abs()[covered]
    magnitude = exact.abs()[covered]
    worst = tuple(map(int, np.unravel_index(int(error.argmax()), tuple(error.shape))))
    plain_rounding = 2.0 ** -(_MANTISSA_BITS[plain.dtype] + 1)
    bound = 2 * max(plain_error.max(), plain_rounding * magnitude.max()) + rounding * magnitude.max()
    assert error[worst] <= bound, (
        f"{what}: worst error {error[worst]:.3e} at {worst} ({actual[worst].item()} instead of {exact[worst].item()}), "
        f"allowed {bound:.3e}"
    )
    rms, plain_rms, size = (x.square().mean().sqrt() for x in (error[covered], plain_error, magnitude))
    allowed = 2 * plain_rms + rounding * size
    assert rms <= allowed, f"{what}: root mean square error {rms:.3e}, allowed {allowed:.3e}"


def poison(x: torch.Tensor, rows: np.ndarray) -> None:
    """Fills rows that no op may read with NaN (integers: a large number), unlike the 0xFF of outputs nobody wrote."""
    if x.element_size() > 1:
        x[rows] = float("nan")
    else:
        x.view(torch.uint8)[rows] = 0xFF if x.dtype == torch.float8_e8m0fnu else 0x7F


@contextmanager
def guarded(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", pitch: int | None = None
) -> Iterator[torch.Tensor]:
    """A tensor filled with 0xFF bytes (NaN in every float type) between guard bytes that must survive the block.

    `pitch` gives the rows of a 2-D tensor a stride; the bytes between the rows are guarded too.
    """
    size = torch.empty((), dtype=dtype).element_size()
    guard = max(1024, -(-16 * (pitch or 0) * size // 1024) * 1024)  # of rows with a pitch, 16
    strides = (pitch, 1) if pitch is not None else torch.empty(shape, device="meta").stride()
    last = sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    span = 0 if 0 in shape else 1 + last
    memory = torch.full((span * size + 2 * guard,), 0xFF, dtype=torch.uint8, device=device)
    view = memory[guard : guard + span * size].view(dtype).as_strided(shape, strides)
    yield view
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    view.view(integer).fill_(-1)
    assert bool((memory == 0xFF).all()), f"bytes outside a {tuple(shape)} output were written"


class Recorder(TorchDispatchMode):
    """Notes the ops that are called, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))
