"""Which instance runs a product on Hopper: tuned rows first, then the lowest estimate. Preset `serving`, an H200."""

import csv
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from support import WeightCase

ROOT = Path(__file__).resolve().parents[2]
TUNED = ROOT / "csrc/select/tuned"


def desc(n: int = 4096, k: int = 4096, group: int = 128) -> list[int]:
    return WeightCase("int4", "bf16", "bf16", group, n=n, k=k).desc


@pytest.fixture
def tiles(host: ModuleType) -> Callable[[int], str]:
    """The instance of int4 x bf16 with groups of 128 and a tile of so many tokens; the first of several."""

    def find(tokens: int) -> str:
        runnable = [name for name, cycles in host.estimates(desc(), 1).items() if isinstance(cycles, float)]
        return next(name for name in runnable if "group128" in name and f"tokens{tokens}_" in name)

    return find


# ---- tuned rows -----------------------------------------------------------------------------------------------------


def test_without_rows_the_lowest_estimate_decides(host: ModuleType) -> None:
    for tokens in (1, 16, 64, 256, 4096):
        runnable = {n: cycles for n, cycles in host.estimates(desc(), tokens).items() if isinstance(cycles, float)}
        assert host.choose(desc(), tokens) == (min(runnable, key=runnable.__getitem__), None)


@pytest.mark.parametrize(
    ("tokens", "row"),
    [(1, 16), (16, 16), (17, 64), (64, 64), (65, 256), (256, 256), (257, 256), (100000, 256)],
)
def test_the_smallest_row_that_is_not_below_decides(host: ModuleType, tiles, tokens: int, row: int) -> None:
    """A large tile for few tokens and a small one for many, so that no estimate agrees with the rows."""
    rows = [(tiles(tile), 4096, 4096, count, 1.0) for tile, count in ((64, 256), (16, 64), (256, 16))]
    wanted = {count: name for name, _, _, count, _ in rows}
    assert host.choose(desc(), tokens, rows) == (wanted[row], (4096, 4096, row))


def test_the_nearest_shape_goes_before_the_token_count(host: ModuleType, tiles) -> None:
    exact, near = (tiles(256), 4096, 4096, 1, 9.0), (tiles(64), 4096, 8192, 16, 1.0)
    far = (tiles(16), 8192, 8192, 16, 1.0)
    assert host.choose(desc(), 16, [far, near, exact]) == (exact[0], exact[1:4])
    assert host.choose(desc(), 16, [far, near]) == (near[0], near[1:4])
    # Ratios count, not differences.
    low, high = (tiles(64), 4096, 4096, 16, 1.0), (tiles(256), 6144, 4096, 16, 1.0)
    assert host.choose(desc(5088, 4096), 16, [low, high])[0] == high[0]


@pytest.mark.parametrize(
    ("n", "k", "near"),
    [
        (4096, 4096, True),
        (16384, 4096, True),
        (8192, 8192, True),
        (1024, 4096, True),
        (2048, 8192, True),
        (16448, 4096, False),
        (8192, 8256, False),
        (1016, 4096, False),
        (64, 128, False),
    ],
)
def test_rows_of_far_shapes_say_nothing(host: ModuleType, tiles, n: int, k: int, near: bool) -> None:
    name, row = host.choose(desc(n, k), 16, [(tiles(256), 4096, 4096, 16, 1.0)])
    assert row == ((4096, 4096, 16) if near else None)
    assert (name == tiles(256)) == near


@pytest.mark.parametrize(("tokens", "near"), [(1, False), (15, False), (16, True), (256, True), (100000, True)])
def test_tiles_for_far_more_tokens_say_nothing(host: ModuleType, tiles, tokens: int, near: bool) -> None:
    """int1 had rows from 1024 tokens on only, whose tile then took 79 us for one token, where 7 will do."""
    row = host.choose(desc(), tokens, [(tiles(256), 4096, 4096, 256, 1.0)])[1]
    assert row == ((4096, 4096, 256) if near else None)


def test_rows_whose_instance_cannot_run_are_passed_over(host: ModuleType, tiles) -> None:
    other = next(n for n, why in host.estimates(desc(), 1).items() if why == "is for another format or operand")
    rows = [(other, 4096, 4096, 16, 1.0), (tiles(256), 4096, 8192, 16, 1.0)]
    assert host.choose(desc(), 16, rows) == (tiles(256), (4096, 8192, 16))
    # Rows of 4097 values: tiles of more than 64 tokens cannot store them.
    assert host.choose(desc(), 16, [*rows, (tiles(64), 8192, 8192, 16, 1.0)], out_stride=4097)[0] == tiles(64)
    assert host.choose(desc(), 16, rows, out_stride=4097) == host.choose(desc(), 16, out_stride=4097)
    # A weight with groups of 32 has rows of its own; those for groups of 128 cannot run it.
    assert host.choose(desc(group=32), 16, rows[1:])[1] is None


def test_of_two_rows_of_one_place_the_faster_decides(host: ModuleType, tiles) -> None:
    slow, fast = (tiles(256), 4096, 4096, 16, 3.0), (tiles(64), 4096, 4096, 16, 2.0)
    assert host.choose(desc(), 16, [slow, fast])[0] == host.choose(desc(), 16, [fast, slow])[0] == tiles(64)


# ---- the rule of estimates ------------------------------------------------------------------------------------------

INT4 = WeightCase("int4", "bf16", "bf16", 128, n=8192, k=8192)
MXFP4 = WeightCase("e2m1", "e4m3", "e8m0", 32, n=8192, k=8192)


@pytest.mark.parametrize(
    ("case", "tokens", "tile"),
    [
        (INT4, 1, "_mma_patches4_row_groups1_split_k3_cluster_k1_tokens8_"),
        (INT4, 16, "_mma_patches4_row_groups1_split_k2_cluster_k1_tokens16_"),
        (INT4, 64, "_row_groups2_split_k1_cluster_k2_tokens64_"),
        (INT4, 128, "_row_groups2_split_k1_cluster_k2_tokens128_"),
        (INT4, 256, "_row_groups2_split_k1_cluster_k1_tokens128_"),
        (INT4, 4096, "_row_groups2_split_k1_cluster_k1_tokens256_"),
        (MXFP4, 1, "_row_groups1_split_k4_cluster_k1_tokens16_"),
        (MXFP4, 64, "_row_groups2_split_k1_cluster_k2_tokens64_"),
        (MXFP4, 128, "_row_groups2_split_k1_cluster_k2_tokens128_"),
        (MXFP4, 256, "_row_groups2_split_k1_cluster_k2_tokens256_"),
        (MXFP4, 4096, "_row_groups2_split_k1_cluster_k1_tokens256_"),
    ],
    ids=str,
)
def test_the_rule_ranks_tiles_as_measured(host: ModuleType, case: WeightCase, tokens: int, tile: str) -> None:
    name, row = host.choose(case.desc, tokens)
    assert row is None and tile in name


def test_a_tile_of_256_tokens_is_not_taken_for_65(host: ModuleType) -> None:
    """It multiplies 256 tokens, however few there are."""
    name, _ = host.choose(WeightCase("int8", "bf16", n=28672, k=8192).desc, 65)
    assert "_tokens256_" not in name


# ---- the file of tuned rows -----------------------------------------------------------------------------------------


def test_every_tuned_row_names_an_instance_of_the_preset_serving(host: ModuleType) -> None:
    for path in TUNED.glob("*.csv"):
        with path.open(newline="") as file:
            names = {row["instance"] for row in csv.DictReader(file)}
        assert names and all(host.find_instance(name) == name for name in names)


HEADER = "n,k,experts,tokens,instance,us,commit\n"


def generate(tmp_path: Path, text: str) -> tuple[subprocess.CompletedProcess, Path]:
    rows = tmp_path / "gpu.csv"
    rows.write_text(text)
    command = [sys.executable, ROOT / "cmake/generate_tuned.py", "--manifest", ROOT / "csrc/instances/manifest.toml"]
    command += ["--preset", "serving", "--archs", "90a", "--out", tmp_path, "--rows", rows]
    return subprocess.run(command, capture_output=True, text=True), tmp_path / "select/tuned_table.cpp"


def test_the_table_holds_the_rows_in_the_order_of_the_instances(host: ModuleType, tiles, tmp_path: Path) -> None:
    names = list(host.estimates(desc(), 1))
    first, second = sorted((tiles(16), tiles(256)), key=names.index)
    text = f"{HEADER}8192,4096,0,16,{second},12.5,abc\n1,2,0,3,gone,4,abc\n64,128,0,1,{first},3,abc\n"
    done, table = generate(tmp_path, text)
    assert done.returncode == 0, done.stderr
    rows = [line.strip() for line in table.read_text().splitlines() if line.startswith("      {")]
    assert rows == [
        f"{{{names.index(first)}, 64, 128, 0, 1, 3.0f}},",
        f"{{{names.index(second)}, 8192, 4096, 0, 16, 12.5f}},",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n,k,instance\n", "the header is"),
        (f"{HEADER}1,2,0,3,x,4,c\n1,2,0,0,x,4,c\n", "gpu.csv:3"),
        (f"{HEADER}1,2,-1,3,x,4,c\n", "gpu.csv:2"),
        (f"{HEADER}1,2,0,3,x,fast,c\n", "gpu.csv:2"),
        (f"{HEADER}1,2,3\n", "gpu.csv:2"),
    ],
)
def test_a_row_that_is_no_measurement_stops_the_build(tmp_path: Path, text: str, message: str) -> None:
    done, _ = generate(tmp_path, text)
    assert done.returncode != 0 and message in done.stderr


# ---- what explain says ----------------------------------------------------------------------------------------------


def test_plans_list_the_choice_the_estimates_and_the_rejections(host: ModuleType, tiles) -> None:
    text = host.explain(desc(), 16)
    estimates = host.estimates(desc(), 16)
    runnable = sorted(cycles for cycles in estimates.values() if isinstance(cycles, float))
    lines = text.splitlines()
    assert lines[1] == "chosen by the lowest estimate"
    assert lines[3] == f"  > {runnable[0]:.0f} {host.choose(desc(), 16)[0]}"
    listed = [int(line[4:].split()[0]) for line in lines[3 : 3 + len(runnable)]]
    assert listed == sorted(listed) and len(listed) == len(runnable)
    assert re.fullmatch(r"  is for another format or operand: \d+ instances", lines[-1])

    text = host.explain(desc(), 16, [(tiles(256), 4096, 8192, 64, 12.5)])
    assert "\nchosen by the tuned row n = 4096, k = 8192, 64 tokens, 12.5 us\n" in text
    assert [line.split()[2] for line in text.splitlines() if line.startswith("  >")] == [tiles(256)]


def test_rejections_are_grouped_by_reason(host: ModuleType, tiles) -> None:
    text = host.explain(desc(group=64), 16)
    groups = text[text.index("is for other groups:") :].splitlines()
    assert f"    {tiles(256)}" in groups[1 : groups.index(next(line for line in groups[1:] if line[2] != " "))]
    experts = WeightCase("int4", "bf16", "bf16", 128, n=64, k=128, experts=2).desc
    assert "chosen" not in host.explain(experts, 16) and "is for dense weights:\n" in host.explain(experts, 16)


# ---- names ----------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest(host: ModuleType, tiles) -> None:
    name = tiles(256)
    assert host.find_instance(name) == name
    with pytest.raises(RuntimeError, match=r"none of the \d+ instances of this build .*explain") as error:
        host.find_instance(name.replace("tokens256", "token256"))
    assert f"  {name}" in str(error.value).splitlines()[1:]


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 16, 64, 300])
@pytest.mark.parametrize("case", [INT4, MXFP4, WeightCase("int8", "bf16", "bf16", 128, n=8192, k=8192)], ids=str)
def test_warpgroups_of_a_split_have_stages_of_their_own(host: ModuleType, case: WeightCase, tokens: int) -> None:
    rings = host.rings(case.desc, tokens)
    assert rings
    for name, (stages, early) in rings.items():
        split = int(re.search(r"_split_k(\d+)_", name)[1])
        assert stages >= 2 and stages % split == 0, name
        assert 1 <= early <= stages


# ---- mixtures of experts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operand", "most"), [("bf16", 192), ("e4m3", 256)])
def test_tiles_grow_with_the_rows_of_an_expert(host: ModuleType, operand: str, most: int) -> None:
    case = WeightCase("e2m1", operand, "e8m0", 32, n=4096, k=65536, experts=256)  # far from tuned rows
    tokens = []
    for rows in (1, 96, 2000, 8000, 25000, 100000):
        name, stages = host.choose_moe(case.desc, rows)
        assert stages >= 2
        tokens.append(int(re.search(r"_tokens(\d+)_", name)[1]))
    assert tokens[0] == 8 and tokens[3:] == [32, 128, most] and tokens == sorted(tokens)


def test_rows_of_other_numbers_of_experts_count_the_tokens_of_one(host: ModuleType) -> None:
    """Experts of one rank of four have the rows of theirs that all of them have on one GPU."""
    few, many = (WeightCase("e2m1", "e4m3", "e8m0", 32, n=1024, k=4096, experts=count).desc for count in (64, 256))
    for rows in (24, 96, 1536, 24576):
        assert host.choose_moe(few, rows)[0] == host.choose_moe(many, 4 * rows)[0]
        chosen = f"chosen by the tuned row n = 1024, k = 4096, 256 experts, {4 * rows} tokens"
        assert chosen in host.explain_moe(few, rows)


def test_a_mixture_is_explained(host: ModuleType) -> None:
    case = WeightCase("e2m1", "bf16", "e8m0", 32, n=4096, k=65536, experts=256)  # far from tuned rows
    text = host.explain_moe(case.desc, 96)
    assert "chosen by the lowest estimate, for 96 rows" in text and "\n  > " in text
    int4 = WeightCase("int4", "s4", n=64, k=128, experts=8).desc  # an operand that Hopper does not have
    assert host.choose_moe(int4, 96) is None and "is for another format or operand" in host.explain_moe(int4, 96)
    many = WeightCase("e2m1", "bf16", "e8m0", 32, n=64, k=128, experts=5000)
    assert "takes at most 4096 experts:\n" in host.explain_moe(many.desc, 96)


# ---- weights of any format ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        WeightCase("uint7", "bf16", "fp32", 16, "floating", n=200, k=144),
        WeightCase("uint7", "fp16", "fp32", 16, "floating", n=200, k=144),
        WeightCase("uint5", "s8", "fp16", 128, "integer", n=200, k=144),
        WeightCase("e3m3", "e4m3", "bf16", 128, n=200, k=144),
    ],
    ids=str,
)
@pytest.mark.parametrize("experts", [0, 8])
def test_what_has_no_kernel_of_its_own_is_multiplied_all_the_same(
    host: ModuleType, case: WeightCase, experts: int
) -> None:
    case = replace(case, experts=experts)
    names = [host.choose_moe(case.desc, rows)[0] if experts else host.choose(case.desc, rows)[0] for rows in (1, 4000)]
    assert all(name.startswith(f"gemm_any_{case.operand}_") for name in names)
    assert ["_tokens16_" in name for name in names] == [True, False]
