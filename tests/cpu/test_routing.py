"""moe_align and moe_reduce against the oracle, bit for bit."""

import numpy as np
import pytest
import torch
from humming_ext._ops import ALIGNED
from oracle.rounding import ROUND
from oracle.routing import moe_align, moe_reduce
from support import TORCH, array, assert_bits_equal, guarded, tensor

ops = torch.ops.humming


def random_ids(rng: np.random.Generator, tokens: int, top_k: int, experts: int, missing: float = 0.0) -> np.ndarray:
    """int [tokens, top_k], different within a row; a part of them -1."""
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k]
    return np.where(rng.random(ids.shape) < missing, -1, ids)


def check_align(
    ids: np.ndarray, experts: int, block: int, expert_map: np.ndarray | None = None, dtype=torch.int32
) -> None:
    map_tensor = None if expert_map is None else torch.from_numpy(expert_map.astype(np.int32))
    outputs = ops.moe_align(torch.from_numpy(ids).to(dtype), experts, block, map_tensor)
    for name, actual, expected in zip(ALIGNED, outputs, moe_align(ids, experts, block, expert_map), strict=True):
        assert_bits_equal(actual, torch.from_numpy(expected), name)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("block", [1, 8, 16, 64, 1000])
@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "missing"),
    [(0, 2, 4, 0), (1, 1, 1, 0), (1, 8, 256, 0), (7, 2, 8, 0), (33, 6, 64, 0.3), (200, 2, 3, 0.1), (5, 2, 4, 1.0)],
)
def test_align(tokens: int, top_k: int, experts: int, missing: float, block: int, dtype: torch.dtype) -> None:
    check_align(random_ids(np.random.default_rng(tokens), tokens, top_k, experts, missing), experts, block, dtype=dtype)


def test_align_all_tokens_to_one_expert() -> None:
    check_align(np.full((65, 1), 3), 8, 16)


def test_align_repeated_expert_of_one_token() -> None:
    check_align(np.array([[1, 1, 0], [0, 1, 1]]), 2, 4)


@pytest.mark.parametrize("block", [1, 4, 128])
def test_align_with_expert_map(block: int) -> None:
    """Global ids to local ones; experts of other devices are dropped like -1."""
    rng = np.random.default_rng(5)
    expert_map = np.full(64, -1)
    expert_map[rng.permutation(64)[:16]] = np.arange(16)
    check_align(random_ids(rng, 50, 6, 64, 0.1), 16, block, expert_map)
    check_align(random_ids(rng, 50, 6, 64), 16, block, np.full(64, -1))


def test_align_writes_nothing_else() -> None:
    ids = random_ids(np.random.default_rng(6), 9, 3, 8, 0.2)
    expected = moe_align(ids, 8, 4)
    shapes = [tuple(part.shape) for part in expected]
    with (
        guarded(shapes[0], torch.int32) as sorted_pairs,
        guarded(shapes[1], torch.int32) as positions,
        guarded(shapes[2], torch.int32) as blocks,
        guarded(shapes[3], torch.int32) as num_blocks,
        guarded(shapes[4], torch.int32) as offsets,
    ):
        outputs = dict(zip(ALIGNED, (sorted_pairs, positions, blocks, num_blocks, offsets), strict=True))
        ops.moe_align.out(torch.from_numpy(ids), 8, 4, None, **outputs)
        for (name, actual), wanted in zip(outputs.items(), expected, strict=True):
            assert_bits_equal(actual, torch.from_numpy(wanted), name)


def random_reduction(dtype: str, tokens: int, top_k: int, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([tokens, top_k, hidden])
    y = ROUND[dtype](rng.standard_normal((tokens, top_k, hidden)) * 3)
    return y, rng.random((tokens, top_k)).astype(np.float32)


def rounded(result: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(result).to(TORCH[dtype])


SHAPES = [(1, 1, 8), (5, 2, 80), (3, 8, 200), (33, 6, 129), (2, 4, 1), (0, 2, 16), (4, 0, 16)]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("tokens", "top_k", "hidden"), SHAPES)
def test_reduce(tokens: int, top_k: int, hidden: int, dtype: str) -> None:
    y, weights = random_reduction(dtype, tokens, top_k, hidden)
    out = ops.moe_reduce(tensor(y, dtype), torch.from_numpy(weights), None, None)
    assert_bits_equal(out, rounded(moe_reduce(y, weights), dtype))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_reduce_with_scale_and_addend(dtype: str, scale: float) -> None:
    y, weights = random_reduction(dtype, 9, 3, 70)
    add = ROUND[dtype](np.random.default_rng(1).standard_normal((9, 70)))
    out = ops.moe_reduce(tensor(y, dtype), torch.from_numpy(weights), None, None, scale, tensor(add, dtype))
    assert_bits_equal(out, rounded(moe_reduce(y, weights, scale=scale, add=add), dtype))


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_reduce_reads_no_skipped_pair_and_no_invalid_token(id_dtype: torch.dtype) -> None:
    y, weights = random_reduction("bf16", 10, 4, 33)
    ids = random_ids(np.random.default_rng(2), 10, 4, 8, 0.4)
    ids[3] = -1
    poisoned = y.copy()
    poisoned[ids < 0] = np.nan
    poisoned[7:] = np.nan
    out = ops.moe_reduce(
        tensor(poisoned, "bf16"),
        torch.from_numpy(weights),
        torch.from_numpy(ids).to(id_dtype),
        torch.tensor([7], dtype=torch.int32),
    )
    expected = moe_reduce(y, weights, topk_ids=ids, num_valid_tokens=7)
    assert_bits_equal(out, rounded(expected, "bf16"))
    assert (array(out)[7:] == 0).all() and (array(out)[3] == 0).all()


@pytest.mark.parametrize("valid", [0, 4])
def test_reduce_of_invalid_tokens_ignores_the_addend(valid: int) -> None:
    y, weights = random_reduction("fp32", 4, 2, 16)
    add = np.full((4, 16), 3.0)
    add[valid:] = np.nan
    out = ops.moe_reduce(
        *(tensor(y, "fp32"), torch.from_numpy(weights), None, torch.tensor([valid], dtype=torch.int32)),
        *(1.0, tensor(add, "fp32")),
    )
    assert_bits_equal(out, rounded(moe_reduce(y, weights, num_valid_tokens=valid, add=add), "fp32"))


def test_reduce_of_strided_rows_writes_nothing_else() -> None:
    y, weights = random_reduction("bf16", 5, 3, 40)
    wide = torch.full((5, 4, 50), float("nan"), dtype=torch.bfloat16)
    wide[:, :3, :40] = tensor(y, "bf16")
    with guarded((5, 40), torch.bfloat16, pitch=44) as out:
        ops.moe_reduce.out(wide[:, :3, :40], torch.from_numpy(weights), None, None, out=out)
        assert_bits_equal(out.contiguous(), rounded(moe_reduce(y, weights), "bf16"))


def test_runs_and_thread_counts_give_the_same_bits() -> None:
    y, weights = random_reduction("bf16", 203, 6, 130)
    run = lambda: ops.moe_reduce(tensor(y, "bf16"), torch.from_numpy(weights), None, None)  # noqa: E731
    first = run()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert_bits_equal(run(), first, f"{count} threads")
    finally:
        torch.set_num_threads(threads)
