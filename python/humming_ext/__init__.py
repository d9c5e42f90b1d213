"""Quantised matrix products for inference: packed weights of 1 to 8 bits, dense and mixture-of-experts.

The ops are `torch.ops.humming.*`: gemm, moe_gemm, fused_moe, quantize_activation, moe_align, moe_reduce, prepack,
decode_packed. `humming_ext.distributed` has expert parallelism.
"""

import torch as _torch  # noqa: F401 - loads the libraries that _C is linked to

# Registration: first the schemas and the kernels, then the functional forms, which allocate for them.
from . import _C, _ops  # type: ignore[attr-defined] # noqa: F401
from ._desc import build_info
from ._explain import explain
from ._quantize import quantize
from ._version import __version__
from ._weight_file import load_weights, save_weights
from .formats import Operand, ScaleType, WeightFormat, ZeroKind
from .fused_moe import FusedMoE
from .linear import QuantLinear
from .packed_weight import PackedWeight
from .spec import QuantSpec

__all__ = [
    "FusedMoE",
    "Operand",
    "PackedWeight",
    "QuantLinear",
    "QuantSpec",
    "ScaleType",
    "WeightFormat",
    "ZeroKind",
    "__version__",
    "build_info",
    "explain",
    "load_weights",
    "quantize",
    "save_weights",
]
