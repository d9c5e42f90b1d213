"""The tensors of a checkpoint folder, memory-mapped and checked."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ._fields import Fields, parse_json, read_json

FLOATS = (torch.bfloat16, torch.float16, torch.float32)  #: dtypes of scales, unless a format has one of its own

_INDEX = "model.safetensors.index.json"


class Tensors:
    """The tensors of all safetensors files of a folder, by name.

    The safetensors library checks every header when the file is opened: its length, and that the tensors fill the file
    without gap or overlap with as many bytes as their shapes ask for. So no tensor is larger than its file.

    Raises ValueError, naming the file, for what it refuses, for a file that is missing, and for a name in two files.
    """

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Path] = {}
        self._metadata: dict[str, str] = {}
        for path in _files(folder):
            try:
                with safe_open(path, framework="pt") as file:
                    names = file.keys()
                    self._metadata |= file.metadata() or {}
            except (OSError, RuntimeError, SafetensorError) as error:
                raise ValueError(f"{path}: no readable safetensors file: {error}") from error
            for name in names:
                if name in self._file_of:
                    raise ValueError(f"{path}: tensor {name} is in another file of the folder as well")
                self._file_of[name] = path

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def with_suffix(self, suffix: str) -> list[str]:
        """The names that end in `suffix`, without it, sorted."""
        return sorted(name.removesuffix(suffix) for name in self._file_of if name.endswith(suffix))

    def modules(self, dtypes: Sequence[torch.dtype], scales: Sequence[str]) -> list[str]:
        """The modules whose weight has one of these dtypes, or one of these scales beside it, sorted."""
        return [
            name
            for name in self.with_suffix(".weight")
            if any(f"{name}.{scale}" in self for scale in scales) or self.get(f"{name}.weight").dtype in dtypes
        ]

    def metadata(self, key: str) -> Fields:
        """The JSON object that the metadata in the header of a file has for a key.

        Raises ValueError, naming the key, if there is none.
        """
        if key not in self._metadata:
            raise ValueError(f"{key}: the metadata of the safetensors files does not describe it")
        return parse_json(self._metadata[key], f"metadata of {key}: ")

    def get(self, name: str, dtypes: Sequence[torch.dtype] = (), shape: Sequence[int | None] | None = None) -> Tensor:
        """A tensor, which stays in its file until it is used. It must not be written to.

        dtypes: what it may be; empty: anything.
        shape: what it must have, none of it 0; None: anything.

        Raises ValueError, naming the tensor, if it is missing or something else.
        """
        if name not in self._file_of:
            raise ValueError(f"{name}: no such tensor in the checkpoint")
        try:
            # A mapping for each tensor ends with it; one for all would keep every page that was ever read.
            with safe_open(self._file_of[name], framework="pt") as file:
                tensor = file.get_tensor(name)
        except (OSError, SafetensorError, RuntimeError, ValueError, AttributeError) as error:
            raise ValueError(f"{name}: cannot be read: {error}") from error
        if dtypes and tensor.dtype not in dtypes:
            raise ValueError(f"{name}: {tensor.dtype} is not {' or '.join(map(str, dtypes))}")
        if shape is not None and not _fits(tensor.shape, shape):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{name}: shape {list(tensor.shape)} is not [{wanted}], which the other tensors ask for")
        return tensor


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    # Without this check sizes beside a 0 would be limited by nothing.
    return (
        0 not in shape and len(shape) == len(wanted) and all(b in (a, None) for a, b in zip(shape, wanted, strict=True))
    )


def _files(folder: Path) -> list[Path]:
    """The files that the index names or, without an index, all."""
    index = folder / _INDEX
    if not index.exists():
        if not (files := sorted(folder.glob("*.safetensors"))):
            raise ValueError(f"{folder}: has no safetensors files")
        return files
    weight_map = read_json(index).section("weight_map")
    names = sorted({weight_map.text(key) for key in weight_map})
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index}: weight_map: {name!r} is no file of the folder")
    return [folder / name for name in names]
