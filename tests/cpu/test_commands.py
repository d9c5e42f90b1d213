"""The command line: checkpoints packed, listed and verified; what a build runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import humming_ext as he
import pytest
import torch
from checkpoint_files import write
from humming_ext.__main__ import main
from humming_ext.checkpoints import CheckpointWeight, open_checkpoint
from safetensors import safe_open

W8A8 = {"quant_method": "w8a8_int8"}
MXFP4 = {"quant_method": "mxfp4"}


def int8_tensors(*names: str, shape: tuple[int, int] = (48, 64)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name in names:
        tensors[f"{name}.weight"] = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
        tensors[f"{name}.weight_scale"] = torch.rand(shape[0], 1, generator=generator)
    return tensors


def mxfp4_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "mlp.down_proj_blocks": torch.randint(256, (3, 48, 2, 16), dtype=torch.uint8, generator=generator),
        "mlp.down_proj_scales": torch.randint(118, 128, (3, 48, 2), dtype=torch.uint8, generator=generator),
    }


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    status, out, err = run(capsys, *arguments, "--json")
    assert status == 0 and not err
    return json.loads(out)


def test_pack_writes_what_the_checkpoint_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, int8_tensors("a", "b.c"), W8A8)
    out = tmp_path / "packed.safetensors"
    status, text, errors = run(capsys, "pack", tmp_path, out)
    assert status == 0 and "2 packed weights (2 for operand bf16)" in text and "peak memory" in text and not errors
    weights = he.load_weights(out)
    checkpoint = open_checkpoint(tmp_path)
    assert list(weights) == checkpoint.names == ["a", "b.c"]
    for name, weight in weights.items():
        assert torch.equal(weight.dequantize().double(), checkpoint.read(name).dequantize().float().double())
        assert weight.fields.layout_version == he.build_info()["layout_version"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "packed.safetensors",
    ]


def test_pack_takes_the_operand_of_the_activations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, int8_tensors("a"), W8A8)
    out = tmp_path / "packed.safetensors"
    assert run_json(capsys, "pack", tmp_path, out, "--activation", "int8")["operands"] == {"s8": 1}
    assert he.load_weights(out)["a"].spec.operand == he.Operand.s8
    assert run_json(capsys, "pack", tmp_path, out, "--activation", "e4m3")["operands"] == {"bf16": 1}


def test_a_pack_that_fails_leaves_the_file_that_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = int8_tensors("a", "b")
    tensors["b.weight_scale"][3] = float("nan")
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", tensors, W8A8)
    out = tmp_path / "packed.safetensors"
    out.write_bytes(b"old")
    status, text, errors = run(capsys, "pack", tmp_path / "model", out)
    assert status == 1 and not text and errors.startswith("pack: b: ") and "non-finite" in errors
    assert out.read_bytes() == b"old" and not list(tmp_path.glob("*.partial"))


def test_files_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    """Sizes that are no multiples of 8 in between, names that JSON escapes, and no weight at all."""
    spec = he.QuantSpec(he.WeightFormat.int3, scale_dtype=torch.float32)
    codes, scale = torch.randint(8, (9, 33), dtype=torch.uint8), torch.rand(9, 1)
    plain = he.PackedWeight.pack(codes, scale, spec=spec)
    sorted_ = he.PackedWeight.pack(codes, scale, spec=spec, columns=torch.randperm(33))
    tensor_scale = he.QuantSpec(he.WeightFormat.int3, block_rows=0, scale_dtype=torch.float32)
    weights = {'q"ü': plain, "b": sorted_, "c": he.PackedWeight.pack(codes, scale[:1], spec=tensor_scale)}
    for given in (weights, {}):
        he.save_weights(given, tmp_path / "w.safetensors")
        with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        wanted = {key: value for name, weight in given.items() for key, value in weight.state(f"{name}.").items()}
        assert stored.keys() == wanted.keys()
        assert all(torch.equal(stored[name], wanted[name]) for name in wanted)
    he.save_weights(weights, tmp_path / "w.safetensors")
    assert torch.equal(he.load_weights(tmp_path / "w.safetensors")["b"].dequantize(), sorted_.dequantize())


def test_the_memory_of_pack_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    peaks = []
    for count in (2, 24):
        folder = tmp_path / str(count)
        folder.mkdir()
        write(folder, int8_tensors(*map(str, range(count)), shape=(2048, 4096)), W8A8)
        command = [sys.executable, "-m", "humming_ext", "pack", str(folder), str(folder / "w"), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        peaks.append(json.loads(done.stdout)["peak_memory_bytes"])
    assert peaks[1] - peaks[0] < 32 << 20, "22 more weights of 8 MiB"


def test_inspect_lists_checkpoints_and_packed_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, mxfp4_tensors(), MXFP4)
    status, text, _ = run(capsys, "inspect", tmp_path)
    assert status == 0
    assert "mlp.down_proj: e2m1 [3, 48, 64], float8_e8m0fnu scales per 32 columns" in text
    assert "1 quantised weights: 1 e2m1" in text
    row = run_json(capsys, "inspect", tmp_path)["weights"][0]
    assert (row["format"], row["shape"], row["group"], row["zero"]) == ("e2m1", [3, 48, 64], 32, "none")

    out = tmp_path / "packed.safetensors"
    run(capsys, "pack", tmp_path, out)
    status, text, _ = run(capsys, "inspect", out)
    assert status == 0 and "mlp.down_proj: PackedWeight(e2m1 [3, 48, 64]" in text
    row = run_json(capsys, "inspect", out)["weights"][0]
    assert row["desc"]["layout_version"] == he.build_info()["layout_version"] and row["desc"]["experts"] == 3


def test_verify_passes_what_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tensors, config, names in [
        (int8_tensors("a", "b"), W8A8, ["a", "b"]),
        (mxfp4_tensors(), MXFP4, ["mlp.down_proj"]),
    ]:
        write(tmp_path, tensors, config)
        status, text, _ = run(capsys, "verify", tmp_path)
        assert status == 0 and f"{len(names)} weights, 0 misses" in text
        rows = run_json(capsys, "verify", tmp_path)["weights"]
        assert [row["name"] for row in rows] == names
        assert all(row["max_error"] <= 2**-23 and row["problem"] is None for row in rows)


def test_verify_goes_on_after_a_miss_and_returns_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = int8_tensors("a", "b", "c")
    tensors["a.weight_scale"] = tensors["a.weight_scale"][:5]
    write(tmp_path, tensors, W8A8)
    exact = CheckpointWeight.dequantize

    def off_by_one_code(weight: CheckpointWeight) -> torch.Tensor:
        values = exact(weight)
        if weight.name == "b":
            values[7, 9] += float(weight.scale[7])
        return values

    monkeypatch.setattr(CheckpointWeight, "dequantize", off_by_one_code)
    status, text, _ = run(capsys, "verify", tmp_path)
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert status == 1 and "3 weights, 2 misses" in text
    assert "MISS: a.weight_scale: shape" in lines["a"]
    assert "MISS: differs from the checkpoint" in lines["b"]
    assert "MISS" not in lines["c"]


@pytest.mark.parametrize("command", ["pack", "inspect", "verify"])
def test_what_cannot_be_read_is_an_error_of_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [tmp_path / "out"] if command == "pack" else []
    status, text, errors = run(capsys, command, tmp_path, *out)
    assert status == 1 and not text and errors.count("\n") == 1
    assert errors.startswith(f"{command}: ") and "config.json" in errors


def test_info_plans_a_pair(capsys: pytest.CaptureFixture[str]) -> None:
    plans = run_json(capsys, "info")["plans"]
    assert list(plans) == ["bf16", "fp16", "e4m3", "e5m2", "int8", "int4"]
    assert all("int4 weights" in plan for plan in plans.values())
    facts = run_json(capsys, "info", "uint5", "int8")
    assert facts["version"] == he.__version__ and facts["gpus"] == [
        torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
    ]
    assert len(facts["plans"]) == 16
    assert "256 tokens: uint5 weights 8 x 4096 x 4096" in facts["plans"]["groups of 128, 8 experts, 256 tokens"]
    with pytest.raises(SystemExit):
        run(capsys, "info", "int9")
    assert "int9" in capsys.readouterr().err
    assert run(capsys, "info", "e2m1", "bf16")[1].count("e2m1 weights 4096 x 4096") == 8


@pytest.mark.parametrize("command", ["info", "pack", "inspect", "verify"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"example: python -m humming_ext {command}" in capsys.readouterr().out
