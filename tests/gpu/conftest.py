"""The GPU tests compare the CUDA ops with the CPU ops, which tests/cpu holds against the oracle.

They need torch, numpy, pytest and the installed package; nothing of the source build.
"""

import humming_ext
import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    if not humming_ext.build_info()["cuda_archs"]:
        pytest.skip("this build of humming_ext has no CUDA kernels")
