"""`report`: what every format costs a small language model, in weights, in outputs and in perplexity."""

import math
import os
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._demo_model import SmolLM, find_gguf
from .._quantize import quantize
from ..demo import logits_of
from ..formats import WeightFormat, ZeroKind
from ..linear import QuantLinear
from ..packed_weight import PackedWeight
from ..spec import QuantSpec
from ._common import Progress, add_command, print_json

GROUP = 64  # divides every k of the model


@dataclass(frozen=True)
class Row:
    """One form of the model.

    bits: per weight of the linear layers, with scales and zero points.
    weight_error, output_error: RMS of the difference from float32, of these weights and of the logits, divided by the
        RMS of float32.
    """

    name: str
    bits: float
    weight_error: float
    output_error: float
    perplexity: float


def add(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "report",
        report,
        "quantise a small language model to every format and measure its perplexity",
        "report --formats int4,e2m1 --tokens 200",
    )
    parser.add_argument(
        "--formats",
        type=_formats,
        default=list(WeightFormat),
        metavar="A,B,...",
        help="weight formats (default: all, which takes minutes)",
    )
    parser.add_argument("--tokens", type=int, default=1024, help="length of the text (default: 1024)")
    parser.add_argument("--clip", action="store_true", help="scales with the least squared error, not round-to-nearest")
    parser.add_argument("--plot", type=Path, default="report.png", help="where to plot (default: report.png)")


def _formats(names: str) -> list[WeightFormat]:
    if unknown := [name for name in names.split(",") if name not in WeightFormat.__members__]:
        raise ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(WeightFormat.__members__)}")
    return [WeightFormat[name] for name in names.split(",")]


def report(args: Namespace) -> int:
    """Prints a row per format as it is measured, and plots bits against perplexity if matplotlib is installed."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
    path = find_gguf()
    lm = SmolLM(path)
    texts = _texts(lm.tokenizer, args.tokens)
    tokens = sum(ids.shape[1] for ids in texts)
    rows = []
    if not args.json:
        print(f"model   {path.name}, whose weights are those that its own 4-bit codes stand for")
        print(f"text    {tokens} tokens; x in bf16, scales in bf16 per {GROUP} columns, integer zero points of uint")
        print(f"\n{'format':<8}{'bits':>8}{'weight error':>15}{'output error':>15}{'perplexity':>13}")
    with Progress(2 + len(args.formats)) as bar:
        bar.show("float32")
        for row in measure(lm.model, texts, args.formats, clip=args.clip):
            rows.append(row)
            if not args.json:
                figures = f"{row.bits:>8.2f}{row.weight_error:>15.5f}{row.output_error:>15.5f}{row.perplexity:>13.3f}"
                bar.clear()
                print(f"{row.name:<8}{figures}", flush=True)
            bar.show(row.name)
    if args.json:
        print_json({"model": path.name, "tokens": tokens, "rows": [asdict(row) for row in rows]})
    _plot(rows, args.plot)
    return 0


def _texts(tokenizer: Any, tokens: int) -> list[Tensor]:
    """The first `tokens` tokens of the tales, [1, tokens of a tale] each. Raises ValueError if there are fewer."""
    texts = []
    left = tokens
    for tale in files("humming_ext").joinpath("data/tales.txt").read_text(encoding="utf-8").split("\n\n\n"):
        ids = tokenizer(tale, return_tensors="pt").input_ids[:, :left]
        left -= ids.shape[1]
        if ids.shape[1] > 1:  # one token alone predicts nothing
            texts.append(ids)
    if left or not texts:
        raise ValueError(f"--tokens: {tokens} is not from 2 to the {tokens - left} of the text")
    return texts


def measure(model: Any, texts: list[Tensor], formats: list[WeightFormat], *, clip: bool = False) -> Iterator[Row]:
    """A row of float32, one of bf16, and one per format, of a transformers model in float32 with `model.layers`.

    The model ends as the last form: bf16, with its decoder's linear layers on packed weights.
    """
    linear = {
        f"layers.{name}": module.weight.detach().clone()
        for name, module in model.model.layers.named_modules()
        if isinstance(module, nn.Linear)
    }
    references = [logits_of(model, ids) for ids in texts]
    logit_rms = _rms(references)

    def row(name: str, bits: float, weight_error: float) -> Row:
        squares, nll, predicted = 0.0, 0.0, 0
        for ids, reference in zip(texts, references, strict=True):
            logits = logits_of(model, ids)
            squares += float((logits - reference).square().sum())
            nll += float(nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))
            predicted += ids.shape[1] - 1
        error = math.sqrt(squares / sum(reference.numel() for reference in references)) / logit_rms
        return Row(name, bits, weight_error, error, math.exp(nll / predicted))

    yield row("float32", 32, 0.0)
    model.to(torch.bfloat16)
    rounding = [weight - weight.bfloat16() for weight in linear.values()]
    yield row("bf16", 16, _rms(rounding) / _rms(list(linear.values())))
    for weight_format in formats:
        spec = QuantSpec(
            weight_format,
            group=GROUP,
            scale_dtype=torch.bfloat16,
            zero=ZeroKind.integer if weight_format.kind == "uint" else ZeroKind.none,
        )
        bits, squares = 0, 0.0
        for name, weight in linear.items():
            tensors = quantize(weight, spec, clip=clip)
            packed = PackedWeight.pack(**tensors, spec=spec)
            squares += float((packed.dequantize() - weight).square().sum())
            bits += weight_format.bits * weight.numel()
            bits += 8 * sum(part.nbytes for part in (tensors["scale"], tensors["zero"]) if part is not None)
            model.model.set_submodule(name, QuantLinear(packed))
        count = sum(weight.numel() for weight in linear.values())
        error = math.sqrt(squares / count) / _rms(list(linear.values()))
        yield row(weight_format.name, bits / count, error)


def _rms(tensors: list[Tensor]) -> float:
    squares = sum(float(tensor.square().sum()) for tensor in tensors)
    return math.sqrt(squares / sum(tensor.numel() for tensor in tensors))


def _plot(rows: list[Row], path: Path) -> None:
    """Bits against perplexity, on a logarithmic scale; says so if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed; run: pip install matplotlib", file=sys.stderr)
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row in rows[1:]:
        axes.plot(row.bits, row.perplexity, "o")
        axes.annotate(row.name, (row.bits, row.perplexity), xytext=(4, 4), textcoords="offset points")
    axes.axhline(rows[0].perplexity, linewidth=1, label="float32")
    axes.set(xlabel="bits per weight", ylabel="perplexity", yscale="log")
    axes.legend()
    figure.savefig(path)
    print(f"plot in {path}", file=sys.stderr)
