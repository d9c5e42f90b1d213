"""The report: its figures on a small random model, and one run on the real one."""

import json
import math
from pathlib import Path

import pytest
import torch
from humming_ext import WeightFormat
from humming_ext.__main__ import main
from humming_ext._commands.report import measure
from humming_ext._demo_model import find_gguf
from humming_ext.demo import logits_of
from llama import tiny_llama


def test_figures_are_those_of_their_definitions() -> None:
    model = tiny_llama(torch.float32, "cpu")
    texts = [torch.arange(5, 60)[None], torch.arange(100, 300, 7)[None]]
    before = {name: module.weight.detach().clone() for name, module in model.named_modules() if "_proj" in name}
    exact = [logits_of(model, ids) for ids in texts]
    rows = list(measure(model, texts, [WeightFormat[name] for name in ("int2", "int4", "int8", "uint4", "e2m1")]))
    after = [logits_of(model, ids) for ids in texts]

    assert [row.name for row in rows] == ["float32", "bf16", "int2", "int4", "int8", "uint4", "e2m1"]
    assert [row.bits for row in rows] == [32, 16, 2.25, 4.25, 8.25, 4.375, 4.25]
    assert (rows[0].weight_error, rows[0].output_error) == (0, 0) and 0 < rows[1].weight_error < 2**-8
    for name in ("weight_error", "output_error"):
        int2, int4, int8 = (getattr(row, name) for row in rows[2:5])
        assert int2 > 2 * int4 > 10 * int8 > 0

    nll = [
        -(logits.double().log_softmax(1)[:-1].gather(1, ids[0, 1:, None]))
        for logits, ids in zip(exact, texts, strict=True)
    ]
    assert rows[0].perplexity == pytest.approx(math.exp(float(torch.cat(nll).mean())), rel=1e-5)
    difference = torch.cat(after) - torch.cat(exact)
    assert rows[-1].output_error == pytest.approx(float(difference.norm() / torch.cat(exact).norm()), rel=1e-4)
    weights = [(model.get_submodule(name).weight.dequantize(), weight) for name, weight in before.items()]
    squares = [sum(float(x.square().sum()) for x in xs) for xs in ([a - b for a, b in weights], before.values())]
    assert rows[-1].weight_error == pytest.approx(math.sqrt(squares[0] / squares[1]), rel=1e-4)


def test_clipping_lowers_the_weight_error() -> None:
    texts, formats = [torch.arange(5, 60)[None]], [WeightFormat.int2]
    plain, clipped = (
        list(measure(tiny_llama(torch.float32, "cpu"), texts, formats, clip=c))[-1] for c in (False, True)
    )
    assert clipped.weight_error < 0.9 * plain.weight_error and clipped.bits == plain.bits


def test_the_real_model_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="the PyPI package gguf is not installed")
    try:
        find_gguf()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    plot = tmp_path / "plot.png"
    arguments = ["report", "--formats", "int4,int8", "--tokens", "64", "--json", "--plot", str(plot)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    float32, bf16, int4, int8 = found["rows"]
    assert found["tokens"] == 64
    assert float32["perplexity"] < 20, "of 49,152 tokens: it reads the text"
    assert bf16["perplexity"] == pytest.approx(float32["perplexity"], rel=0.05)
    assert int8["perplexity"] == pytest.approx(float32["perplexity"], rel=0.1)
    assert int4["weight_error"] > 10 * int8["weight_error"] and int4["output_error"] > 4 * int8["output_error"]
    assert plot.exists() != ("no plot: matplotlib is not installed" in captured.err)


def test_unknown_formats_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--formats", "int4,int9"])
    assert "int9 is none of int1" in capsys.readouterr().err
