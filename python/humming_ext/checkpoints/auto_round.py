"""AutoRound: the layouts of GPTQ and AWQ under keys of its own.

As the library's exporter and its inference backends have it, packing_format says which layout: "auto_round:auto_gptq"
is GPTQ with zero points less 1 (version 1), "auto_round:gptqmodel" and "auto_round" have them as they are (version 2);
codes of all widths are bit streams. "auto_round:auto_awq" is AWQ. extra_config has fields that differ for some modules,
by name or regular expression; a name goes before an expression, and of the expressions the first that is found in the
name counts.
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
        fields = self._fields_of(name)
        fields.choice("data_type", ["int"], "int")
        fields.integer("act_bits", [16, 32], 16)
        if "rotation_config" in fields:
            raise fields.error("rotation_config", "rotated weights are not read; export the model without rotation")
        packing = fields.choice("packing_format", [*_FIRST_VERSION, "auto_round:auto_awq"], "auto_round:auto_gptq")
        if packing == "auto_round:auto_awq":
            return Awq(fields).read(tensors, name)
        return Gptq(fields, _FIRST_VERSION[packing]).read(tensors, name)

    def _fields_of(self, name: str) -> Fields:
        if self._extra is None:
            return self._fields
        try:
            keys = [key for key in self._extra if key != name and re.search(key, name)]
        except re.error as error:
            raise self._fields.error("extra_config", f"a key is no regular expression: {error}") from error
        key = name if name in self._extra else next(iter(keys), None)
        return self._fields if key is None else self._extra.section(key).over(self._fields)
