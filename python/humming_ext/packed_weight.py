"""Packed weights: made from checkpoint tensors, and checked against their descriptor."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._desc import WeightDesc, packed_shape
from ._packing import Source, combine_scale2, pack_some
from .formats import Operand, ScaleType, WeightFormat, ZeroKind
from .spec import QuantSpec


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight [n, k], or [experts, n, k], in the layout that the ops read.

    packed: uint8 [strips, strip_bytes], or [experts, strips, strip_bytes].
    scale2: float32 secondary scale, applied after the sum: [1] or [n]; with experts [experts] or [experts, n]; or None.
    desc: the ops' descriptor: layout version, format, sizes, granularity, operand.
    columns: int64 [k], a permutation, where a dense weight was packed with its columns sorted by group (activation
        order): ops multiply x[..., columns], as QuantLinear does. None: they multiply x.

    Raises RuntimeError if `desc` is not legal in this build, ValueError if a tensor does not match it.
    """

    packed: Tensor
    scale2: Tensor | None
    desc: list[int]
    columns: Tensor | None = None

    def __post_init__(self) -> None:
        fields, shape = self.fields, packed_shape(self.desc)
        if self.packed.dtype != torch.uint8 or list(self.packed.shape) != shape:
            raise ValueError(
                f"packed: {self.packed.dtype} {list(self.packed.shape)} is not the uint8 {shape} of desc {self.desc}"
            )
        if self.scale2 is not None:
            legal = [[fields.experts], [fields.experts, fields.n]] if fields.experts else [[1], [fields.n]]
            if self.scale2.dtype != torch.float32 or list(self.scale2.shape) not in legal:
                raise ValueError(
                    f"scale2: {self.scale2.dtype} {list(self.scale2.shape)} is not float32 {legal[0]} or {legal[1]}"
                )
        if self.columns is not None:
            if fields.experts:
                raise ValueError("columns: experts share their input, whose columns have one order; sort none of them")
            if self.columns.dtype != torch.int64 or list(self.columns.shape) != [fields.k]:
                raise ValueError(
                    f"columns: {self.columns.dtype} {list(self.columns.shape)} is not int64 [{fields.k}], one for each"
                )

    @classmethod
    def pack(
        cls,
        codes: Tensor | Sequence[Tensor],
        scale: Tensor | Sequence[Tensor] | None = None,
        zero: Tensor | Sequence[Tensor] | None = None,
        *,
        spec: QuantSpec,
        scale2: Tensor | None = None,
        k: int | None = None,
        code_bits: int = 8,
        interleaved: bool = False,
        columns: Tensor | None = None,
        device: torch.device | str | None = None,
        max_rounded: int = 0,
        max_invalid: int = 0,
    ) -> "PackedWeight":
        """Packs checkpoint tensors, expert by expert; the memory beside source and result is that of one expert.

        codes: uint8 (or the float8 dtype of the format) [n, k] for a dense weight; [experts, n, k], or a sequence of
            [n, k] that may load them one by one. With code_bits = the bits of the format, rows are bit streams
            [n, ceil(k * bits / 8)], lowest bits first, and `k` is required; with code_bits = 8, a code per byte.
        scale: `spec.scale_dtype` (e8m0 also as uint8), per weight one value for `spec.block_rows` rows and `spec.group`
            columns, in any shape of that many elements. Channel and tensor scales become the secondary scale.
        zero: integer zero points (uint8) or offsets (`spec.scale_dtype`), as many as scales.
        scale2: a further float32 factor: one element, or [n]; with experts [experts] or [experts, n].
        interleaved: with spec.gate_up, source rows are gate 0, up 0, gate 1, ... instead of [gate; up].
        columns: int64 [k]: column j of the codes of a dense weight is column columns[j] of the weight.
        device: where to pack and keep the weight; by default where the codes are.
        max_rounded: scale groups whose codes may be rounded (e8m0 scales too far below their row's largest for the
            operand); their number is reported as a warning.
        max_invalid: codes, scales and zero points that may be non-finite or out of range.

        Raises ValueError for tensors that do not fit `spec`, and if more than `max_rounded` groups are rounded or more
        than `max_invalid` values are not legal; RuntimeError for what the library checks.
        """
        for name, values, wanted in (
            ("scale", scale, spec.scale_dtype is not None),
            ("zero", zero, spec.zero != ZeroKind.none),
        ):
            if (values is not None) != wanted:
                raise ValueError(f"{name}: {'missing' if wanted else 'given'}, which contradicts {spec}")
        if k is None and code_bits != 8:
            raise ValueError(f"k: required with code_bits = {code_bits}, because bit streams may end in padding")
        if isinstance(codes, Tensor) and codes.dim() not in (2, 3):
            raise ValueError(f"codes: shape {list(codes.shape)} is neither [n, k] nor [experts, n, k]")
        dense = isinstance(codes, Tensor) and codes.dim() == 2
        experts = 0 if dense else len(codes)
        if not dense and experts == 0:
            raise ValueError("codes: no experts")
        first = codes if isinstance(codes, Tensor) and dense else codes[0]
        shape, target = list(first.shape), first.device if device is None else torch.device(device)
        del first  # a sequence may have loaded it for this call alone
        n, k = shape[0], shape[-1] if k is None else k

        desc, count = spec.desc(n, k, experts), max(experts, 1)
        if isinstance(codes, Tensor) and dense:
            codes, scale, zero = codes[None], *(v[None] if isinstance(v, Tensor) else None for v in (scale, zero))
        source = Source(codes, scale, zero, code_bits=code_bits, target=target)
        packed = torch.empty(packed_shape(desc), dtype=torch.uint8, device=target)
        row_scale = torch.empty(torch.ops.humming.row_scale_shape(desc), dtype=torch.float32, device=target)
        stats = torch.empty(count, 2, dtype=torch.int64, device=target)
        own = row_scale.view(count, n) if row_scale.numel() else None
        parts = [slice(at, min(at + source.at_a_time, count)) for at in range(0, count, source.at_a_time)]
        for index, part in enumerate(parts):
            secondary = pack_some(
                *source[part],
                spec,
                k,
                code_bits,
                interleaved,
                packed=packed.view(count, *packed.shape[-2:])[part],
                row_scale=row_scale.view(count, -1)[part] if row_scale.numel() else row_scale,
                stats=stats[index],
            )
            if secondary is not None:
                own = secondary.new_empty(count, secondary.shape[1]) if own is None else own
                own[part] = secondary
        scale2 = combine_scale2(own, scale2.to(target) if scale2 is not None else None, n, experts)
        rounded, invalid = stats[: len(parts)].sum(0).tolist()
        if scale2 is not None:
            # In parts, because the check needs memory.
            invalid += sum(part.numel() - int(part.isfinite().sum()) for part in scale2.view(-1).split(1 << 18))
        if invalid > max_invalid:
            raise ValueError(
                f"codes, scale, zero: {invalid} values are non-finite or out of range for {spec.format.name}; repair "
                f"the checkpoint or pass max_invalid={invalid}"
            )
        if rounded > max_rounded:
            raise ValueError(
                f"{rounded} scale groups lie too far below their row's largest for operand {spec.operand.name}; pack "
                f"for Operand.bf16, which is exact, or pass max_rounded={rounded}"
            )
        if rounded:
            warnings.warn(f"{rounded} scale groups of a {shape} weight were rounded", stacklevel=2)
        return cls(packed, scale2, desc, None if columns is None else _permutation(columns).to(target))

    @classmethod
    def stack(cls, weights: Sequence["PackedWeight"]) -> "PackedWeight":
        """Dense weights [n, k] of one descriptor as the experts of one weight [experts, n, k]. A copy.

        Raises ValueError for no weights, for one with experts or `columns`, and if the descriptors differ.
        """
        if not weights:
            raise ValueError("weights: no experts")
        fields = weights[0].fields
        for index, weight in enumerate(weights):
            if weight.desc != weights[0].desc or fields.experts:
                raise ValueError(
                    f"weights: {index} has {weight.fields}, 0 has {fields}; stack dense weights of one kind"
                )
            if weight.columns is not None:
                raise ValueError(f"weights: {index} has columns in activation order; experts share one order of x")
        factors = [weight.scale2 for weight in weights]
        scale2 = None
        if any(factor is not None for factor in factors):
            ones = torch.ones(1, device=weights[0].device)
            rows = max(factor.numel() for factor in factors if factor is not None)
            scale2 = torch.stack([(ones if factor is None else factor).expand(rows) for factor in factors])
            scale2 = scale2[:, 0].contiguous() if rows == 1 else scale2
        packed = torch.stack([weight.packed for weight in weights])
        return cls(packed, scale2, list(fields._replace(experts=len(weights))))

    @property
    def fields(self) -> WeightDesc:
        """The descriptor's integers by name."""
        return WeightDesc.of(self.desc)

    @property
    def spec(self) -> QuantSpec:
        """The quantisation inside the records; it does not tell the granularity of `scale2`."""
        fields = self.fields
        return QuantSpec(
            format=WeightFormat(fields.format),
            group=fields.group,
            scale_dtype=ScaleType(fields.scale_type).dtype,
            zero=ZeroKind(fields.zero),
            operand=Operand(fields.operand),
            gate_up=bool(fields.gate_up),
        )

    @property
    def shape(self) -> torch.Size:
        """Logical shape, [n, k] or [experts, n, k]."""
        fields = self.fields
        return torch.Size([fields.experts, fields.n, fields.k] if fields.experts else [fields.n, fields.k])

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.packed.device

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, with all scales and padding."""
        return self.packed.nbytes + sum(part.nbytes for part in (self.scale2, self.columns) if part is not None)

    def dequantize(self) -> Tensor:
        """The float32 weight in `shape`, rows and columns in logical order. A new tensor."""
        return self._in_order(torch.ops.humming.decode_packed(self.packed, self.scale2, self.desc))

    def codes(self) -> Tensor:
        """The codes, one per byte: uint8 in `shape`, rows and columns in logical order. A new tensor."""
        return self._in_order(torch.ops.humming.decode_packed(self.packed, None, self.desc, codes=True))

    def _in_order(self, values: Tensor) -> Tensor:
        return values if self.columns is None else values[:, self.columns.argsort()]

    def to(self, device: torch.device | str) -> "PackedWeight":
        """The weight on `device`. It shares memory with this one if it was there already."""
        scale2, columns = (part if part is None else part.to(device) for part in (self.scale2, self.columns))
        return PackedWeight(self.packed.to(device), scale2, self.desc, columns)

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """The tensors to store: `packed`, `scale2` and `columns`, which are this weight's, and `desc` (int64 [10])."""
        state = {"packed": self.packed, "desc": torch.tensor(self.desc), "scale2": self.scale2, "columns": self.columns}
        return {f"{prefix}{part}": tensor for part, tensor in state.items() if tensor is not None}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], prefix: str = "") -> "PackedWeight":
        """The weight whose `state(prefix)` is in `state`, aliasing its tensors. Raises KeyError if one is missing."""
        columns = state.get(f"{prefix}columns")
        return cls(
            state[f"{prefix}packed"],
            state.get(f"{prefix}scale2"),
            state[f"{prefix}desc"].tolist(),
            None if columns is None else _permutation(columns),
        )

    def __repr__(self) -> str:
        spec = self.spec
        parts = [f"{spec.format.name} {list(self.shape)}", f"operand {spec.operand.name}"]
        if spec.group:
            parts.append(f"{ScaleType.of(spec.scale_dtype).name} scales per {spec.group}")
        if spec.zero != ZeroKind.none:
            parts.append("offsets" if spec.zero == ZeroKind.floating else "zero points")
        if self.scale2 is not None:
            parts.append(f"scale2 {list(self.scale2.shape)}")
        if spec.gate_up:
            parts.append("gate_up")
        if self.columns is not None:
            parts.append("columns in activation order")
        parts.append(f"{self.nbytes} bytes, {8 * self.nbytes / self.shape.numel():.2f} bits per weight")
        return f"PackedWeight({', '.join(parts)}, {self.device}, layout {self.fields.layout_version})"


def _permutation(columns: Tensor) -> Tensor:
    if not torch.equal(columns.sort().values.cpu(), torch.arange(columns.numel())):
        raise ValueError(f"columns: {list(columns.shape)} numbers are no permutation of the weight's columns")
    return columns
