"""Expert parallelism on NCCL, with a process per GPU."""

from pathlib import Path

import expert_parallel
import pytest
import torch
import torch.distributed as dist


def test_two_gpus_together_are_the_whole_layer(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, torch sees {torch.cuda.device_count()}")
    if not dist.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    expert_parallel.check(("v4-fp8", "gpt_oss-bf16"), 2, "nccl", tmp_path)
