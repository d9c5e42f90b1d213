"""GGUF files against the library that writes them: its blocks and its dequantisation; and damaged ones."""

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import values, write_blocks
from humming_ext import PackedWeight, WeightFormat
from humming_ext.checkpoints import GgufFile, open_checkpoint
from humming_ext.checkpoints.gguf import block_spec
from humming_ext.checkpoints.gguf_llama import GgufLlama

gguf = pytest.importorskip("gguf", reason="the PyPI package gguf is not installed")

FORMATS = {"Q4_0": "int4", "Q4_1": "uint4", "Q5_0": "int5", "Q5_1": "uint5", "Q8_0": "int8"}
TYPE_IDS = {"F32": 0, "Q4_0": 2, "Q4_1": 3}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def write(folder: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> Path:
    """A file by the library, of tensors by name: (type, float32 values)."""
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_string("text", "some text")
    writer.add_array("strings", ["a", "bcd"])
    writer.add_array("numbers", [1.5, 2.5, 3.5])
    for name, (type_name, array) in tensors.items():
        kind = gguf.GGMLQuantizationType[type_name]
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"


@pytest.mark.parametrize("type_name", FORMATS)
@pytest.mark.parametrize("shape", [(48, 96), (1, 32), (3, 40, 64)], ids=str)
def test_weights_are_those_of_the_library(tmp_path: Path, type_name: str, shape: tuple[int, ...]) -> None:
    array = random(*shape)
    file = open_checkpoint(write(tmp_path, {"w": (type_name, array)}))
    kind = gguf.GGMLQuantizationType[type_name]
    exact = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind))
    assert file.names == ["w"] and torch.equal(file.tensor("w"), exact)
    weight = file.read("w")
    assert weight.spec == block_spec(type_name) and weight.spec.format == WeightFormat[FORMATS[type_name]]
    ours = values(weight)
    if type_name.endswith("_1"):  # the library rounds the product before it adds the minimum, we do not
        torch.testing.assert_close(ours, exact, rtol=0, atol=2**-23 * float(weight.scale.max()) * 32)
    else:
        assert torch.equal(ours, exact)


def test_codes_of_every_value_in_every_place(tmp_path: Path) -> None:
    """Bytes of all kinds as blocks, where the values of a quantiser would miss some codes."""
    for type_name in FORMATS:
        kind = gguf.GGMLQuantizationType[type_name]
        size = gguf.GGML_QUANT_SIZES[kind][1]
        blocks = np.random.default_rng(1).integers(0, 256, (64, 4, size), dtype=np.uint8)
        blocks[..., :2] = np.float16([1.0]).view(np.uint8)
        if type_name.endswith("_1"):
            blocks[..., 2:4] = np.float16([-2.0]).view(np.uint8)
        path = write_blocks(tmp_path, type_name, blocks)
        exact = torch.from_numpy(gguf.quants.dequantize(blocks.reshape(64, -1), kind))
        assert torch.equal(values(GgufFile(path).read("layer")), exact)
        path.unlink()


@pytest.mark.parametrize(("type_name", "expected"), [("Q4_K", "uint4"), ("Q5_K", "uint5"), ("Q6_K", "int6")])
@pytest.mark.parametrize("shape", [(64, 3), (9, 1), (2, 5, 2)], ids=str)
def test_super_blocks_of_every_value(tmp_path: Path, type_name: str, expected: str, shape: tuple[int, ...]) -> None:
    """Bytes of all kinds, because the library dequantises these types but does not quantise to them."""
    kind = gguf.GGMLQuantizationType[type_name]
    generator = np.random.default_rng(2)
    stored = generator.integers(0, 256, (*shape, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    halves = generator.standard_normal((*shape, 2)).astype(np.float16).view(np.uint8)
    if type_name == "Q6_K":
        stored[..., -2:] = halves[..., :2]
    else:
        stored[..., :4] = halves
    weight = GgufFile(write_blocks(tmp_path, type_name, stored)).read("layer")
    assert weight.spec == block_spec(type_name) and weight.spec.format == WeightFormat[expected]
    exact = torch.from_numpy(gguf.quants.dequantize(stored.reshape(*shape[:-1], -1), kind))
    assert exact.unique().numel() > 500 and torch.equal(values(weight), exact)


def test_tables_of_values_are_refused_by_name(tmp_path: Path) -> None:
    file = GgufFile(write_blocks(tmp_path, "IQ4_XS", np.zeros((4, 1, 136), np.uint8)))
    assert file.names == []
    with pytest.raises(
        ValueError, match=r"layer: type IQ4_XS \[4, 256\] is not read as it is; tensor\(\) dequantises it"
    ):
        file.read("layer")


def test_other_types_are_dequantised_or_refused_by_name(tmp_path: Path) -> None:
    array = random(48, 256)
    tensors = {name: (name, array) for name in ("F32", "F16", "BF16", "Q8_0")}
    file = GgufFile(write(tmp_path, tensors | {"vector": ("F32", array[0])}))
    assert file.types() == {"F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0", "vector": "F32"}
    assert file.names == ["Q8_0"]
    assert torch.equal(file.tensor("F32"), torch.from_numpy(array))
    assert torch.equal(file.tensor("vector"), torch.from_numpy(array[0]))
    assert torch.equal(file.tensor("F16"), torch.from_numpy(array).half().float())
    with pytest.raises(ValueError, match=r"F16: type F16 \[48, 256\] is not read as it is"):
        file.read("F16")
    for method in (file.read, file.tensor):
        with pytest.raises(ValueError, match="missing: no such tensor"):
            method("missing")


def test_minima_leave_16_bit_operands() -> None:
    spec = block_spec("Q4_1", gate_up=True)
    assert spec.gate_up
    with pytest.raises(ValueError, match="float offset"):
        spec.for_activation(torch.int8)
    codes = torch.zeros(4, 32, dtype=torch.uint8)
    assert PackedWeight.pack(codes, *torch.ones(2, 4, 1).half(), spec=spec).shape == (4, 32)


def test_llama_models_alone_have_the_names_of_transformers(tmp_path: Path) -> None:
    path = write(tmp_path, {"blk.1.attn_q.weight": ("Q8_0", random(64, 64)), "output_norm.weight": ("F32", random(64))})
    config = SimpleNamespace(model_type="llama", num_attention_heads=2, num_key_value_heads=1)
    llama = GgufLlama(path, config)
    assert llama.names == ["model.layers.1.self_attn.q_proj"]
    assert llama.state(without=llama.names).keys() == {"model.norm.weight"}
    assert torch.equal(llama.read(llama.names[0]).dequantize().float(), llama.state()[f"{llama.names[0]}.weight"])
    with pytest.raises(ValueError, match=r"m\.gguf: of a model of type gemma2"):
        GgufLlama(path, SimpleNamespace(model_type="gemma2"))
    for name in ("blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "rope_freqs.weight"):
        with pytest.raises(ValueError, match=f"{name}: no tensor of a llama model without biases"):
            GgufLlama(write(tmp_path, {name: ("F32", random(64))}), config)


# ---- files by hand --------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, kind: int, shape: list[int], offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)


def header(tensors: list[bytes], entries: list[bytes], version: int = 3, counts: tuple[int, ...] = ()) -> bytes:
    sizes = counts or (len(tensors), len(entries))
    return b"GGUF" + struct.pack("<IQQ", version, *sizes) + b"".join(entries + tensors)


def padded(content: bytes, data: int) -> bytes:
    return content + bytes(-len(content) % 32 + data)


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return text("k") + struct.pack("<IIQ", 9, kind, count) + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no readable GGUF file"),
        (b"GG", "truncated"),
        (b"GGML" + bytes(100), "does not begin with GGUF"),
        (header([], [], version=1), "version 1 is not read"),
        (header([], [], version=3 << 24), "version 50331648 is not read"),
        (header([], [], counts=(1 << 62, 0)), "truncated"),
        (header([], [], counts=(0, 1 << 62)), "truncated"),
        (header([], [array(0, 1 << 60)]), "truncated: 1152921504606846976 items"),
        (header([], [array(8, 1 << 60)]), "truncated: 1152921504606846976 items"),
        (header([], [array(6, 1 << 62)]), "truncated"),
        (header([], [array(9, 1)]), "k: metadata of type 9 is not read"),
        (header([], [array(99, 1)]), "k: metadata of type 99 is not read"),
        (header([], [struct.pack("<Q", 1 << 63)]), "truncated"),
        (header([], [text("general.alignment") + struct.pack("<II", 4, 0)]), "alignment: 0 is no power of two"),
        (header([], [text("general.alignment") + struct.pack("<II", 4, 48)]), "alignment: 48 is no power of two"),
        (padded(header([tensor("w", 0, [4])], []), 8), r"w: shape \[4\] ends at byte"),
        (padded(header([tensor("w", 0, [1 << 63, 1 << 63])], []), 8), r"w: shape .* ends at byte"),
        (padded(header([tensor("w", 0, [4], 1 << 62)], []), 64), r"w: shape \[4\] ends at byte"),
        (padded(header([tensor("w", 0, [4], 8)], []), 64), "w: offset 8 is no multiple"),
        (padded(header([tensor("w", 2, [4, 33])], []), 640), r"w: shape \[4, 33\] is not in blocks of 32"),
        (padded(header([tensor("w", 0, [])], []), 64), r"w: shape \[\] is not in blocks"),
        (padded(header([tensor("w", 2, [0, 32])], []), 64), r"w: shape \[0, 32\] is not in blocks"),
        (padded(header([tensor("w", 0, [1] * 5)], []), 64), "w: 5 dimensions are more than 4"),
        (padded(header([tensor("w", 12345, [4])], []), 64), "w: type 12345 is unknown"),
        (padded(header([tensor("w", 0, [4]), tensor("w", 0, [4], 32)], []), 64), "w: two tensors of that name"),
        (padded(header([tensor("a", 0, [16]), tensor("b", 0, [4], 32)], []), 64), "b: overlaps a"),
        (header([struct.pack("<Q", 2) + b"\xff\xff" + bytes(16)], []), "no readable GGUF file"),
    ],
)
def test_hostile_files_give_one_error_that_names_them(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"m\.gguf: no readable GGUF file: .*{message}|{message}"):
        open_checkpoint(path)


def test_every_truncation_and_every_changed_header_byte_is_an_error_or_harmless(tmp_path: Path) -> None:
    good = write(tmp_path, {"w": ("Q4_1", random(4, 32))}).read_bytes()
    damaged = [good[:size] for size in range(len(good))]
    damaged += [good[:at] + bytes([good[at] ^ 0x85]) + good[at + 1 :] for at in range(len(good) - 80)]

    def attempt(content: bytes) -> Any:
        path = tmp_path / "damaged.gguf"
        path.unlink(missing_ok=True)  # a new file, because the last one may still be mapped
        path.write_bytes(content)
        file = open_checkpoint(path)
        return [file.read(name).pack() for name in file.names]

    for content in damaged:
        try:
            attempt(content)
        except ValueError as error:
            assert str(error)
    assert len(attempt(good)) == 1


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.gguf"):
        open_checkpoint(tmp_path / "nothing.gguf")
