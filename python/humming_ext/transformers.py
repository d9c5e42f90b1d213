"""Quantised checkpoints as transformers models whose linear layers and experts run on this package.

`load(path)` is `AutoModelForCausalLM.from_pretrained(path)` with the quantizer "humming", which is registered here
under a name of its own, in place of the one that the checkpoint's quant_method names. The checkpoint is read by
`humming_ext.checkpoints`, so that what is said there about formats holds here. Needs the PyPI package `transformers`.
"""

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ._transformers_experts import PARTS, ExpertsPlan, is_experts
from .checkpoints import Checkpoint, GgufFile, open_checkpoint
from .checkpoints.gguf_llama import GgufLlama
from .linear import QuantLinear

NAME = "humming"


@register_quantization_config(NAME)
class HummingConfig(QuantizationConfigMixin):
    """The quantization_config that selects the quantizer. Formats are those of the checkpoint's own config.json.

    gguf_file: the checkpoint, where it is such a file and no folder.
    """

    def __init__(self, gguf_file: str | None = None, **_: Any) -> None:
        self.gguf_file = gguf_file
        self.quant_method = NAME  # type: ignore[assignment] # names of others are no QuantizationMethod


class _Pending(nn.Module):
    """Stands for a module while the other tensors are loaded: it has the biases alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("bias"):
                self.register_parameter(name, nn.Parameter(parameter, requires_grad=False))


@register_quantizer(NAME)
class HummingQuantizer(HfQuantizer):
    """Replaces what a checkpoint has quantised: linear layers by QuantLinear, experts by FusedMoE."""

    quantization_config: HummingConfig
    requires_calibration = True  # that is, it loads checkpoints and quantises nothing itself

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        self._checkpoint: Checkpoint | GgufFile | GgufLlama
        if gguf_file := self.quantization_config.gguf_file:
            self._checkpoint = GgufLlama(gguf_file, model.config)
        else:
            self._checkpoint = open_checkpoint(Path(kwargs["checkpoint_files"][0]).parent)
        self._linears: dict[str, str] = {}
        self._experts: dict[str, ExpertsPlan] = {}
        self._assign(model)
        replaced = [*self._linears, *self._experts]
        for name in replaced:
            model.set_submodule(name, _Pending(model.get_submodule(name)))
        model._keys_to_ignore_on_load_unexpected.add(rf"^({'|'.join(map(re.escape, replaced))})\.(?!.*bias$)")

    def _assign(self, model: Any) -> None:
        """Fills `_linears` and `_experts`: names in the model, and what of the checkpoint belongs there.

        How the checkpoint's names become the model's is what transformers says for the model. Its converters make one
        parameter out of the modules of all experts; here they only tell which projection a module is.
        """
        conversions = get_model_conversion_mapping(model)
        renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
        # By a converter's source, all of its sources; None is that of a parameter that is stored as it is.
        projections: dict[str | None, Sequence[str | None]] = {None: [None]}
        projections |= {source: entry.source_patterns for entry in converters for source in entry.source_patterns}
        modules = dict(model.named_modules())
        for name in sorted(self._checkpoint.names, key=dot_natural_key):  # expert 10 is after expert 2
            key, source = rename_source_key(f"{name}.weight", renamings, converters)
            if any(re.search(ignored, key) for ignored in model._keys_to_ignore_on_load_unexpected):
                continue
            target = key.removesuffix(".weight")
            parent, _, part = target.rpartition(".")
            if isinstance(modules.get(target), nn.Linear):
                self._linears[target] = name
            elif is_experts(modules.get(parent)) and part in PARTS:
                if parent not in self._experts:
                    self._experts[parent] = ExpertsPlan(parent, modules[parent])
                sources = self._experts[parent].sources.setdefault(part, {each: [] for each in projections[source]})
                sources[source].append(name)
            else:
                found = type(modules[target]).__name__ if target in modules else f"{target} of {type(model).__name__}"
                raise ValueError(f"{name}: {found} is no linear layer and no experts, and nothing else is replaced")

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        for parameter in model.parameters():  # a tensor that was renamed comes in the dtype that it is stored in
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.to(model.dtype)
        for target, name in self._linears.items():
            weight = self._checkpoint.read(name)
            packed = weight.pack(weight.spec.for_activation(model.dtype), device=model.device)
            model.set_submodule(target, QuantLinear(packed, getattr(model.get_submodule(target), "bias", None)))
        for target, plan in self._experts.items():
            biases = model.get_submodule(target)
            model.set_submodule(target, plan.build(self._checkpoint.read, biases, model.dtype, model.device))

    def is_serializable(self) -> bool:
        """False: `humming_ext.save_weights` and the state dict keep packed weights."""
        return False

    @property
    def is_trainable(self) -> bool:
        """False: this package is for inference."""
        return False


def load(path: str | PathLike[str], **kwargs: Any) -> Any:
    """The causal language model of a checkpoint that `humming_ext.checkpoints` reads: a folder, or a .gguf file.

    kwargs: as `from_pretrained` takes them; the dtype must be bfloat16 or float16.

    Raises ValueError, naming tensor and field, for what `open_checkpoint` and `Checkpoint.read` refuse, and, naming the
    module, for quantised modules that are neither linear layers nor experts, and for experts that FusedMoE cannot take:
    with an activation other than silu and that of gpt-oss, in activation order, or not all quantised alike; and for
    GGUF files of other models than llama.
    """
    path, quantization = Path(path), {"quant_method": NAME}
    if path.suffix != ".gguf":
        config = AutoConfig.from_pretrained(path)
        config.quantization_config = quantization
        return AutoModelForCausalLM.from_pretrained(path, config=config, **kwargs)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config.quantization_config = quantization | {"gguf_file": str(path)}
    checkpoint = GgufLlama(path, config)
    state = checkpoint.state(without=checkpoint.names)
    return LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, **kwargs)
