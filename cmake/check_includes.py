"""Checks the layering of csrc/: includes point down, torch stays in csrc/ops, asm in two places.

A file may include its own room and the rooms before it in ROOMS. Generated headers count as their room's own.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
ROOMS = [
    "core",
    "formats",
    "layout",
    "dequant",
    "mainloop",
    "epilogue",
    "scheduler",
    "kernel",
    "instances",
    "select",
    "ops",
    "host",
]
SUFFIXES = {".h", ".cuh", ".c", ".cpp", ".cu"}
QUOTED = re.compile(r'^\s*#\s*include\s*"([^"]+)"')
TORCH = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10)/')
ASM = re.compile(r"\basm\b\s*(volatile\b\s*)?[({]|\b__asm__\b")


def may_use_torch(path: pathlib.PurePath) -> bool:
    return path.parts[0] == "ops" and path.parts[1] != "cpu"


def may_use_asm(path: pathlib.PurePath) -> bool:
    return path.as_posix() == "core/bits.h" or (path.parts[0] == "mainloop" and path.name.startswith("ptx"))


def problems(path: pathlib.PurePath, text: str) -> list[str]:
    """What is wrong with the file `path` (relative to csrc/), as "line: reason"."""
    room = path.parts[0]
    if room not in ROOMS:
        return [f"1: unknown room {room}; the rooms are {', '.join(ROOMS)}"]
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if match := QUOTED.match(line):
            target = match[1].split("/")[0]
            if "/" not in match[1] or target not in ROOMS:
                found.append(f'{number}: #include "{match[1]}" names no room; write "room/file.h"')
            elif ROOMS.index(target) > ROOMS.index(room):
                found.append(f"{number}: {room} may not include {target}, which lies above it")
        if TORCH.match(line) and not may_use_torch(path):
            found.append(f"{number}: torch headers belong to csrc/ops (not csrc/ops/cpu)")
        if ASM.search(line.split("//")[0]) and not may_use_asm(path):
            found.append(f"{number}: asm belongs to core/bits.h and mainloop/ptx*")
    return found


def main() -> int:
    failed = 0
    for path in sorted(CSRC.rglob("*")):
        if path.suffix in SUFFIXES:
            for problem in problems(path.relative_to(CSRC), path.read_text()):
                print(f"{path.relative_to(ROOT)}:{problem}")
                failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
