"""AutoRound: the layouts of GPTQ and AWQ under keys of its own.

As the library's exporter and its inference backends have it, packing_format says which layout: "auto_round:auto_gptq"
is GPTQ with zero points less 1 (version 1), "auto_round:gptqmodel" and "auto_round" have them as they are (version 2);
codes of all widths are bit streams. "auto_round:auto_awq" is AWQ. extra_config has fields that differ for some modules,
by name or regular expression; a name goes before an expression, and of the expressions, which are the keys that no
module has as its name, the first that is found in the name counts.
"""

import re

from ._fields import Fields
from ._tensors import Tensors
from ._weight import CheckpointWeight
from .awq import Awq
from .gptq import Gptq

_FIRST_VERSION = {"auto_round:auto_gptq": True, "auto_round:gptqmodel": False, "auto_round": False}


class AutoRound:
    """The adapter of AutoRound checkpoints."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._extra = fields.section("extra_config") if "extra_config" in fields else None

    def names(self, tensors: Tensors) -> list[str]:
        """The modules that have a qweight."""
        return tensors.with_suffix(".qweight")

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of a module. Raises ValueError, naming tensor and field, if it is not as documented."""
        fields = self._fields_of(tensors, name)
        fields.choice("data_type", ["int"], "int")
        fields.integer("act_bits", [16, 32], 16)
        if "rotation_config" in fields:
            raise fields.error("rotation_config", "rotated weights are not read; export the model without rotation")
        packing = fields.choice("packing_format", [*_FIRST_VERSION, "auto_round:auto_awq"], "auto_round:auto_gptq")
        if packing == "auto_round:auto_awq":
            return Awq(fields).read(tensors, name)
        return Gptq(fields, _FIRST_VERSION[packing]).read(tensors, name)

    def _fields_of(self, tensors: Tensors, name: str) -> Fields:
        if self._extra is None:
            return self._fields
        if name in self._extra:
            return self._extra.section(name).over(self._fields)
        for key in self._extra:
            is_module = f"{key}.qweight" in tensors or f"{key}.weight" in tensors
            try:
                if not is_module and re.search(key, name):
                    return self._extra.section(key).over(self._fields)
            except re.error as error:
                raise self._extra.error(key, f"is no regular expression: {error}") from error
        return self._fields
