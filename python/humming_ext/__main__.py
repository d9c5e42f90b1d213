"""The command line: `python -m humming_ext COMMAND`."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from ._commands import checkpoint, info, report


def demo(_: argparse.Namespace) -> int:
    """Runs the language model demo."""
    from .demo import main

    return main()


def bench(arguments: Sequence[str]) -> int:
    """Runs benchmarks/bench.py of the source checkout that is the working directory. Returns its exit status."""
    script = Path("benchmarks/bench.py")
    if not script.is_file():
        print(
            f"bench: {script.resolve()} does not exist. The benchmarks are not part of the wheel: they check results "
            "against the oracle of the tests. Run this in the root of a source checkout.",
            file=sys.stderr,
        )
        return 1
    return subprocess.call([sys.executable, str(script), *arguments])


def main(argv: list[str] | None = None) -> int:
    """Parses `argv` (default: the command line), runs the command and returns its exit status: 1 after an error."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["bench"]:  # its options are its own
        return bench(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m humming_ext", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info.add(commands)
    checkpoint.add(commands)
    report.add(commands)
    demo_parser = commands.add_parser(
        "demo", help="run a 4-bit language model and check it against float32 and torch bf16"
    )
    demo_parser.set_defaults(run=demo)
    commands.add_parser("bench", help="run benchmarks/bench.py of the source checkout here; bench --help has more")
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (ImportError, KeyError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
