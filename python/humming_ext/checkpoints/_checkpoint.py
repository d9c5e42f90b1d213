"""Checkpoints of all formats behind one class, and the registry of the formats."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ._fields import Fields, read_json
from ._tensors import Tensors
from ._weight import CheckpointWeight
from .auto_round import AutoRound
from .awq import Awq
from .bitsandbytes import BitsAndBytes
from .compressed_tensors import CompressedTensors
from .fp8 import Fp8
from .gguf import GgufFile
from .gptq import Gptq
from .hqq import Hqq
from .int8 import Int8
from .modelopt import Modelopt
from .mxfp4 import Mxfp4
from .torchao import TorchAo


class Adapter(Protocol):
    """What reads one format. The registry makes it from the quantization_config of config.json."""

    def names(self, tensors: Tensors) -> list[str]:
        """The modules whose weights the checkpoint has quantised."""

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of one of them. Raises ValueError, naming tensor and field, if it is not as documented."""


#: By the quant_method of quantization_config.
ADAPTERS: dict[str, Callable[[Fields], Adapter]] = {
    "auto-round": AutoRound,
    "awq": Awq,
    "bitsandbytes": BitsAndBytes,
    "compressed-tensors": CompressedTensors,
    "fbgemm_fp8": Fp8,
    "fp8": Fp8,
    "gptq": Gptq,
    "hqq": lambda _: Hqq(),
    "intel/auto-round": AutoRound,
    "modelopt": Modelopt,
    "mxfp4": lambda _: Mxfp4(),
    "torchao": lambda _: TorchAo(),
    "w8a8_int8": lambda _: Int8(),
}


class Checkpoint:
    """A quantised checkpoint, read when asked for.

    names: the modules whose weights are quantised.
    """

    names: list[str]

    def __init__(self, folder: Path) -> None:
        fields = _quantization(read_json(folder / "config.json"))
        method = fields.choice("quant_method", ADAPTERS)
        self._adapter = ADAPTERS[method](fields)
        self._tensors = Tensors(folder)
        self.names = self._adapter.names(self._tensors)
        if not self.names:
            raise fields.error("quant_method", f"{method!r} contradicts {folder}, which has no tensor of such a weight")

    def read(self, name: str) -> CheckpointWeight:
        """The quantised weight of a module of `names`.

        Raises ValueError, naming tensor and field, if the checkpoint contradicts itself or its format's layout.
        """
        return self._adapter.read(self._tensors, name)

    def tensor(self, name: str) -> Tensor:
        """Any tensor as it is stored, such as a bias, a norm or an embedding. Raises ValueError if there is none."""
        return self._tensors.get(name)


def open_checkpoint(path: str | PathLike[str]) -> Checkpoint | GgufFile:
    """The checkpoint in a folder with config.json and safetensors files, or in a file whose name ends in .gguf.

    Raises ValueError, naming file and field, if it cannot be read or is of an unknown format; ImportError for GGUF
    without the PyPI package `gguf`.
    """
    path = Path(path)
    return GgufFile(path) if path.suffix == ".gguf" else Checkpoint(path)


def _quantization(config: Fields) -> Fields:
    """The quantization_config, which models of several modalities have inside their text_config."""
    if "quantization_config" not in config and "text_config" in config:
        config = config.section("text_config")
    return config.section("quantization_config")
