"""The demo's decoding step in a CUDA graph."""

import humming_ext
import pytest
import torch
from humming_ext.checkpoints.gguf import block_spec
from humming_ext.demo import decode_in_place
from llama import quantise, tiny_llama
from support import assert_bits_equal


def test_replays_give_the_bits_of_single_steps() -> None:
    plan = humming_ext.explain(block_spec("Q4_1").desc(128, 128), torch.bfloat16, cuda=True)
    if "no instance" in plan:
        pytest.skip(plan)
    model = tiny_llama(torch.bfloat16, "cuda")
    quantise(model)
    prompt = torch.arange(10, 19, device="cuda")[None]
    single, replayed = (decode_in_place(model, prompt, graph=graph) for graph in (False, True))
    assert_bits_equal(replayed.logits, single.logits)
