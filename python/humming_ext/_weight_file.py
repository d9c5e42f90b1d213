"""Packed weights in safetensors files.

A file is the length of the header in 8 bytes, the header, JSON that may end in spaces, and the tensors without gaps.
The safetensors library writes tensors that are all in memory; here each weight is written before the next is made.
"""

import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor

from .packed_weight import PackedWeight

_PARTS = ("packed", "scale2", "columns", "desc")
_ENTRY_BYTES = 256  # of a tensor in the header, more than six integers of 20 digits and the words around them
_DTYPES = {torch.uint8: "U8", torch.int64: "I64", torch.float32: "F32"}


def save_weights(weights: Mapping[str, PackedWeight], path: str | PathLike[str]) -> None:
    """Writes packed weights to a safetensors file, as `NAME.packed`, `NAME.scale2`, `NAME.columns` and `NAME.desc`.

    weights: asked for one by one. A mapping that makes them when asked lets a model pass through that is larger than
        the memory.

    A file that was at `path` is replaced when the new one is complete.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _write(file, weights)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write(file: IO[bytes], weights: Mapping[str, PackedWeight]) -> None:
    # A multiple of 64, for the alignment of the tensors.
    header_bytes = 64 + 64 * (sum(len(_PARTS) * (_ENTRY_BYTES + len(json.dumps(name))) for name in weights) // 64)
    file.seek(8 + header_bytes)
    entries: dict[str, Any] = {}
    end = 0

    def write(name: str, tensor: Tensor) -> None:
        nonlocal end
        data = tensor.cpu().contiguous()
        entries[name] = {
            "dtype": _DTYPES[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [end, end + data.nbytes],
        }
        file.write(data.view(-1).view(torch.uint8).numpy().data)
        end += data.nbytes

    # Small tensors follow behind, those of 8 bytes first, so that each begins at a multiple of its element.
    rest: dict[str, Tensor] = {}
    for name, weight in weights.items():
        state = weight.state(f"{name}.")
        write(f"{name}.packed", state.pop(f"{name}.packed"))
        rest |= state
    if end % 8:
        raise AssertionError(f"{end} bytes of packed weights are no multiple of 8")
    for name, tensor in sorted(rest.items(), key=lambda item: -item[1].element_size()):
        write(name, tensor)

    header = json.dumps(entries).encode()
    assert len(header) <= header_bytes
    file.seek(0)
    file.write(header_bytes.to_bytes(8, "little") + header.ljust(header_bytes))


def load_weights(path: str | PathLike[str], device: torch.device | str = "cpu") -> dict[str, PackedWeight]:
    """The packed weights of a safetensors file, by name. Tensors that belong to none are not read.

    Raises RuntimeError if a weight's layout version or descriptor is not legal in this build.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        keys = set(file.keys())
        names = sorted(key.removesuffix(".packed") for key in keys if key.endswith(".packed"))
        states = {
            name: {part: file.get_tensor(f"{name}.{part}") for part in _PARTS if f"{name}.{part}" in keys}
            for name in names
        }
    return {name: PackedWeight.from_state(state) for name, state in states.items()}
