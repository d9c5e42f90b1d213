"""The command line: `python -m humming_ext info | inspect FILE | demo | bench ...`."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from . import QuantSpec, WeightFormat, build_info, explain, load_weights


def info() -> int:
    """Prints what was built, the device, the formats, and the plan of 4-bit weights for every activation dtype."""
    build = build_info()
    archs = ", ".join(str(arch) for arch in build["cuda_archs"]) or "none: CPU ops only"
    print(f"humming_ext    {build['version']}, layout version {build['layout_version']}, torch {torch.__version__}")
    print(f"CUDA           {archs}; preset {build['preset']}, {len(build['instances'])} kernel instances")
    print(f"CPU            {build['cpu_isa']}, {torch.get_num_threads()} threads")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"GPUs           {', '.join(gpus) or 'none'}")
    print(f"formats        {' '.join(weight_format.name for weight_format in WeightFormat)}")
    print("\nplans, int4 weights [4096, 4096] with channel scales:")
    spec = QuantSpec(WeightFormat.int4, scale_dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8):
        chosen = spec.for_activation(dtype, widen=True)
        plan = explain(chosen.desc(4096, 4096), dtype, cuda=bool(gpus)).splitlines()[0]
        print(f"  {str(dtype).removeprefix('torch.'):<14} {plan}")
    return 0


def inspect(path: str) -> int:
    """Lists the packed weights of a safetensors file. Returns 1 if it cannot be read, or has none for this build."""
    try:
        weights = load_weights(path)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    for name, weight in weights.items():
        print(f"{name}: {weight!r}")
    print(f"{len(weights)} packed weights, {sum(weight.nbytes for weight in weights.values()):,} bytes")
    return 0


def demo() -> int:
    """Runs the language model demo. Returns 1 if it fails or if one of its packages is missing."""
    from .demo import main

    try:
        return main()
    except (FileNotFoundError, ModuleNotFoundError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


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
    """Parses `argv` (default: the command line) and returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["bench"]:  # its options are its own
        return bench(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m humming_ext", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what was built, and what runs here")
    commands.add_parser("demo", help="run a 4-bit language model and check it against float32 and torch bf16")
    inspect_parser = commands.add_parser("inspect", help="list the packed weights of a safetensors file")
    inspect_parser.add_argument("file", help="a file written by humming_ext.save_weights")
    commands.add_parser("bench", help="run benchmarks/bench.py of the source checkout here; bench --help has more")
    args = parser.parse_args(argv)
    if args.command == "info":
        return info()
    if args.command == "inspect":
        return inspect(args.file)
    return demo()


if __name__ == "__main__":
    sys.exit(main())
