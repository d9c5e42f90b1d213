"""Quantised checkpoints as transformers models whose linear layers run on this package.

`load(folder)` is `AutoModelForCausalLM.from_pretrained(folder)` with the quantizer "humming", which is registered here
under a name of its own, in place of the one that the checkpoint's quant_method names. The checkpoint is read by
`humming_ext.checkpoints`, so that what is said there about formats holds here. Needs the PyPI package `transformers`.
"""

import re
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .checkpoints import open_checkpoint
from .linear import QuantLinear

NAME = "humming"


@register_quantization_config(NAME)
class HummingConfig(QuantizationConfigMixin):
    """The quantization_config that selects the quantizer. Formats are those of the checkpoint's own config.json."""

    def __init__(self, **_: Any) -> None:
        self.quant_method = NAME  # type: ignore[assignment] # names of others are no QuantizationMethod


class _Pending(nn.Module):
    """Stands for a linear layer while the other tensors are loaded: it has the bias alone."""

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.register_parameter("bias", bias if bias is None else nn.Parameter(bias, requires_grad=False))


@register_quantizer(NAME)
class HummingQuantizer(HfQuantizer):
    """Replaces the linear layers that a checkpoint has quantised by QuantLinear with its own codes and scales."""

    requires_calibration = True  # that is, it loads checkpoints and quantises nothing itself

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        self._checkpoint = open_checkpoint(Path(kwargs["checkpoint_files"][0]).parent)
        for name in self._checkpoint.names:
            linear = model.get_submodule(name)
            if not isinstance(linear, nn.Linear):
                raise ValueError(f"{name}: {type(linear).__name__} is no linear layer, and nothing else is replaced")
            model.set_submodule(name, _Pending(linear.bias))
        quantised = "|".join(map(re.escape, self._checkpoint.names))
        model._keys_to_ignore_on_load_unexpected.add(rf"^({quantised})\.(?!bias$)")

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        for name in self._checkpoint.names:
            weight = self._checkpoint.read(name)
            packed = weight.pack(weight.spec.for_activation(model.dtype), device=model.device)
            model.set_submodule(name, QuantLinear(packed, model.get_submodule(name).bias))

    def is_serializable(self) -> bool:
        """False: `humming_ext.save_weights` and the state dict keep packed weights."""
        return False

    @property
    def is_trainable(self) -> bool:
        """False: this package is for inference."""
        return False


def load(folder: str | PathLike[str], **kwargs: Any) -> Any:
    """The causal language model of a checkpoint folder, of a format that `humming_ext.checkpoints` reads.

    kwargs: as `from_pretrained` takes them; the dtype must be bfloat16 or float16.

    Raises ValueError, naming tensor and field, for what `open_checkpoint` and `Checkpoint.read` refuse, and for
    quantised modules that are no linear layers.
    """
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = {"quant_method": NAME}
    return AutoModelForCausalLM.from_pretrained(folder, config=config, **kwargs)
