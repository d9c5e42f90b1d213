"""bitsandbytes: int8 with a scale per channel ("LLM.int8()"). Its 4-bit codes are refused.

The layout, from the library's Linear8bitLt; N rows, K columns:

NAME.weight         int8 [N, K]
NAME.SCB            fp32 [N]: the largest magnitude of a row, which code 127 stands for
NAME.weight_format  uint8 [], 0: the weight is stored in rows; may be missing

4-bit codes (nf4, fp4) index a table of 16 values, which is none of the formats here.
"""

import torch

from ..formats import WeightFormat
from ..spec import QuantSpec
from ._bits import offset_codes
from ._fields import Fields
from ._tensors import Tensors
from ._weight import CheckpointWeight


class BitsAndBytes:
    """The adapter of bitsandbytes checkpoints. Raises ValueError for those of 4 bits."""

    def __init__(self, fields: Fields) -> None:
        if fields.flag("load_in_4bit", False):
            kind = fields.text("bnb_4bit_quant_type", "fp4")
            raise fields.error(
                "load_in_4bit",
                f"{kind} codes index a table of values, for which there is no weight format; quantise the original "
                "model to integers of 4 bits or to e2m1, for instance with compressed-tensors",
            )

    def names(self, tensors: Tensors) -> list[str]:
        """The modules that have a weight of int8, or one with an SCB."""
        return tensors.modules((torch.int8,), ["SCB"])

    def read(self, tensors: Tensors, name: str) -> CheckpointWeight:
        """The weight of a module. Raises ValueError, naming the tensor, if it is not as documented."""
        values = tensors.get(f"{name}.weight", (torch.int8,), [None, None])
        largest = tensors.get(f"{name}.SCB", (torch.float32,), [len(values)])
        order = f"{name}.weight_format"
        if order in tensors and int(tensors.get(order, (torch.uint8,), [])) != 0:
            raise ValueError(f"{order}: only 0 is read, a weight in rows; save the model with a newer bitsandbytes")
        spec = QuantSpec(WeightFormat.int8, scale_dtype=largest.dtype)
        return CheckpointWeight(name, spec, offset_codes(values, 8), largest / 127)
