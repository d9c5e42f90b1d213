"""The header of a GGUF file: where its tensors lie. Nothing else in it is read.

A file is little-endian: magic, version, the numbers of tensors and of metadata entries, the entries, a description per
tensor and, from the next multiple of the alignment on, the tensors. Every length is checked against what is left of the
file before it is believed, so that no file, however damaged, asks for more memory than its own size.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

_ALIGNMENT = "general.alignment"
_UINT32, _STRING, _ARRAY = 4, 8, 9
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, _UINT32: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MAX_DIMS = 4


@dataclass(frozen=True)
class Entry:
    """A tensor: the number of its type, its shape [..., rows, columns], and its bytes in the file."""

    type: int
    shape: list[int]
    begin: int
    end: int


def read_header(data: NDArray[Any], sizes: Mapping[int, tuple[int, int]]) -> dict[str, Entry]:
    """The tensors of a file by name.

    data: uint8, the file.
    sizes: of every type number, the elements and the bytes of a block.

    Raises ValueError for a file that is truncated or contradicts itself.
    """
    cursor = _Cursor(data)
    if cursor.take(4) != b"GGUF":
        raise ValueError("no GGUF file: it does not begin with GGUF")
    if (version := cursor.integer(4)) not in (2, 3):
        raise ValueError(f"version {version} is not read; what is: 2, 3")
    num_tensors, num_entries = cursor.integer(8), cursor.integer(8)
    alignment = 32
    for _ in range(num_entries):
        key, kind = cursor.text(), cursor.integer(4)
        if key == _ALIGNMENT and kind == _UINT32:
            alignment = cursor.integer(4)
            if alignment < 1 or alignment & alignment - 1:
                raise ValueError(f"{_ALIGNMENT}: {alignment} is no power of two")
        else:
            cursor.skip_value(key, kind)
    described = [cursor.description() for _ in range(cursor.count(num_tensors, _Cursor.MIN_DESCRIPTION))]
    start = -(-cursor.at // alignment) * alignment
    entries: dict[str, Entry] = {}
    for name, kind, shape, offset in described:
        if name in entries:
            raise ValueError(f"{name}: two tensors of that name")
        if offset % alignment:
            raise ValueError(f"{name}: offset {offset} is no multiple of {_ALIGNMENT} = {alignment}")
        entries[name] = _entry(name, kind, shape, start + offset, len(data), sizes)
    _check_overlap(entries)
    return entries


def _entry(
    name: str, kind: int, shape: list[int], begin: int, file_bytes: int, sizes: Mapping[int, tuple[int, int]]
) -> Entry:
    if kind not in sizes:
        raise ValueError(f"{name}: type {kind} is unknown")
    elements, block_bytes = sizes[kind]
    if not shape or 0 in shape or shape[-1] % elements:
        raise ValueError(f"{name}: shape {shape} is not in blocks of {elements} columns")
    count = 1
    for size in shape:
        count *= size
    end = begin + count // elements * block_bytes
    if end > file_bytes:
        raise ValueError(f"{name}: shape {shape} ends at byte {end} of a file of {file_bytes}")
    return Entry(kind, shape, begin, end)


def _check_overlap(entries: dict[str, Entry]) -> None:
    last, last_end = "", 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin < last_end:
            raise ValueError(f"{name}: overlaps {last}")
        last, last_end = name, entry.end


class _Cursor:
    """A place in the file, and what can be read there."""

    MIN_DESCRIPTION = 8 + 4 + 4 + 8  # a name's length, the number of dimensions, the type, the offset

    def __init__(self, data: NDArray[Any]) -> None:
        self._data, self.at = data, 0

    def count(self, number: int, item_bytes: int) -> int:
        """`number`, if so many items of at least `item_bytes` are left."""
        left = len(self._data) - self.at
        if number * item_bytes > left:
            raise ValueError(f"truncated: {number} items at byte {self.at}, where {left} bytes are left")
        return number

    def take(self, size: int) -> bytes:
        """The next bytes."""
        self._skip(size)
        return self._data[self.at - size : self.at].tobytes()

    def integer(self, size: int) -> int:
        """An unsigned integer of 4 or 8 bytes."""
        return int(struct.unpack("<I" if size == 4 else "<Q", self.take(size))[0])

    def text(self) -> str:
        """A string."""
        return self.take(self.integer(8)).decode("utf-8")

    def skip_value(self, key: str, kind: int) -> None:
        """Passes the value of a metadata entry."""
        number = 1
        if kind == _ARRAY:
            kind, number = self.integer(4), self.integer(8)
        if kind == _STRING:
            for _ in range(self.count(number, 8)):
                self._skip(self.integer(8))
        elif kind in _SCALAR_BYTES:
            self._skip(number * _SCALAR_BYTES[kind])
        else:
            raise ValueError(f"{key}: metadata of type {kind} is not read")

    def _skip(self, size: int) -> None:
        self.at += self.count(size, 1)

    def description(self) -> tuple[str, int, list[int], int]:
        """(name, type, shape, offset) of a tensor."""
        name, num_dims = self.text(), self.integer(4)
        if num_dims > _MAX_DIMS:
            raise ValueError(f"{name}: {num_dims} dimensions are more than {_MAX_DIMS}")
        shape = [self.integer(8) for _ in range(num_dims)][::-1]
        return name, self.integer(4), shape, self.integer(8)
