"""Weights in 16 or 32 bits to the codes, scales and zero points of any format, without calibration data."""

from typing import TypedDict

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._reference import code_values
from .formats import WeightFormat, ZeroKind
from .spec import QuantSpec

_E8M0, _E4M3 = torch.float8_e8m0fnu, torch.float8_e4m3fn
_E8M0_MIN = torch.finfo(_E8M0).smallest_normal
_CHUNK = 1 << 22  # weights that are in float64 at a time, if no group is larger
_CLIPS = [2 ** (-step / 6) for step in range(1, 19)]  # down to an eighth of the range


class PackArguments(TypedDict):
    """The tensors that PackedWeight.pack takes."""

    codes: Tensor
    scale: Tensor | None
    zero: Tensor | None
    scale2: Tensor | None


def quantize(weight: Tensor, spec: QuantSpec, *, clip: bool = False) -> PackArguments:
    """Rounds a weight to codes: `PackedWeight.pack(**quantize(weight, spec), spec=spec)`.

    weight: float32, bfloat16 or float16 [n, k], or [experts, n, k]; with spec.gate_up rows are [gate; up].
    clip: every group takes, of the scale below and those 2^(1/6), 2^(2/6), ... 8 times smaller, the one with the
        smallest sum of squared errors. False: every group takes the scale that covers its range:

    format               zero      scale
    intB                 none      max |w| / (2^(B-1) - 1/2): no weight is more than half a step away; int1: max |w| / 2
    eXmY, nf4            none      max |w| / the largest value
    uintB                none      max w / (2^B - 1); negative weights are refused
    uintB                integer   (max(w, 0) - min(w, 0)) / (2^B - 1), zero point round(-min(w, 0) / scale)
    uintB                floating  (max w - min w) / (2^B - 1), offset min w

    A smaller scale clips towards 0, beside an offset towards the middle of the range. Scales and offsets are rounded
    to spec.scale_dtype: to nearest, e8m0 up. Beside e4m3 scales there is a secondary scale, max scale / 448 of the
    whole weight or expert. Codes are the nearest to (w - offset) / scale + zero, ties to the even code; in float64,
    where no quotient of the weight's dtypes is rounded onto a tie. Without a scale_dtype the scale is 1.

    Returns codes uint8 [n, k], scale and zero [rows, groups] of one per `spec.block_rows` rows (of gate and up apart)
    and `spec.group` columns, scale2 float32 []; with experts all of them stacked.

    Raises ValueError for weights that are not finite or that the format and scale_dtype cannot hold; RuntimeError as
    `spec.desc` does.
    """
    if not weight.dtype.is_floating_point or weight.element_size() not in (2, 4) or weight.dim() not in (2, 3):
        raise ValueError(
            f"weight: {weight.dtype} {list(weight.shape)} is no float32, bfloat16 or float16 [n, k] or [experts, n, k]"
        )
    if 0 in weight.shape:
        raise ValueError(f"weight: shape {list(weight.shape)} holds no weights")
    spec.desc(*weight.shape[-2:])
    if invalid := weight.numel() - int(weight.isfinite().sum()):
        raise ValueError(f"weight: {invalid} values are not finite; repair the checkpoint")
    if spec.format.kind == "uint" and spec.zero == ZeroKind.none and bool((weight < 0).any()):
        raise ValueError(f"weight: {spec.format.name} without zero points has no negative values; set spec.zero")
    if weight.dim() == 2:
        codes, scale, zero, scale2 = _quantize_one(weight, spec, clip)
    else:
        experts = [_quantize_one(expert, spec, clip) for expert in weight]
        codes, scale, zero, scale2 = map(_stack, zip(*experts, strict=True))
    assert codes is not None
    return PackArguments(codes=codes, scale=scale, zero=zero, scale2=scale2)


def _stack(values: tuple[Tensor | None, ...]) -> Tensor | None:
    given = [value for value in values if value is not None]
    return torch.stack(given) if given else None


def _quantize_one(weight: Tensor, spec: QuantSpec, clip: bool) -> tuple[Tensor | None, ...]:
    """Cuts [n, k] into groups, quantises them, and puts the codes together again."""
    n, k = weight.shape
    parts = 2 if spec.gate_up and spec.block_rows else 1
    height, width = spec.block_rows or n, spec.group or k
    rows, columns = -(-n // parts // height), -(-k // width)
    # NaN stands for what a group lacks at the edge: weights have none.
    edge = (0, columns * width - k, 0, rows * height - n // parts)
    blocks = pad(weight.view(parts, n // parts, k), edge, value=float("nan"))
    blocks = blocks.view(parts, rows, height, columns, width).transpose(2, 3).reshape(-1, height * width)

    rounding = _ScaleRounding(spec, blocks)
    chunks = [_quantize_blocks(chunk.double(), spec, rounding, clip) for chunk in blocks.split(_per_chunk(blocks))]
    codes, scale, zero = (torch.cat(values) for values in zip(*chunks, strict=True))
    codes = codes.view(parts, rows, columns, height, width).transpose(2, 3)
    codes = codes.reshape(parts, rows * height, columns * width)[:, : n // parts, :k].reshape(n, k)
    zero_dtype = torch.uint8 if spec.zero == ZeroKind.integer else spec.scale_dtype
    return (
        codes,
        None if spec.scale_dtype is None else rounding.stored(scale).view(-1, columns),
        None if spec.zero == ZeroKind.none else zero.to(zero_dtype).view(-1, columns),
        rounding.scale2,
    )


def _per_chunk(blocks: Tensor) -> int:
    return max(1, _CHUNK // blocks.shape[1])


class _ScaleRounding:
    """Scales as `spec` stores them.

    scale2: float32 [] for e4m3 scales, else None.
    """

    def __init__(self, spec: QuantSpec, blocks: Tensor) -> None:
        self._dtype = spec.scale_dtype
        self.scale2: Tensor | None = None
        if self._dtype == _E4M3:
            largest = max(float(_range(chunk.double(), spec)[1].max()) for chunk in blocks.split(_per_chunk(blocks)))
            self.scale2 = torch.tensor(largest / torch.finfo(_E4M3).max or 1.0, device=blocks.device)

    def stored(self, scale: Tensor) -> Tensor:
        """float64 scales in the dtype of `spec`. Raises ValueError if one is too large for it."""
        if self._dtype == _E8M0:
            fraction, exponent = torch.frexp(scale.clamp(min=_E8M0_MIN))  # fraction * 2^exponent, fraction in [1/2, 1)
            scale = torch.ldexp(torch.ones_like(scale), exponent - (fraction == 0.5).int())
        elif self.scale2 is not None:
            scale = scale / self.scale2.double()
        stored = scale.to(self._dtype)
        if not bool(stored.double().isfinite().all()):
            raise ValueError(f"weight: needs a scale of {float(scale.max()):.3g}, more than {self._dtype} holds")
        return stored

    def rounded(self, scale: Tensor) -> Tensor:
        """float64: the scales that the stored ones stand for; 1 if `spec` has none."""
        if self._dtype is None:
            return torch.ones_like(scale)
        scale = self.stored(scale).double()
        return scale if self.scale2 is None else scale * self.scale2.double()


def _range(blocks: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """The lowest value and the scale of every row of `blocks`, float64 [rows, 1], as `quantize` has them."""
    low = blocks.nan_to_num(nan=float("inf")).amin(1, keepdim=True)
    high = blocks.nan_to_num(nan=-float("inf")).amax(1, keepdim=True)
    values = code_values(spec.format)
    largest = float(values[values.isfinite()].max())
    if spec.format.kind == "uint":
        if spec.zero != ZeroKind.floating:
            low, high = low.clamp(max=0), high.clamp(min=0)
        return low, (high - low) / largest
    half_step = float(values.diff()[0]) / 2 if spec.format.kind == "int" else 0.0
    return low, high.maximum(-low) / (largest + half_step)


def _quantize_blocks(blocks: Tensor, spec: QuantSpec, rounding: _ScaleRounding, clip: bool) -> list[Tensor]:
    """[codes uint8, scale float64 [groups, 1], zero float64 [groups, 1]] of groups, one a row, float64."""
    low, full_scale = _range(blocks, spec)
    nearest, last_code = _Nearest(spec.format, blocks.device), (1 << spec.format.bits) - 1

    def attempt(factor: float) -> list[Tensor]:
        scale = rounding.rounded(factor * full_scale)
        divisor = scale.where(scale > 0, 1.0)
        if spec.zero == ZeroKind.integer:
            zero = (-factor * low / divisor).round().clamp(0, last_code)
            return [nearest(blocks / divisor + zero), scale, zero]
        if spec.zero == ZeroKind.floating:
            offset = (low + (1 - factor) / 2 * last_code * full_scale).to(spec.scale_dtype).double()
            return [nearest((blocks - offset) / divisor), scale, offset]
        return [nearest(blocks / divisor), scale, torch.zeros_like(scale)]

    def error(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        values = nearest.values[codes.int()]
        values = values * scale + zero if spec.zero == ZeroKind.floating else (values - zero) * scale
        return values.sub_(blocks).square_().nansum(1, keepdim=True)

    best = attempt(1.0)
    if clip:
        best_error = error(*best)
        for factor in _CLIPS:
            found = attempt(factor)
            found_error = error(*found)
            better = found_error < best_error
            best = [new.where(better, old) for new, old in zip(found, best, strict=True)]
            best_error = found_error.minimum(best_error)
    return best


class _Nearest:
    """The code nearest to a number, ties to the even code.

    values: float64, of every code.
    """

    def __init__(self, weight_format: WeightFormat, device: torch.device) -> None:
        self.values = code_values(weight_format).to(device)
        # Two codes for 0 that are sorted stably: the first of each value is the one to use.
        order = self.values.argsort(stable=True)
        order = order[self.values[order].isfinite()]
        distinct = torch.ones_like(order, dtype=torch.bool)
        distinct[1:] = self.values[order].diff() > 0
        self._codes = order[distinct].to(torch.uint8)
        sorted_values = self.values[order[distinct]]
        middle = (sorted_values[1:] + sorted_values[:-1]) / 2
        # bucketize leaves a number that equals a boundary below it; one that lies on a tie goes up past a lower one.
        below = middle.nextafter(torch.full_like(middle, -float("inf")))
        self._boundaries = torch.where(self._codes[1:] % 2 == 0, below, middle)

    def __call__(self, numbers: Tensor) -> Tensor:
        """uint8 codes in the shape of `numbers` float64; NaN gets any."""
        return self._codes[torch.bucketize(numbers, self._boundaries, out_int32=True)]
