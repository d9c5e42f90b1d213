"""The dense GEMM of Ampere and Ada: where its threads find their parts of a tile, and which instance runs a product."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support import WeightCase

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "cmake"))

from generate_instances import read_families, select_instances, tomllib  # noqa: E402

MANIFEST = tomllib.loads((ROOT / "csrc/instances/manifest.toml").read_text())
FAMILIES = read_families(MANIFEST)
FAMILY = FAMILIES["gemm_sm80"]
EXTENTS = ("row_groups", "patches", "split_k", "tokens")
TILES = [
    pytest.param([tile[column] for column in EXTENTS] + [bits], id=f"{name}-{bits}")
    for name, tile in FAMILY.tile.items()
    for bits in (16, 8, 4)
]
every_tile = pytest.mark.parametrize("tile", TILES)


# ---- addresses ------------------------------------------------------------------------------------------------------


@every_tile
def test_the_tokens_of_a_record_have_a_place_each(host: ModuleType, tile: list[int]) -> None:
    facts = host.tile_sm80(*tile)
    offsets = np.array(facts["offsets"])
    assert sorted(offsets.ravel().tolist()) == list(range(0, facts["token_bytes"], 16))
    assert facts["token_bytes"] == tile[3] * 128 * tile[4] // 8


@every_tile
def test_threads_copy_every_chunk_once(host: ModuleType, tile: list[int]) -> None:
    """Each from its first token on in equal steps, at equal distances."""
    facts = host.tile_sm80(*tile)
    offsets, step = np.array(facts["offsets"]), facts["rows_at_a_time"]
    copied = [(token + first, chunk, token) for token, chunk in facts["copied"] for first in range(0, tile[3], step)]
    copied = [(token, chunk, start) for token, chunk, start in copied if token < tile[3]]
    assert sorted((token, chunk) for token, chunk, _ in copied) == [*np.ndindex(*offsets.shape)]
    for token, chunk, start in copied:
        first = offsets[start, chunk]
        assert offsets[token, chunk] == first + (token - start) * facts["line_bytes"]


@every_tile
def test_lanes_read_the_columns_of_two_steps_without_bank_conflicts(host: ModuleType, tile: list[int]) -> None:
    """ldmatrix: eight lanes at a time name rows of 16 bytes, and memory serves 128 bytes at a time."""
    facts = host.tile_sm80(*tile)
    offsets = np.array(facts["offsets"])
    assert len(facts["read"]) == tile[4] // 4
    for pair, lanes in enumerate(facts["read"]):
        # Matrix i, the lanes 8i .. 8i + 7, has the 16 bytes i of the 64 that two MMA steps take.
        assert lanes == [(lane % 8, 4 * pair + lane // 8) for lane in range(32)]
        for j in range(0, tile[3], 8):
            places = [offsets[token, chunk] + j * facts["line_bytes"] for token, chunk in lanes]
            assert places == [offsets[token + j, chunk] for token, chunk in lanes]
            assert all(len({place // 16 % 8 for place in places[i : i + 8]}) == 8 for i in range(0, 32, 8))


@every_tile
def test_warps_share_the_patches_of_every_record(host: ModuleType, tile: list[int]) -> None:
    row_groups, patches, split_k = tile[:3]
    covered = [
        (team, row_group, first + patch)
        for team, row_group, first in host.tile_sm80(*tile)["roles"]
        for patch in range(patches)
    ]
    assert sorted(covered) == [*np.ndindex(split_k, row_groups, 4)]


def test_integers_become_floats_by_their_bits(host: ModuleType) -> None:
    integers = np.arange(-(2**22) + 1, 2**22, dtype=np.int32)
    np.testing.assert_array_equal(host.float_from_origin(integers + host.INTEGER_ORIGIN), integers.astype(np.float32))


def names_of(preset: str, arch: str) -> set[str]:
    return {i.name for i in select_instances(MANIFEST, FAMILIES, preset, [arch]) if i.family == FAMILY}


def test_the_preset_test_compiles_every_instance_for_hopper() -> None:
    assert names_of("test", "90a") == names_of("full", "80") | names_of("full", "89")
    assert names_of("full", "80") < names_of("full", "89")
    assert not names_of("full", "90a")


# ---- selection ------------------------------------------------------------------------------------------------------

DEVICES = {"a100": (166912, 167936), "a10": (101376, 102400), "l40s": (101376, 102400)}  # shared bytes: block, SM
INT4 = WeightCase("int4", "bf16", "bf16", 128, n=8192, k=8192)
W4A8 = WeightCase("int4", "s8", n=8192, k=8192)
W4A4 = WeightCase("int4", "s4", n=8192, k=8192)
MXFP4 = WeightCase("e2m1", "e4m3", "e8m0", 32, n=8192, k=8192)


def tokens_of(name: str) -> int:
    return int(re.search(r"_tokens(\d+)_", name)[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [INT4, W4A8, W4A4], ids=str)
def test_tiles_grow_with_the_tokens(host: ModuleType, case: WeightCase, device: str) -> None:
    names = [host.choose(case.desc, tokens, device=device)[0] for tokens in (1, 16, 32, 64, 256, 1024, 8192)]
    assert all(name.startswith(f"gemm_sm80_{case.operand}_int4_") for name in names)
    tiles = [tokens_of(name) for name in names]
    assert tiles == sorted(tiles) and tiles[0] == 16 and tiles[-1] == (64 if case.operand == "bf16" else 128)


def test_hopper_keeps_its_own_kernels(host: ModuleType) -> None:
    for case in (INT4, W4A8, MXFP4):
        for tokens in (1, 300):
            assert host.choose(case.desc, tokens)[0].startswith("gemm_sm90_")
    assert host.choose(W4A4.desc, 1) == (None, None)


def test_fp8_is_multiplied_from_ada_on(host: ModuleType) -> None:
    assert host.choose(MXFP4.desc, 1, device="l40s")[0].startswith("gemm_sm80_e4m3_e2m1_")
    assert [host.choose(MXFP4.desc, 1, device=device)[0] for device in ("a100", "a10")] == [None, None]


@pytest.mark.parametrize("device", DEVICES)
def test_an_instance_runs_in_the_code_nearest_to_the_device(host: ModuleType, device: str) -> None:
    """The build has all of them for sm_80 and sm_89, of which sm_89 could take either."""
    runnable = host.runnable(INT4.desc, 1, device)
    assert {arch for _, arch in runnable} == {89 if device == "l40s" else 80}
    names = [name for name, _ in runnable]
    assert names and len(set(names)) == len(names)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "case", [INT4, W4A8, W4A4, WeightCase("int8", "bf16", "bf16", 128), WeightCase("e4m3", "bf16")], ids=str
)
@pytest.mark.parametrize("tokens", [1, 63, 65, 300])
def test_launches_fit_and_cover_the_product(host: ModuleType, case: WeightCase, device: str, tokens: int) -> None:
    launches = host.launches_sm80(case.desc, tokens, device)
    assert launches
    for name, (stages, shared_bytes, tiles) in launches.items():
        assert 2 <= stages <= 5, name
        assert shared_bytes <= DEVICES[device][0]
        rows = 64 * int(re.search(r"_row_groups(\d)_", name)[1])
        size = (-(-case.n // rows), -(-tokens // tokens_of(name)))
        assert [tile for tile in sorted(tiles) if tile[1] < size[1]] == [*np.ndindex(*size)], name


@pytest.mark.parametrize("device", DEVICES)
def test_mixtures_have_kernels_whose_tiles_grow_with_the_rows_of_an_expert(host: ModuleType, device: str) -> None:
    case = WeightCase("e2m1", "bf16", "e8m0", 32, n=1024, k=4096, experts=256)
    found = [host.choose_moe(case.desc, rows, device) for rows in (6, 384, 24576)]
    assert all(name.startswith("moe_gemm_sm80_bf16_e2m1_") and stages >= 2 for name, stages in found)
    assert [tokens_of(name) for name, _ in found] == [16, 16, 64]
    assert host.choose_moe(case.desc, 6)[0].startswith("moe_gemm_sm90_")
