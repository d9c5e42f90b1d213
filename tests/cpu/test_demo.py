"""The demo's two ways to decode, and what it calls a failure."""

import pytest
import torch
from humming_ext.demo import DECODE_TOKENS, MAX_RMS_RATIO, Decoded, Result, decode, decode_in_place, logits_of
from llama import quantise, tiny_llama


@pytest.mark.parametrize("prompt_tokens", [1, 9])
def test_a_cache_of_fixed_size_decodes_the_same_tokens(prompt_tokens: int) -> None:
    model = tiny_llama(torch.float64, "cpu")
    prompt = torch.arange(10, 10 + prompt_tokens)[None]
    growing, fixed = decode(model, prompt), decode_in_place(model, prompt, graph=False)
    assert len(set(growing.tokens)) > DECODE_TOKENS // 2, "the model repeats itself, the test shows nothing"
    assert fixed.tokens == growing.tokens
    assert fixed.logits.shape == growing.logits.shape == (DECODE_TOKENS, model.config.vocab_size)
    # The model computes its angles in float32 whatever its type, so that is the rounding to expect.
    assert fixed.rms_from(growing) < 2**-23 * growing.logits.square().mean().sqrt()


def test_packed_weights_decode_alike_up_to_rounding() -> None:
    """In bf16 the caches may part at a tie; the demo's measure of rounding is plain bf16 against a wider type."""
    model, wide = tiny_llama(torch.bfloat16, "cpu"), tiny_llama(torch.float64, "cpu")
    prompt = torch.arange(10, 19)[None]
    rounding = (logits_of(model, prompt) - logits_of(wide, prompt)).square().mean().sqrt()
    quantise(model)
    growing, fixed = decode(model, prompt), decode_in_place(model, prompt, graph=False)
    assert fixed.rms_from(growing) < MAX_RMS_RATIO * rounding


def decoded(tokens: list[int], offset: float = 0.0) -> Decoded:
    """Scores of 8 tokens at every position: 1 for the chosen one; 3 and 4 are nearly as good."""
    logits = torch.zeros(DECODE_TOKENS, 8)
    logits[:, 3:5] = 0.9
    logits[range(DECODE_TOKENS), tokens] = 1.0
    return Decoded(logits + offset, 10.0)


def result(graph: Decoded | None, *, rms: float = 0.1, agreement: float = 99.0) -> Result:
    tokens = [3] * DECODE_TOKENS
    return Result("form", rms, agreement, decoded(tokens), graph, "")


def test_forms_that_rounding_explains_pass() -> None:
    plain = result(None)
    same, near = decoded([3] * DECODE_TOKENS, 0.15), decoded([3] * 5 + [4] * (DECODE_TOKENS - 5))
    for graph in (None, same, near):
        assert result(graph).failure(plain) is None
    assert f"the same {DECODE_TOKENS} tokens" in (result(same).graph_row() or "")
    assert "the first 5 tokens are the same" in (result(near).graph_row() or "")
    assert result(None).graph_row() is None


def test_failures_name_the_form_and_the_figure() -> None:
    plain = result(None)
    assert "logit RMS error 0.3000" in (result(None, rms=0.3).failure(plain) or "")
    assert "agreement" in (result(None, agreement=98.0).failure(plain) or "")
    nan = float("nan")
    assert result(None, rms=nan).failure(plain) and result(None, agreement=nan).failure(plain)
    for graph in (decoded([3] * DECODE_TOKENS, 0.3), decoded([5] * DECODE_TOKENS), decoded([3] * DECODE_TOKENS, nan)):
        assert "CUDA graph" in (result(graph).failure(plain) or "")
