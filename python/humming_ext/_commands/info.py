"""`info`: what was built, and what runs here."""

import shutil
import subprocess
from argparse import Namespace
from typing import Any

import torch

from .._desc import build_info
from .._explain import explain
from ..formats import WeightFormat, ZeroKind
from ..spec import QuantSpec
from ._common import ACTIVATIONS, add_command, print_json

_SIZE = 4096
_EXPERTS = 8
_TOKENS = (1, 16, 256, 4096)


def add(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands, "info", info, "what was built, which GPUs are here, and what formats run", "info int4 e4m3"
    )
    parser.add_argument(
        "weight", nargs="?", choices=[f.name for f in WeightFormat], metavar="WEIGHT", help="a weight format, as int4"
    )
    parser.add_argument(
        "activation", nargs="?", choices=ACTIVATIONS, metavar="ACTIVATION", help=f"one of {', '.join(ACTIVATIONS)}"
    )


def info(args: Namespace) -> int:
    """Prints the build, the devices, and plans: of a pair if it is given, else of every activation with one format."""
    build = build_info()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    weight_format = WeightFormat[args.weight or "int4"]
    plans = _pair(weight_format, args.activation) if args.activation else _overview(weight_format, bool(gpus))
    if args.json:
        print_json({**build, "torch": torch.__version__, "gpus": gpus, "driver": _driver(), "plans": plans})
        return 0
    archs = ", ".join(str(arch) for arch in build["cuda_archs"]) or "none: CPU ops only"
    print(f"humming_ext    {build['version']}, layout version {build['layout_version']}, torch {torch.__version__}")
    print(f"CUDA           {archs}; preset {build['preset']}, {len(build['instances'])} kernel instances")
    print(f"CPU            {build['cpu_isa']}, {torch.get_num_threads()} threads")
    print(f"GPUs           {', '.join(gpus) or 'none'}; driver {_driver() or 'none'}")
    print(f"formats        {' '.join(weight_format.name for weight_format in WeightFormat)}")
    print(f"\nplans, {weight_format.name} weights [{_SIZE}, {_SIZE}]:")
    for name, plan in plans.items():
        print(f"  {name:<44} {plan}")
    return 0


def _driver() -> str | None:
    """The version of the NVIDIA driver, or None if nvidia-smi does not tell."""
    if not (program := shutil.which("nvidia-smi")):
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return lines[0] if lines else None


def _overview(weight_format: WeightFormat, cuda: bool) -> dict[str, str]:
    """The plan of one token, with channel scales, by activation."""
    return {name: _plan(weight_format, name, 0, 0, 1, cuda) for name in ACTIVATIONS}


def _pair(weight_format: WeightFormat, activation: str) -> dict[str, str]:
    """Plans by scales, op and tokens; those of a GPU if the build has kernels."""
    cuda = bool(build_info()["cuda_archs"])
    return {
        f"{f'groups of {group}' if group else 'channel scales'}, {op}, {tokens} tokens": _plan(
            weight_format, activation, group, experts, tokens, cuda
        )
        for group in (0, 128)
        for op, experts in (("dense", 0), (f"{_EXPERTS} experts", _EXPERTS))
        for tokens in _TOKENS
    }


def _plan(weight_format: WeightFormat, activation: str, group: int, experts: int, tokens: int, cuda: bool) -> str:
    dtype = ACTIVATIONS[activation]
    spec = QuantSpec(
        weight_format,
        group=group,
        scale_dtype=torch.bfloat16 if group else torch.float32,
        zero=ZeroKind.integer if weight_format.kind == "uint" else ZeroKind.none,
    ).for_activation(dtype, widen=True)
    return explain(spec.desc(_SIZE, _SIZE, experts), dtype, tokens, cuda=cuda).splitlines()[0]
