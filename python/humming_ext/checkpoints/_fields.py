"""The fields of a checkpoint's JSON files, checked on the way out."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_MAX_BYTES = 1 << 26  # of a JSON file; the index of the largest models has some 2^23

_REQUIRED: Any = object()


def read_json(path: Path) -> "Fields":
    """The object in a JSON file. Raises ValueError, naming the file, if it is none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes are more than the {_MAX_BYTES} of any real one")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable JSON file: {error}") from error
    return parse_json(text, f"{path}: ")


def parse_json(text: str, where: str) -> "Fields":
    """The object that is a JSON text. Raises ValueError, which begins with `where`, if it is none."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}no readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where}holds no JSON object")
    return Fields(values, where)


class Fields:
    """A JSON object. Every method raises ValueError, naming the field, for a value that is not what it returns.

    A field that is missing or null is its default; without a default it is an error.
    """

    def __init__(self, values: dict[str, Any], where: str, defaults: "Fields | None" = None) -> None:
        self._values, self._where, self._defaults = values, where, defaults

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None or (self._defaults is not None and key in self._defaults)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def error(self, key: str, problem: str) -> ValueError:
        """The error to raise about a field."""
        if self._values.get(key) is None and self._defaults is not None:
            return self._defaults.error(key, problem)
        return ValueError(f"{self._where}{key}: {problem}")

    def over(self, defaults: "Fields") -> "Fields":
        """These fields, and those of another object that are not among them."""
        return Fields(self._values, self._where, defaults)

    def section(self, key: str) -> "Fields":
        """An object inside this one."""
        return Fields(self._get(key, dict, _REQUIRED, "object"), f"{self._where}{key}.")

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """A string."""
        return self._get(key, str, default, "string")

    def flag(self, key: str, default: bool = _REQUIRED) -> bool:
        """True or false."""
        return self._get(key, bool, default, "boolean")

    def items(self, key: str, kind: type, default: list[Any] = _REQUIRED) -> list[Any]:
        """A list whose items are of `kind`."""
        values = self._get(key, list, default, "list")
        if not all(type(value) is kind for value in values):
            raise self.error(key, f"{values} is no list of {kind.__name__}")
        return values

    def integer(self, key: str, legal: Iterable[int], default: int = _REQUIRED) -> int:
        """An integer that is in `legal`."""
        return self._one_of(key, self._get(key, int, default, "integer"), legal)

    def number(self, key: str) -> float:
        """A number with a decimal point or an exponent."""
        return self._get(key, float, _REQUIRED, "number with a decimal point")

    def group(self, key: str) -> int:
        """Columns that share a scale; 0, the whole row, for -1."""
        size = self.integer(key, range(-1, 1 << 31))
        if size == 0:
            raise self.error(key, "0 is neither a number of columns nor -1")
        return max(size, 0)

    def block(self, key: str) -> tuple[int, int]:
        """The rows and columns of a block, or of a weight."""
        shape = self.items(key, int)
        if len(shape) != 2 or not all(0 < size < 1 << 31 for size in shape):
            raise self.error(key, f"{shape} is not [rows, columns]")
        return shape[0], shape[1]

    def choice(self, key: str, legal: Iterable[str], default: str = _REQUIRED) -> str:
        """A string that is in `legal`."""
        return self._one_of(key, self.text(key, default), legal)

    def _one_of(self, key: str, value: Any, legal: Iterable[Any]) -> Any:
        if value not in legal:
            span = f"{legal.start} to {legal.stop - 1}" if isinstance(legal, range) else ", ".join(map(repr, legal))
            raise self.error(key, f"{value!r} is not read; what is: {span}")
        return value

    def _get(self, key: str, kind: type, default: Any, what: str) -> Any:
        value = self._values.get(key)
        if value is None and self._defaults is not None:
            return self._defaults._get(key, kind, default, what)
        if value is None and default is not _REQUIRED:
            return default
        if type(value) is not kind:
            raise self.error(key, "missing" if value is None else f"{value!r} is no {what}")
        return value
