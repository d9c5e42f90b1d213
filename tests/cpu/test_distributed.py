"""Expert parallelism on gloo, with a process per rank."""

from pathlib import Path

import expert_parallel
import pytest
import torch
import torch.distributed as dist
from expert_parallel import shard
from humming_ext import FusedMoE
from humming_ext.distributed import AllToAll, ExpertParallelMoE
from moe_layers import BY_NAME, make_layer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("ranks", "names"),
    [(2, ("v4-fp8_g128", "gpt_oss-bf16", "qwen3-int8", "qwen3-fp16")), (4, ("v4-fp8_g128", "gpt_oss-bf16"))],
)
def test_ranks_together_are_the_whole_layer(ranks: int, names: tuple[str, ...], tmp_path: Path) -> None:
    expert_parallel.check(names, ranks, "gloo", tmp_path)


def test_layers_that_cannot_be_spread_are_refused(tmp_path: Path) -> None:
    experts = shard(make_layer(BY_NAME["qwen3-bf16"]).module, 0, 2, CPU)
    weights = (experts.w13.weight, experts.w2.weight)
    with pytest.raises(ValueError, match="experts: has an expert_map"):
        ExpertParallelMoE(FusedMoE(*weights, expert_map=torch.arange(8, dtype=torch.int32)))
    with pytest.raises(ValueError, match="apply_router_weight_on_input; multiply x"):
        ExpertParallelMoE(FusedMoE(*weights, apply_router_weight_on_input=True))
    with pytest.raises(ValueError, match="experts_per_rank = 0"):
        AllToAll(0)
    assert not dist.is_initialized()
