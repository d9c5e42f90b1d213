"""The packed layout: every bit of every code has one place, the geometry adds up, and the inverse is the inverse."""

import hashlib
from types import ModuleType

import numpy as np
import pytest
from oracle.formats import FORMATS
from oracle.packing import VALUES_PER_REGISTER, Shape, code_bit_positions, group_area, pack_record
from support import OPERANDS, SCALE_TYPES, ZERO_KINDS, WeightCase

# The layout of version 4 in one number. If it changes, old packed files no longer read: raise kLayoutVersion.
GOLDEN = {4: "838f5db9ec4ffa9fa95d8a18b9917f968c9fa1dd922ce8027c7d3190d5a0a0f4"}

ORDERS = {"bf16": "k16", "e4m3": "k32", "s4": "k64"}
CODECS = [
    (name, operand)
    for operand in ORDERS
    for name, fmt in FORMATS.items()
    if operand == "bf16" or fmt.kind != "table"
    if operand != "s4" or (fmt.kind != "float" and fmt.bits <= 4)
]
GROUPS = (16, 32, 64, 128)
SCALE_BYTES = {"none": 0, "fp32": 4, "bf16": 2, "fp16": 2, "e8m0": 1, "e4m3": 1}
SHAPES = [
    WeightCase("int4", scale="bf16", group=32, n=n, k=k, gate_up=gate_up)
    for n, gate_up in [(64, False), (80, False), (200, False), (360, False), (80, True), (200, True), (360, True)]
    for k in (64, 80, 128, 192, 288, 360, 720)
]


def pseudo_random_bytes(count: int, seed: int) -> np.ndarray:
    """Bytes that depend on nothing but this line: a linear congruential generator."""
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(6364136223846793005) + np.uint64(seed)
    return ((state ^ (state >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD) >> np.uint64(40)).astype(np.uint8)


@pytest.mark.parametrize("operand", ORDERS)
def test_every_weight_of_a_patch_has_one_register_value(host: ModuleType, operand: str) -> None:
    values = VALUES_PER_REGISTER[operand]
    seen = {
        host.patch_coord(OPERANDS[operand], lane, n, v)
        for lane in range(32)
        for n in range(32 // values)
        for v in range(values)
    }
    assert seen == {(row, k) for row in range(16) for k in range(64)}


@pytest.mark.parametrize(("name", "operand"), CODECS)
def test_every_bit_of_a_lanes_words_has_one_code_bit(host: ModuleType, name: str, operand: str) -> None:
    fmt, values = FORMATS[name], VALUES_PER_REGISTER[operand]
    used: list[tuple[int, int]] = []
    for n in range(32 // values):
        for v in range(values):
            fields = host.code_fields(fmt.id, OPERANDS[operand], n, v)
            assert sum(width for _, _, width in fields) == fmt.bits
            used += [(word, bit + j) for word, bit, width in fields for j in range(width)]
    assert sorted(used) == [(word, bit) for word in range(fmt.bits) for bit in range(32)]


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_word_of_a_record_has_one_owner(host: ModuleType, bits: int, halves: int) -> None:
    indices = [
        host.word_index(bits, half, warp, lane, word)
        for half in range(halves)
        for warp in range(4)
        for lane in range(32)
        for word in range(bits)
    ]
    assert sorted(indices) == list(range(halves * 128 * bits))


@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize(("name", "operand"), CODECS)
def test_every_code_bit_lands_where_the_drawing_says(host: ModuleType, name: str, operand: str, columns: int) -> None:
    """Each bit of a record follows one bit of one code: seen by sending the binary digits of the code's number."""
    fmt = FORMATS[name]
    positions = code_bit_positions(name, operand, columns)
    assert np.array_equal(np.sort(positions, axis=None), np.arange(positions.size))
    number = np.arange(64 * columns).reshape(64, columns)  # of the code at (row, column)
    resting = np.unpackbits(_encode(host, np.zeros((64, columns), np.uint8), fmt.id, operand), bitorder="little")
    for b in range(fmt.bits):
        owner = np.zeros(positions.size, np.int64)
        for digit in range(int(number.size - 1).bit_length()):
            codes = ((number >> digit & 1) << b).astype(np.uint8)
            moved = np.unpackbits(_encode(host, codes, fmt.id, operand), bitorder="little") ^ resting
            owner |= moved.astype(np.int64) << digit
        expected = np.zeros(positions.size, np.int64)
        expected[positions[:, :, b]] = number
        np.testing.assert_array_equal(owner, expected, err_msg=f"code bit {b}")


def _encode(host: ModuleType, codes: np.ndarray, format_id: int, operand: str) -> np.ndarray:
    """Code bytes of a record from codes [64 rows, columns]."""
    return host.encode_record(np.ascontiguousarray(codes.T), format_id, OPERANDS[operand], codes.shape[1] // 64)


@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize(("name", "operand"), CODECS)
def test_records_equal_the_oracles_and_decode_back(host: ModuleType, name: str, operand: str, columns: int) -> None:
    fmt = FORMATS[name]
    rng = np.random.default_rng(columns)
    every = np.arange(64 * columns) % 2**fmt.bits
    for codes in (rng.integers(0, 2**fmt.bits, (64, columns)), rng.permutation(every).reshape(64, columns)):
        codes = codes.astype(np.uint8)
        record = _encode(host, codes, fmt.id, operand)
        np.testing.assert_array_equal(record, pack_record(codes, name, operand))
        decoded = host.decode_record(record, fmt.id, OPERANDS[operand], columns // 64)
        np.testing.assert_array_equal(decoded.T, codes)


@pytest.mark.parametrize("name", FORMATS)
def test_the_kernel_for_any_format_finds_every_code(host: ModuleType, name: str) -> None:
    codes = np.random.default_rng(1).integers(0, 2 ** FORMATS[name].bits, (64, 128)).astype(np.uint8)
    operands = next(row["operands"] for row in host.formats() if row["name"] == name)
    for operand in (name for name, number in OPERANDS.items() if number in operands):
        record = _encode(host, codes, FORMATS[name].id, operand)
        desc = WeightCase(name, operand, n=64, k=128).desc
        np.testing.assert_array_equal(host.decode_record_of_any(record, desc, 2).T, codes, err_msg=operand)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_scale_order_equals_the_oracles(host: ModuleType, groups: int) -> None:
    entries = np.arange(64 * groups, dtype=np.uint16).reshape(64, groups, 1).view(np.uint8)
    expected = group_area(entries).view(np.uint16)
    for row in range(64):
        for group in range(groups):
            assert expected[host.group_index(row, group, groups)] == row * groups + group


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_rows_and_records_cover_the_weight_once(host: ModuleType, case: WeightCase) -> None:
    shape = Shape(case.n, case.k, case.gate_up)
    facts = host.desc_facts(case.desc)
    rows = [host.logical_row(case.desc, row) for row in range(facts["packed_rows"])]
    np.testing.assert_array_equal(rows, shape.rows())
    assert sorted(row for row in rows if row >= 0) == list(range(case.n))
    assert all(rows[host.packed_row(case.desc, channel)] == channel for channel in range(case.n))
    assert facts["num_strips"] * 64 == facts["packed_rows"]

    columns = shape.record_columns()
    assert facts["num_k_tiles"] == len(columns)
    assert case.k <= sum(columns) < case.k + 64
    end = 0
    for tile, width in enumerate(columns):
        assert host.k_tile_halves(case.desc, tile) * 64 == width
        assert host.record_offset(case.desc, tile) == end
        end += host.record_facts(case.desc, width // 64)["bytes"]
    assert facts["strip_bytes"] == end
    assert facts["packed_shape"] == [facts["num_strips"], end]


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize(
    ("scale", "group", "zero"),
    [
        *(("none", 0, zero) for zero in ("none", "integer")),
        *((scale, group, zero) for scale in ("fp32", "bf16", "fp16") for group in GROUPS for zero in ZERO_KINDS),
        *((scale, group, zero) for scale in ("e8m0", "e4m3") for group in GROUPS for zero in ("none", "integer")),
    ],
)
def test_areas_of_a_record_follow_each_other(host: ModuleType, scale: str, group: int, zero: str, halves: int) -> None:
    for name in ("uint1", "uint3", "uint4", "uint7", "uint8"):
        facts = host.record_facts(WeightCase(name, scale=scale, group=group, zero=zero).desc, halves)
        groups = 128 // group if group else 0  # in a half tail record as well
        zero_groups = 0 if zero == "none" else groups or 1
        zero_bytes = {"none": 0, "integer": 1, "floating": SCALE_BYTES[scale]}[zero]
        codes = 64 * 64 * halves * FORMATS[name].bits // 8
        assert (facts["groups"], facts["zero_groups"]) == (groups, zero_groups)
        assert facts["codes_bytes"] == facts["scale_offset"] == codes
        assert facts["zero_offset"] == codes + 64 * groups * SCALE_BYTES[scale]
        end = facts["zero_offset"] + 64 * zero_groups * zero_bytes
        assert facts["bytes"] % 128 == 0 and end <= facts["bytes"] < end + 128


@pytest.mark.parametrize("experts", [0, 1, 3])
def test_experts_follow_each_other(host: ModuleType, experts: int) -> None:
    facts = host.desc_facts(WeightCase("e2m1", scale="e8m0", group=32, experts=experts).desc)
    shape = [facts["num_strips"], facts["strip_bytes"]]
    assert facts["packed_shape"] == ([experts, *shape] if experts else shape)
    assert facts["packed_bytes"] == max(experts, 1) * shape[0] * shape[1]


def test_golden_hash_of_this_layout_version(host: ModuleType) -> None:
    digest = hashlib.sha256()
    placed = [(name, operand) for name, operand in CODECS if FORMATS[name].kind != "table"]  # others lie as uints do
    for seed, (name, operand) in enumerate(placed):
        for columns in (64, 128):
            codes = pseudo_random_bytes(64 * columns, seed).reshape(64, columns) & (2 ** FORMATS[name].bits - 1)
            digest.update(_encode(host, codes.astype(np.uint8), FORMATS[name].id, operand).tobytes())
    for case in SHAPES:
        facts = host.desc_facts(case.desc)
        digest.update(repr((facts["packed_shape"], [host.logical_row(case.desc, r) for r in range(64)])).encode())
    digest.update(repr((OPERANDS, SCALE_TYPES, ZERO_KINDS)).encode())
    assert digest.hexdigest() == GOLDEN[host.LAYOUT_VERSION]
