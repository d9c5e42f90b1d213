"""What commands share: their parsers, activation types by name, and a progress line."""

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import Any

import torch

ACTIVATIONS = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "int8": torch.int8,
    "int4": torch.uint8,
}


def add_command(
    commands: Any, name: str, run: Callable[[Namespace], int], summary: str, example: str
) -> ArgumentParser:
    """The parser of a command, with --json. `run` takes the parsed arguments and returns the exit status."""
    parser: ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary}.",
        epilog=f"example: python -m humming_ext {example}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)
    return parser


def print_json(values: dict[str, Any]) -> None:
    """Prints an object; dtypes and enumerations as their names."""
    print(json.dumps(values, indent=1, default=str))


class Progress:
    """A line on stderr that says which of `total` items is at hand, if stderr is a terminal. A context manager."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._shown = total, 0, sys.stderr.isatty()

    def show(self, name: str) -> None:
        """The next item begins."""
        if self._shown:
            bar = "#" * (30 * self._done // self._total)
            print(f"\r[{bar:<30}] {self._done}/{self._total} {name}\033[K", end="", file=sys.stderr, flush=True)
        self._done += 1

    def clear(self) -> None:
        """Empties the line, before something else is printed and at the end."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
