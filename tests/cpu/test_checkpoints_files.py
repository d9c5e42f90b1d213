"""The registry and the reader: what is detected, and what hostile or damaged files give."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import write
from humming_ext.checkpoints import open_checkpoint
from humming_ext.checkpoints._bits import sort_columns, unpack
from humming_ext.checkpoints._fields import Fields
from oracle.weights import pack_bitstream
from safetensors.torch import save_file

INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}},
}
TENSORS = {
    "a.weight": torch.arange(-64, 64, dtype=torch.int8).reshape(4, 32),
    "a.weight_scale": torch.full((4, 1), 0.5),
    "a.bias": torch.arange(4.0),
}


def header(**tensors: object) -> bytes:
    """The beginning of a safetensors file."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_weights_and_other_tensors_are_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, TENSORS, INT8))
    assert checkpoint.names == ["a"]
    assert torch.equal(checkpoint.read("a").pack().dequantize(), TENSORS["a.weight"] * 0.5)
    assert torch.equal(checkpoint.tensor("a.bias"), TENSORS["a.bias"])
    with pytest.raises(ValueError, match=r"b\.weight: no such tensor"):
        checkpoint.read("b")
    with pytest.raises(ValueError, match=r"a\.zero: no such tensor"):
        checkpoint.tensor("a.zero")


def test_the_quantisation_may_be_that_of_the_text_model(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, None, text_config={"quantization_config": INT8})
    assert open_checkpoint(tmp_path).names == ["a"]


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    write(tmp_path, {"a.weight": TENSORS["a.weight"]}, INT8)
    save_file({"a.weight_scale": TENSORS["a.weight_scale"]}, tmp_path / "second.safetensors")
    save_file(TENSORS, tmp_path / "consolidated.safetensors")
    with pytest.raises(ValueError, match="another file"):
        open_checkpoint(tmp_path)
    index = {"weight_map": {"a.weight": "model.safetensors", "a.weight_scale": "second.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_checkpoint(tmp_path).read("a").codes.shape == (4, 32)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "missing.safetensors", 3])
def test_an_index_names_files_of_the_folder(tmp_path: Path, name: object) -> None:
    write(tmp_path, TENSORS, INT8)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": name}}))
    with pytest.raises(ValueError, match=r"index\.json|missing\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "config.json: no readable JSON"),
        ("[" * 100_000, "config.json: no readable JSON"),
        ("[]", "config.json: holds no JSON object"),
        ("\udc80", "config.json: no readable JSON"),
        ("{}", "quantization_config: missing"),
        ('{"quantization_config": []}', r"quantization_config: \[\] is no object"),
        ('{"quantization_config": {}}', "quantization_config.quant_method: missing"),
        ('{"quantization_config": {"quant_method": "other"}}', "quant_method: 'other' is not read; what is: '"),
    ],
)
def test_configs_that_say_nothing_are_refused(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_bytes(config.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        open_checkpoint(tmp_path / "nowhere")
    write(tmp_path, TENSORS, INT8)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no safetensors files"):
        open_checkpoint(tmp_path)


def test_a_checkpoint_without_quantised_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"quant_method: .* has no tensor"):
        open_checkpoint(write(tmp_path, {"a.weight": torch.zeros(2, 2)}, INT8))


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "half a length": b"\1\0\0",
        "a header longer than the file": struct.pack("<Q", 1000) + b"{}",
        "a header of 2^62 bytes": struct.pack("<Q", 1 << 62) + b"{}",
        "no JSON": struct.pack("<Q", 4) + b"\xff\xfe{}",
        "deep JSON": struct.pack("<Q", 100_000) + b"[" * 100_000,
        "an unknown dtype": header(a=entry("F7", [1], 0, 1)) + b"\0",
        "a negative size": header(a=entry("I8", [-1], 0, 1)) + b"\0",
        "a size of 2^70": header(a=entry("I8", [1 << 70], 0, 1)) + b"\0",
        "a product that overflows": header(a=entry("F32", [1 << 32, 1 << 32, 4], 0, 16)) + bytes(16),
        "a product that wraps to the size": header(a=entry("I8", [1 << 62, 4, 2], 0, 0)),
        "more than the file": header(a=entry("I8", [1 << 40], 0, 1 << 40)) + bytes(16),
        "less than the shape": header(a=entry("F32", [4], 0, 8)) + bytes(8),
        "an end before its begin": header(a=entry("I8", [4], 8, 4)) + bytes(8),
        "overlap": header(a=entry("I8", [8], 0, 8), b=entry("I8", [8], 4, 12)) + bytes(12),
        "a gap": header(a=entry("I8", [4], 0, 4), b=entry("I8", [4], 8, 12)) + bytes(12),
        "bytes of no tensor": header(a=entry("I8", [4], 0, 4)) + bytes(12),
        "data cut off": header(a=entry("I8", [64], 0, 64)) + bytes(63),
    }.items(),
    ids=lambda item: item[0],
)
def test_hostile_files_give_one_error_that_names_them(tmp_path: Path, content: tuple[str, bytes]) -> None:
    write(tmp_path, TENSORS, INT8)
    (tmp_path / "model.safetensors").write_bytes(content[1])
    with pytest.raises(ValueError, match=r"model\.safetensors: no readable safetensors file"):
        open_checkpoint(tmp_path)


def test_every_truncation_and_every_changed_header_byte_is_an_error_or_harmless(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, INT8)
    file = tmp_path / "model.safetensors"
    good = file.read_bytes()
    end_of_header = 8 + struct.unpack("<Q", good[:8])[0]
    damaged = [good[:size] for size in range(0, len(good), 7)]
    damaged += [good[:at] + bytes([good[at] ^ 0x15]) + good[at + 1 :] for at in range(end_of_header)]
    for content in damaged:
        file.unlink()  # a new file, because the last one may still be mapped
        file.write_bytes(content)
        try:
            checkpoint = open_checkpoint(tmp_path)
            for name in checkpoint.names:
                checkpoint.read(name).pack()
        except (ValueError, RuntimeError) as error:
            assert str(error)


def test_reading_one_weight_of_a_large_file_takes_the_memory_of_that_weight(tmp_path: Path) -> None:
    """A sparse file of 2 GiB: reading it all would show in the memory of the process."""
    size = 1 << 31
    small = TENSORS["a.weight"].numel()
    head = header(
        **{
            "a.weight": entry("I8", [4, 32], 0, small),
            "a.weight_scale": entry("F32", [4, 1], small, small + 16),
            "b.weight": entry("I8", [size >> 10, 1 << 10], small + 16, small + 16 + size),
            "b.weight_scale": entry("F32", [1], small + 16 + size, small + 20 + size),
        }
    )
    write(tmp_path, TENSORS, INT8)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(head + TENSORS["a.weight"].numpy().tobytes() + TENSORS["a.weight_scale"].numpy().tobytes())
        file.truncate(len(head) + small + 20 + size)
    code = (
        "import resource, sys; from humming_ext.checkpoints import open_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "open_checkpoint(sys.argv[1]).read('a').pack()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1 << 16, "KiB"


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 33, 96, 100])
def test_bit_streams_are_unpacked(bits: int, count: int) -> None:
    codes = torch.randint(1 << bits, (3, count), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    codes[0] = (1 << bits) - 1
    stream = torch.from_numpy(pack_bitstream(codes.numpy(), bits))
    words = torch.nn.functional.pad(stream, (0, -stream.shape[1] % 4)).view(torch.int32)
    assert torch.equal(unpack(words, bits, count), codes)


def test_columns_are_sorted_by_group_or_refused() -> None:
    assert sort_columns("g_idx", torch.tensor([0, 0, 1, 1, 2]), 2) is None
    columns = sort_columns("g_idx", torch.tensor([2, 0, 1, 1, 0]), 2)
    assert columns is not None and columns.tolist() == [1, 4, 2, 3, 0]
    for wrong in ([0, 0, 0, 1], [0, -1, 0, 1], [0, 0, 7, 7], [1 << 40, 0, 0, 1]):
        with pytest.raises(ValueError, match="g_idx: its 4 columns"):
            sort_columns("g_idx", torch.tensor(wrong), 2)


def test_fields_say_what_is_wrong_with_them() -> None:
    fields = Fields({"a": "x", "b": True, "c": 300, "d": [1, "2"], "e": None}, "config.")
    assert fields.integer("e", range(9), 4) == 4
    for call, message in [
        (lambda: fields.integer("b", range(9)), "config.b: True is no integer"),
        (lambda: fields.integer("c", range(2, 9)), "config.c: 300 is not read; what is: 2 to 8"),
        (lambda: fields.choice("a", ["y", "z"]), "config.a: 'x' is not read; what is: 'y', 'z'"),
        (lambda: fields.flag("c"), "config.c: 300 is no boolean"),
        (lambda: fields.number("c"), "config.c: 300 is no number with a decimal point"),
        (lambda: fields.items("d", int), r"config.d: \[1, '2'\] is no list of int"),
        (lambda: fields.text("e"), "config.e: missing"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
