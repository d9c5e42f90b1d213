"""compressed-tensors: integers and floats in several packings, by groups of modules with a scheme each.

The layouts, as its documentation and its compressors have them; N rows, K columns, G groups of columns:

pack-quantized   weight_packed int32 [N, ceil(K * bits / 32)]: codes offset by 2^(bits - 1) as a bit stream along K;
                 weight_shape [2]; weight_scale [N, G]; if not symmetric, weight_zero_point int32
                 [ceil(N * bits / 32), G], packed in the same way along N; in activation order weight_g_idx int [K].
int-quantized    weight int8 [N, K]; weight_scale; if not symmetric, weight_zero_point int8 of the shape of the scale.
float-quantized  weight e4m3 [N, K]; weight_scale.
nvfp4            weight_packed uint8 [N, K / 2], low nibble first; weight_scale e4m3 [N, K / 16];
                 weight_global_scale fp32 [1], by which the scales are divided.
mxfp4            weight_packed as in nvfp4; weight_scale uint8 [N, K / 32], the e8m0 exponent.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import WeightFormat, ZeroKind
from ..spec import QuantSpec
from ._bits import num_words, offset_codes, sort_columns, unpack
from ._fields import Fields
from ._tensors import FLOATS, Tensors
from ._weight import CheckpointWeight


@dataclass(frozen=True)
class _Scheme:
    """How the modules of one group are quantised."""

    targets: list[str]
    format: str
    bits: int
    symmetric: bool
    group: int
    block_rows: int

    @classmethod
    def of(cls, fields: Fields, default_format: str) -> "_Scheme":
        """The scheme of an entry of config_groups."""
        weights = fields.section("weights")
        packing = fields.choice("format", _READERS, default_format)
        integer = packing in ("pack-quantized", "int-quantized")
        weights.choice("type", ["int" if integer else "float"], "int")
        bits = weights.integer("num_bits", range(2, 9) if integer else [8 if packing == "float-quantized" else 4])
        group, block_rows = _granularity(weights)
        symmetric = weights.flag("symmetric", True)
        if not symmetric and (not integer or block_rows != 1):
            raise weights.error("symmetric", f"false is not read for {packing} with this strategy")
        fixed = {"nvfp4-pack-quantized": 16, "mxfp4-pack-quantized": 32}.get(packing, group)
        if group != fixed:
            raise weights.error("group_size", f"{group} contradicts {packing}, which has groups of {fixed}")
        return cls(fields.items("targets", str), packing, bits, symmetric, group, block_rows)

    def names(self, module: str) -> bool:
        """Whether a target is this module or a pattern that it matches."""
        return any(
            re.match(target[3:], module) is not None if target.startswith("re:") else target == module
            for target in self.targets
        )

    def names_classes(self) -> bool:
        """Whether a target is a class of modules, such as Linear."""
        return any("." not in target and not target.startswith("re:") for target in self.targets)


class CompressedTensors:
    """The adapter of compressed-tensors checkpoints."""

    def __init__(self, fields: Fields) -> None:
        groups = fields.section("config_groups")
        default = fields.text("format", "")
        self._fields = fields
        self._schemes = [_Scheme.of(groups.section(key), default) for key in groups]

    def names(self, tensors: Tensors) -> list[str]:
        """The modules that have a packed weight, one of bytes, or one with a scale."""
        unpacked = tensors.modules((torch.int8, torch.float8_e4m3fn), ["weight_scale"])
        return sorted({*tensors.with_suffix(".weight_packed"), *unpacked})

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of a module. Raises ValueError, naming tensor and field, if it is not as documented."""
        scheme = self._scheme(name)
        return _READERS[scheme.format](tensors, name, scheme)

    def _scheme(self, name: str) -> _Scheme:
        """The scheme of a module: one that names it goes before one that names its class, which tensors do not tell."""
        try:
            found = [scheme for scheme in self._schemes if scheme.names(name)]
        except re.error as error:
            raise self._fields.error("config_groups", f"a target is no regular expression: {error}") from error
        found = found or [scheme for scheme in self._schemes if scheme.names_classes()]
        if len(found) != 1:
            raise self._fields.error("config_groups", f"the targets of {len(found)} groups fit the module {name}")
        return found[0]


def _granularity(weights: Fields) -> tuple[int, int]:
    """(group, block_rows) as QuantSpec has them."""
    implied = "group" if "group_size" in weights else "tensor"
    strategy = weights.choice("strategy", ["tensor", "channel", "group", "tensor_group", "block"], implied)
    if strategy in ("tensor", "channel"):
        return 0, int(strategy == "channel")
    if strategy == "block":
        rows, columns = weights.block("block_structure")
        return columns, rows
    return weights.integer("group_size", range(1, 1 << 31)), 1


def _scale(tensors: Tensors, name: str, scheme: _Scheme, n: int, k: int) -> Tensor:
    """The scale [N or blocks, G]; of a tensor one element."""
    rows, columns = -(-n // scheme.block_rows) if scheme.block_rows else 1, -(-k // (scheme.group or k))
    scale = tensors.get(f"{name}.weight_scale", FLOATS)
    if scheme.block_rows == 0 and scale.numel() == 1:
        return scale
    return tensors.get(f"{name}.weight_scale", FLOATS, [rows, columns])


def _integer(scheme: _Scheme, scale: Tensor) -> QuantSpec:
    return QuantSpec(
        WeightFormat[f"{'' if scheme.symmetric else 'u'}int{scheme.bits}"],
        group=scheme.group,
        block_rows=scheme.block_rows,
        scale_dtype=scale.dtype,
        zero=ZeroKind.none if scheme.symmetric else ZeroKind.integer,
    )


def _pack_quantized(tensors: Tensors, name: str, scheme: _Scheme) -> CheckpointWeight:
    bits = scheme.bits
    shape = tensors.get(f"{name}.weight_shape", (torch.int64, torch.int32), [2])
    n, k = shape.tolist()
    words = tensors.get(f"{name}.weight_packed", (torch.int32,), [None, None])
    if n != words.shape[0] or k < 1 or num_words(k, bits) != words.shape[1]:
        raise ValueError(
            f"{name}.weight_shape: {[n, k]} contradicts weight_packed {list(words.shape)} with num_bits = {bits}"
        )
    scale = _scale(tensors, name, scheme, n, k)
    zero = None
    if not scheme.symmetric:
        packed_shape = [num_words(n, bits), scale.shape[1]]
        zero = unpack(tensors.get(f"{name}.weight_zero_point", (torch.int32,), packed_shape).t(), bits, n).t()
    codes, code_bits, columns = words.view(torch.uint8)[:, : -(-k * bits // 8)], bits, None
    if f"{name}.weight_g_idx" in tensors and scheme.group:
        g_idx = tensors.get(f"{name}.weight_g_idx", (torch.int32, torch.int64), [k])
        if not bool((g_idx == -1).all()):  # which says that columns are in their natural order
            columns = sort_columns(f"{name}.weight_g_idx", g_idx, scheme.group)
        if columns is not None:
            codes, code_bits = unpack(words, bits, k)[:, columns], 8
    spec = _integer(scheme, scale)
    return CheckpointWeight(name, spec, codes, scale, zero, k=k, code_bits=code_bits, columns=columns)


def _int_quantized(tensors: Tensors, name: str, scheme: _Scheme) -> CheckpointWeight:
    values = tensors.get(f"{name}.weight", (torch.int8,), [None, None])
    scale = _scale(tensors, name, scheme, *values.shape)
    zero = None
    if not scheme.symmetric:
        zero = offset_codes(tensors.get(f"{name}.weight_zero_point", (torch.int8,), scale.shape), scheme.bits)
    return CheckpointWeight(name, _integer(scheme, scale), offset_codes(values, scheme.bits), scale, zero)


def _float_quantized(tensors: Tensors, name: str, scheme: _Scheme) -> CheckpointWeight:
    codes = tensors.get(f"{name}.weight", (torch.float8_e4m3fn,), [None, None])
    scale = _scale(tensors, name, scheme, *codes.shape)
    spec = QuantSpec(WeightFormat.e4m3, group=scheme.group, block_rows=scheme.block_rows, scale_dtype=scale.dtype)
    return CheckpointWeight(name, spec, codes, scale)


def _nvfp4(tensors: Tensors, name: str, scheme: _Scheme) -> CheckpointWeight:
    codes, k = _fp4_codes(tensors, name)
    scale = tensors.get(f"{name}.weight_scale", (torch.float8_e4m3fn,), [len(codes), -(-k // scheme.group)])
    divisor = tensors.get(f"{name}.weight_global_scale", (torch.float32,))
    if divisor.numel() != 1 or not 0 < float(divisor) < float("inf"):
        raise ValueError(f"{name}.weight_global_scale: {divisor.tolist()} is not one positive number")
    spec = QuantSpec(WeightFormat.e2m1, group=scheme.group, scale_dtype=scale.dtype)
    return CheckpointWeight(name, spec, codes, scale, scale2=1 / divisor, k=k, code_bits=4)


def _mxfp4(tensors: Tensors, name: str, scheme: _Scheme) -> CheckpointWeight:
    codes, k = _fp4_codes(tensors, name)
    scale = tensors.get(f"{name}.weight_scale", (torch.uint8,), [len(codes), -(-k // scheme.group)])
    spec = QuantSpec(WeightFormat.e2m1, group=scheme.group, scale_dtype=torch.float8_e8m0fnu)
    return CheckpointWeight(name, spec, codes, scale, k=k, code_bits=4)


def _fp4_codes(tensors: Tensors, name: str) -> tuple[Tensor, int]:
    codes = tensors.get(f"{name}.weight_packed", (torch.uint8,), [None, None])
    return codes, 2 * codes.shape[1]


_READERS = {
    "pack-quantized": _pack_quantized,
    "int-quantized": _int_quantized,
    "float-quantized": _float_quantized,
    "nvfp4-pack-quantized": _nvfp4,
    "mxfp4-pack-quantized": _mxfp4,
}
