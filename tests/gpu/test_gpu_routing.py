"""moe_align and moe_reduce on the GPU: the CPU ops' bytes."""

import humming_ext  # noqa: F401 - registers the ops
import pytest
import torch
from both import Call, compare, ops
from support import assert_bits_equal


def random_ids(pairs: int, experts: int, dtype: torch.dtype = torch.int32, missing: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(pairs + experts)
    ids = torch.randint(0, experts, (pairs, 1), generator=generator)
    ids[torch.rand(pairs, generator=generator) < missing] = -1
    return ids.to(dtype)


@pytest.mark.parametrize("pairs", [0, 1, 31, 32, 33, 1023, 1024, 1025, 65536])
@pytest.mark.parametrize("experts", [1, 2, 8, 33, 256, 4096])
def test_align(experts: int, pairs: int) -> None:
    for dtype, block, missing in [
        (torch.int32, 1, 0),
        (torch.int64, 8, 0.3),
        (torch.int32, 128, 0),
        (torch.int64, 2**31 - 1, 0.1),
    ]:
        compare("moe_align", random_ids(pairs, experts, dtype, missing), experts, block, None)


@pytest.mark.parametrize(("pairs", "experts"), [(1_000_000, 256), (100_000, 8192)])
def test_align_many(pairs: int, experts: int) -> None:
    compare("moe_align", random_ids(pairs, experts), experts, 16, None)


def test_align_of_too_many_experts_is_refused() -> None:
    with pytest.raises(RuntimeError, match="num_experts = 8193"):
        ops.moe_align(torch.zeros(4, 1, dtype=torch.int32, device="cuda"), 8193, 16, None)


def test_align_of_extreme_routings() -> None:
    for ids in (torch.full((5000, 2), 3), torch.full((5000, 2), -1), torch.arange(64).repeat(100).view(-1, 4)):
        for block in (1, 16, 128):
            compare("moe_align", ids.int(), 64, block, None)


def test_align_with_expert_map() -> None:
    expert_map = torch.full((256,), -1, dtype=torch.int32)
    expert_map[torch.randperm(256)[:32]] = torch.arange(32, dtype=torch.int32)
    for dtype in (torch.int32, torch.int64):
        compare("moe_align", random_ids(6000, 256, dtype, 0.1).view(-1, 6), 32, 16, expert_map)


def test_align_drops_ids_out_of_range() -> None:
    """The CPU raises for them; the GPU cannot, and treats them as -1."""
    ids = random_ids(3000, 40)
    kept = torch.where(ids < 32, ids, -1)
    ids[ids == 5], kept[kept == 5] = -7, -1
    ids[ids == 6], kept[kept == 6] = 2**31 - 1, -1
    call = Call("moe_align", (kept, 32, 16, None))
    call.check(dict(zip(call.expected, ops.moe_align(ids.cuda(), 32, 16, None), strict=True)))
    expert_map = torch.arange(32, dtype=torch.int32)
    expert_map[3], expert_map[4] = 32, -9
    kept = torch.where((kept == 3) | (kept == 4), -1, kept)
    call = Call("moe_align", (kept, 32, 16, None))
    call.check(dict(zip(call.expected, ops.moe_align(ids.cuda(), 32, 16, expert_map.cuda()), strict=True)))


def reduce_args(tokens: int, top_k: int, hidden: int, dtype: torch.dtype = torch.bfloat16) -> tuple:
    generator = torch.Generator().manual_seed(tokens + hidden)
    y = torch.randn(tokens, top_k, hidden, generator=generator).to(dtype)
    return y, torch.rand(tokens, top_k, generator=generator)


@pytest.mark.parametrize(
    ("top_k", "hidden"),
    [
        (0, 8),
        (1, 1),
        (1, 4104),
        (2, 7),
        (2, 100),
        (2, 2048),
        (6, 8),
        (6, 100),
        (6, 7168),
        (8, 1),
        (8, 2048),
        (8, 4104),
        (40, 4104),
    ],
)
def test_reduce(top_k: int, hidden: int) -> None:
    for tokens in (0, 1, 5, 300 if hidden < 1000 else 20):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            y, weights = reduce_args(tokens, top_k, hidden, dtype)
            compare("moe_reduce", y, weights, None, None)
            compare("moe_reduce", y, weights, None, None, 2.5, torch.randn(tokens, hidden).to(dtype))


def test_reduce_of_many_tokens() -> None:
    compare("moe_reduce", *reduce_args(3000, 6, 512), None, None)


@pytest.mark.parametrize("valid", [-5, 0, 1, 17, 40, 100])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_reduce_reads_no_skipped_pair_and_no_invalid_token(id_dtype: torch.dtype, valid: int) -> None:
    y, weights = reduce_args(40, 4, 136)
    ids = torch.randint(-1, 4, (40, 4), generator=torch.Generator().manual_seed(1))
    ids[3] = -1
    add = torch.randn(40, 136).bfloat16()
    y[ids < 0] = float("nan")
    y[max(valid, 0) :], add[max(valid, 0) :] = float("nan"), float("nan")
    compare("moe_reduce", y, weights, ids.to(id_dtype), torch.tensor([valid], dtype=torch.int32), 1.5, add)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_reduce_of_strided_and_unaligned_rows(offset: int, dtype: torch.dtype) -> None:
    wide = torch.randn(9, 7, 300).to(dtype)
    add = torch.randn(9, 300).to(dtype)
    for columns in (64, 129):
        part = slice(offset, offset + columns)
        compare("moe_reduce", wide[:, 1:5, part], torch.rand(9, 4), None, None, 1.0, add[:, part])


def test_reduce_passes_nan_and_infinity() -> None:
    y, weights = reduce_args(8, 2, 64, torch.float32)
    y[0, 0, 0], y[1, 1, 1], y[2, 0, 2], y[2, 1, 2] = float("nan"), float("inf"), float("inf"), -float("inf")
    compare("moe_reduce", y, weights, None, None)


def test_more_than_2_31_elements() -> None:
    y = torch.randn(70_000, 4, 8192, device="cuda", dtype=torch.bfloat16)
    weights = torch.rand(70_000, 4, device="cuda")
    out = ops.moe_reduce(y, weights, None, None)
    for rows in (slice(0, 2), slice(65_535, 65_537), slice(-2, None)):
        expected = ops.moe_reduce(y[rows].cpu(), weights[rows].cpu(), None, None)
        assert_bits_equal(out[rows].cpu(), expected)


def test_rows_of_many_million_columns() -> None:
    compare("moe_reduce", *reduce_args(3, 1, 20_000_003), None, None)
