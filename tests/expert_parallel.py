"""What every rank of an expert-parallel layer does in the tests, on CPUs and on GPUs; and how ranks are started."""

from __future__ import annotations

from pathlib import Path

import humming_ext
import torch
import torch.distributed as dist
import torch.multiprocessing
from humming_ext.distributed import ExpertParallelMoE
from moe_layers import BY_NAME, LayerCase, Problem, make_layer, make_problem
from moe_routings import Routing
from support import assert_bits_equal

# Kind and tokens of the ranks' routings, in turn.
ROUNDS = [
    [("skewed", 17), ("balanced", 5), ("skewed", 33), ("balanced", 1)],
    [("balanced", 0), ("skewed", 3), ("nobody", 4), ("skewed", 16)],  # a rank without tokens
    [("one", 20), ("one", 7), ("one", 12), ("one", 3)],  # all tokens to one expert
    [("nobody", 2), ("nobody", 2), ("balanced", 0), ("nobody", 1)],
    [("balanced", 0)],
]


def shard(module: humming_ext.FusedMoE, rank: int, ranks: int, device: torch.device) -> humming_ext.FusedMoE:
    """The layer of the rank's experts."""
    count = module.w13.weight.fields.experts // ranks
    mine = slice(rank * count, (rank + 1) * count)

    def part(weight: humming_ext.PackedWeight) -> humming_ext.PackedWeight:
        assert weight.scale2 is not None
        desc = list(weight.fields._replace(experts=count))
        return humming_ext.PackedWeight(weight.packed[mine].clone(), weight.scale2[mine].clone(), desc)

    biases = [None if weight.bias is None else weight.bias[mine].clone() for weight in (module.w13, module.w2)]
    return humming_ext.FusedMoE(
        part(module.w13.weight),
        part(module.w2.weight),
        w13_bias=biases[0],
        w2_bias=biases[1],
        activation=module.activation,
        activation_args=module.activation_args,
        activation_group=module.activation_group,
        routed_scaling_factor=module.routed_scaling_factor,
    ).to(device)


def run(layer: ExpertParallelMoE, problem: Problem, device: torch.device) -> torch.Tensor:
    shared = problem.options.get("shared_output")
    weights, ids = (rows.to(device) for rows in problem.rows)
    return layer(problem.x.to(device), weights, ids, shared_output=None if shared is None else shared.to(device)).cpu()


def check_case(case: LayerCase, rank: int, ranks: int, device: torch.device) -> None:
    """Against the oracle; twice with the same bits; and with one expert per token, those of the layer in one place."""
    layer = ExpertParallelMoE(shard(make_layer(case).module, rank, ranks, device))
    for turns in ROUNDS:
        kind, tokens = turns[rank % len(turns)]
        problem = make_problem(case, Routing(kind, tokens, case.top_k, case.experts))
        first = run(layer, problem, device)
        problem.check(first)
        assert_bits_equal(run(layer, problem, device), first, "the second run")
    alone = make_problem(case, Routing("skewed", 9 + rank, case.top_k, case.experts), shared=False)
    alone.rows = tuple(rows[:, :1].contiguous() for rows in alone.rows)
    together = run(layer, alone, device)
    if device.type == "cpu":  # a GPU may choose another kernel for fewer rows
        assert_bits_equal(together, alone.call(), "one expert per token")


def _rank(rank: int, ranks: int, backend: str, store: str, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        for name in names:
            check_case(BY_NAME[name], rank, ranks, device)
    finally:
        dist.destroy_process_group()


def check(names: tuple[str, ...], ranks: int, backend: str, folder: Path) -> None:
    """The named cases on so many ranks, one process each; raises what a rank raised."""
    torch.multiprocessing.spawn(_rank, (ranks, backend, str(folder / "store"), names), nprocs=ranks)
