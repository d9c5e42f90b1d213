"""`pack`, `inspect` and `verify`: checkpoints of others, and files of packed weights."""

import ctypes
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._weight_file import load_weights, save_weights
from ..checkpoints import Checkpoint, CheckpointWeight, GgufFile, open_checkpoint
from ..formats import ZeroKind
from ..packed_weight import PackedWeight
from ..spec import QuantSpec
from ._common import ACTIVATIONS, Progress, add_command, print_json

# Decoding rounds to float32 up to three times: the product with the scale, the offset, and the secondary scale.
_MAX_ERROR = 3 * 2.0**-24
_SMALLEST = 2.0**-149  # of float32

_M_MMAP_THRESHOLD = -3  # of malloc.h


def add(commands: Any) -> None:
    """Adds the commands."""
    foreign = "a folder with config.json and safetensors files, or a .gguf file"
    parser = add_command(
        commands, "pack", pack, "pack the quantised weights of a checkpoint into one file", "pack MODEL w.safetensors"
    )
    parser.add_argument("checkpoint", help=foreign)
    parser.add_argument("out", help="the safetensors file to write, which humming_ext.load_weights reads")
    _add_activation(parser)

    parser = add_command(commands, "inspect", inspect, "list the quantised weights of a checkpoint", "inspect m.gguf")
    parser.add_argument("path", help=f"a file written by pack or humming_ext.save_weights, {foreign}")

    parser = add_command(
        commands,
        "verify",
        verify,
        "pack every weight of a checkpoint, decode it, and compare with what the checkpoint says",
        "verify MODEL",
    )
    parser.add_argument("checkpoint", help=foreign)
    _add_activation(parser)


def _add_activation(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default="bf16",
        help="what the packed weights will be multiplied by (default: bf16); weights of which no tensor core takes "
        "these are packed for bf16",
    )


def _spec(weight: CheckpointWeight, activation: str) -> QuantSpec:
    return weight.spec.for_activation(ACTIVATIONS[activation], widen=True)


# ---- pack -----------------------------------------------------------------------------------------------------------


class _Lazy(Mapping[str, PackedWeight]):
    """Weights that `make` makes whenever they are asked for."""

    def __init__(self, names: list[str], make: Callable[[str], PackedWeight]) -> None:
        self._names, self._make = names, make

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> PackedWeight:
        return self._make(name)


def pack(args: Namespace) -> int:
    """Packs a checkpoint into a file, weight by weight, and prints what that took."""
    # glibc would keep freed blocks of up to 32 MiB in a heap that fragments. These go back to the system.
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    checkpoint = open_checkpoint(args.checkpoint)
    operands: Counter[str] = Counter()

    def make(name: str) -> PackedWeight:
        bar.show(name)
        weight = checkpoint.read(name)
        packed = weight.pack(_spec(weight, args.activation))
        operands[packed.spec.operand.name] += 1
        return packed

    with Progress(len(checkpoint.names)) as bar:
        save_weights(_Lazy(checkpoint.names, make), args.out)
    nbytes = Path(args.out).stat().st_size
    peak = _peak_bytes()
    if args.json:
        print_json({"out": args.out, "bytes": nbytes, "operands": operands, "peak_memory_bytes": peak})
        return 0
    counts = ", ".join(f"{count} for operand {operand}" for operand, count in operands.items())
    print(f"{args.out}: {operands.total()} packed weights ({counts}), {nbytes:,} bytes")
    print(f"peak memory {peak / 2**20:,.0f} MiB")
    return 0


# ---- inspect --------------------------------------------------------------------------------------------------------


def inspect(args: Namespace) -> int:
    """Lists the weights of a checkpoint or of a file of packed ones."""
    packed = Path(args.path).suffix == ".safetensors"
    weights = _packed_rows(args.path) if packed else _checkpoint_rows(args.path)
    kinds = Counter(weight["format"] for weight in weights)
    if args.json:
        print_json({"path": args.path, "packed": packed, "weights": weights})
        return 0
    for weight in weights:
        print(f"{weight['name']}: {weight['text']}")
    counts = ", ".join(f"{count} {name}" for name, count in kinds.items())
    print(f"{len(weights)} {'packed' if packed else 'quantised'} weights: {counts}")
    return 0


def _packed_rows(path: str) -> list[dict[str, Any]]:
    return [
        {
            **_row(name, weight.spec, weight.shape),
            "desc": weight.fields._asdict(),
            "bytes": weight.nbytes,
            "text": repr(weight),
        }
        for name, weight in load_weights(path).items()
    ]


def _checkpoint_rows(path: str) -> list[dict[str, Any]]:
    checkpoint = open_checkpoint(path)
    rows = []
    with Progress(len(checkpoint.names)) as bar:
        for name in checkpoint.names:
            bar.show(name)
            weight = checkpoint.read(name)
            row = _row(name, weight.spec, weight.shape)
            order = weight.columns is not None
            text = f"{row['format']} {row['shape']}, {_scales(weight.spec)}{', activation order' if order else ''}"
            rows.append({**row, "activation_order": order, "text": text})
    return rows


def _row(name: str, spec: QuantSpec, shape: Sequence[int]) -> dict[str, Any]:
    return {
        "name": name,
        "format": spec.format.name,
        "shape": list(shape),
        "group": spec.group,
        "block_rows": spec.block_rows,
        "scale_dtype": str(spec.scale_dtype).removeprefix("torch."),
        "zero": spec.zero.name,
    }


def _scales(spec: QuantSpec) -> str:
    """The scales and zero points of a spec in words."""
    per = {(0, 0): "tensor", (0, 1): "channel"}.get((spec.group, spec.block_rows))
    per = per or (f"{spec.group} columns" if spec.block_rows == 1 else f"{spec.block_rows} x {spec.group}")
    zero = {ZeroKind.none: "", ZeroKind.integer: ", zero points", ZeroKind.floating: ", offsets"}[spec.zero]
    return f"{str(spec.scale_dtype).removeprefix('torch.')} scales per {per}{zero}"


# ---- verify ---------------------------------------------------------------------------------------------------------


def verify(args: Namespace) -> int:
    """Prints a table of errors. Returns 1 if a weight is missed by more than float32 explains, or cannot be read."""
    checkpoint = open_checkpoint(args.checkpoint)
    rows = []
    with Progress(len(checkpoint.names)) as bar:
        for name in checkpoint.names:
            bar.show(name)
            rows.append(_verified(checkpoint, name, args.activation))
    misses = sum(row["problem"] is not None for row in rows)
    if args.json:
        print_json({"path": args.checkpoint, "limit": _MAX_ERROR, "weights": rows, "misses": misses})
        return int(misses > 0)
    width = max(len(row["name"]) for row in rows)
    print(f"{'weight':<{width}}  {'format':<7}{'relative error':>15}{'RMS':>10}")
    for row in rows:
        figures = f"{row['format']:<7}{row['max_error']:>15.1e}{row['rms_error']:>10.1e}" if row["format"] else ""
        print(f"{row['name']:<{width}}  {figures}{'  MISS: ' + row['problem'] if row['problem'] else ''}")
    print(f"{len(rows)} weights, {misses} misses; the limit is {_MAX_ERROR:.1e}, what decoding to float32 rounds")
    return int(misses > 0)


def _verified(checkpoint: Checkpoint | GgufFile, name: str, activation: str) -> dict[str, Any]:
    """The row of one weight: largest relative error of an element, relative RMS error, and what is wrong or None."""
    row: dict[str, Any] = {"name": name, "format": None, "max_error": None, "rms_error": None, "problem": None}
    try:
        weight = checkpoint.read(name)
        largest, squares, total = 0.0, 0.0, 0.0
        for dense in weight.dense():
            reference = dense.dequantize()
            error = dense.pack(_spec(dense, activation)).dequantize().double() - reference
            # Where float32 is subnormal its steps do not shrink with the number.
            relative = (error.abs() - _SMALLEST).clamp(min=0) / reference.abs().clamp(min=_SMALLEST)
            largest = max(largest, float(relative.max()))
            squares += float(error.square().sum())
            total += float(reference.square().sum())
    except (ValueError, RuntimeError) as problem:
        return row | {"problem": str(problem)}
    row |= {"format": weight.spec.format.name, "max_error": largest, "rms_error": (squares / (total or 1.0)) ** 0.5}
    return row if largest <= _MAX_ERROR else row | {"problem": "differs from the checkpoint"}


def _peak_bytes() -> int:
    """The most memory that was resident. Not from getrusage, where the process that started this one counts as well."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
