"""Runs a 4-bit language model on packed weights and compares it with float32 and with plain torch bf16.

All forms use the same weights, those that the checkpoint's 4-bit codes stand for, so what differs is arithmetic alone.
"""

import os
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from ._demo_model import NUM_EXPERTS, SmolLM, find_gguf
from ._explain import explain
from .checkpoints.gguf import block_spec

QUESTION = "What is photosynthesis?"
MIN_TOKENS = 1024
DECODE_TOKENS = 64
WARM_UP_STEPS = 3  # before a graph is captured
MAX_RMS_RATIO = 2.0  # logit error against that of torch bf16
MAX_AGREEMENT_LOSS = 0.5  # points of top-1 agreement below torch bf16


@dataclass(frozen=True)
class Decoded:
    """Greedy decoding: the scores [DECODE_TOKENS, vocabulary] whose largest are the tokens, and the speed."""

    logits: Tensor
    tokens_per_second: float

    @property
    def tokens(self) -> list[int]:
        """The chosen tokens."""
        return self.logits.argmax(1).tolist()

    def common_tokens(self, other: "Decoded") -> int:
        """How many tokens both have in common before the first that differs."""
        pairs = zip(self.tokens, other.tokens, strict=True)
        return next((i for i, (own, others) in enumerate(pairs) if own != others), len(self.tokens))

    def rms_from(self, other: "Decoded") -> float:
        """RMS of the logit differences where both had read the same tokens: up to the first choice that differs."""
        same = slice(self.common_tokens(other) + 1)
        return float((self.logits[same].float() - other.logits[same].float()).square().mean().sqrt())


@dataclass(frozen=True)
class Result:
    """One form's distance from float32 and its speed."""

    name: str
    rms: float  # of the logit differences
    agreement: float  # percent of positions with the same most likely token
    decoded: Decoded
    graph: Decoded | None  # the same with a CUDA graph
    answer: str

    def row(self) -> str:
        """The form's line in the printed table."""
        graph = f"{self.graph.tokens_per_second:>12.1f}" if self.graph else f"{'-':>12}"
        speed = f"{self.decoded.tokens_per_second:>12.1f}{graph}"
        return f"{self.name:<22}{self.rms:>16.4f}{self.agreement:>16.2f} %{speed}"

    def graph_row(self) -> str | None:
        """Whether the tokens are the same with a CUDA graph, or where they part; None if there was no graph."""
        if not self.graph:
            return None
        common = self.graph.common_tokens(self.decoded)
        if common == DECODE_TOKENS:
            return f"{self.name}: the same {common} tokens"
        rms = self.graph.rms_from(self.decoded)
        return f"{self.name}: the first {common} tokens are the same; logits up to the next are {rms:.4f} RMS apart"

    def failure(self, plain: "Result") -> str | None:
        """Why this form is worse than `plain` by more than rounding explains, or None."""
        # The two caches take different attention kernels, so that rounding may decide between two tokens of nearly the
        # same score. More than rounding must not.
        if self.graph and not (rms := self.graph.rms_from(self.decoded)) <= MAX_RMS_RATIO * plain.rms:
            return f"{self.name}: logits with a CUDA graph are {rms:.4f} RMS off, over {MAX_RMS_RATIO} x {plain.name}"
        if not self.rms <= MAX_RMS_RATIO * plain.rms:
            return f"{self.name}: logit RMS error {self.rms:.4f} is over {MAX_RMS_RATIO} times that of {plain.name}"
        if not self.agreement >= plain.agreement - MAX_AGREEMENT_LOSS:
            return f"{self.name}: agreement is over {MAX_AGREEMENT_LOSS} points below that of {plain.name}"
        return None


def choose_device(experts: int = 0) -> tuple[torch.device, str]:
    """CUDA if it has a kernel for the demo's weights, else the CPU; and a sentence that says why."""
    cpu = f"cpu, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        return torch.device("cpu"), cpu
    plan = explain(block_spec("Q4_1").desc(576, 576, experts), torch.bfloat16, cuda=True).splitlines()[0]
    name = torch.cuda.get_device_name()
    if "no instance" in plan:
        return torch.device("cpu"), f"{cpu} ({name} is there, but: {plan})"
    return torch.device("cuda"), name


@torch.inference_mode()
def logits_of(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """The model's scores at every position of a text: ids [1, tokens] -> float32 [tokens, vocabulary]."""
    return model(ids).logits[0].float()


def compare(model: torch.nn.Module, texts: list[Tensor], references: list[Tensor]) -> tuple[float, float]:
    """RMS of the model's logit differences from `references`, and percent of positions with the same best token."""
    device = next(model.parameters()).device
    squares, same, tokens = 0.0, 0, 0
    for ids, reference in zip(texts, references, strict=True):
        logits = logits_of(model, ids.to(device)).to(reference.device)
        same += int((logits.argmax(1) == reference.argmax(1)).sum())
        squares += float((logits - reference).square_().mean(1).sum())
        tokens += len(logits)
    return (squares / tokens) ** 0.5, 100 * same / tokens


@torch.inference_mode()
def decode(model: torch.nn.Module, prompt: Tensor) -> Decoded:
    """Greedy decoding of the DECODE_TOKENS tokens after the prompt [1, tokens], with a growing key-value cache."""
    step = model(prompt, use_cache=True)
    logits = [step.logits[0, -1]]
    token = int(logits[-1].argmax())
    start = time.perf_counter()
    while len(logits) < DECODE_TOKENS:
        last = torch.tensor([[token]], device=prompt.device)
        step = model(last, past_key_values=step.past_key_values, use_cache=True)
        logits.append(step.logits[0, -1])
        token = int(logits[-1].argmax())
    return Decoded(torch.stack(logits), (DECODE_TOKENS - 1) / (time.perf_counter() - start))


@torch.inference_mode()
def decode_in_place(model: torch.nn.Module, prompt: Tensor, *, graph: bool) -> Decoded:
    """As `decode`, with a key-value cache of fixed size: every step reads and writes the same memory.

    graph: captures a step in a CUDA graph, after WARM_UP_STEPS steps, and replays it. The host waits for no step, and
    only the replays are timed.
    """
    from transformers import StaticCache

    config: Any = model.config
    cache = StaticCache(config, max_cache_len=prompt.shape[1] + DECODE_TOKENS)  # counts its tokens on the device
    scores = model(prompt, past_key_values=cache).logits[:, -1]
    logits = scores.new_empty(DECODE_TOKENS, scores.shape[1])
    token = prompt.new_empty(1, 1)
    position = prompt.new_zeros(1)

    def choose(scores: Tensor) -> None:
        logits.index_copy_(0, position, scores)
        token.copy_(scores.argmax(1, keepdim=True))
        position.add_(1)

    def step() -> None:
        choose(model(token, past_key_values=cache).logits[:, -1])

    choose(scores)
    run = step
    if graph:
        stream = torch.cuda.Stream(prompt.device)
        stream.wait_stream(torch.cuda.current_stream(prompt.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step()
        torch.cuda.current_stream(prompt.device).wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        run = captured.replay
    steps = DECODE_TOKENS - int(position)  # waits for the device, as does the next use
    start = time.perf_counter()
    for _ in range(steps):
        run()
    if int(position) != DECODE_TOKENS:
        raise RuntimeError(f"{int(position)} tokens were decoded instead of {DECODE_TOKENS}")
    return Decoded(logits, steps / (time.perf_counter() - start))


def main() -> int:
    """Runs the demo. Returns 0, or 1 if a form on packed weights is worse than torch bf16 by more than rounding."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
    path = find_gguf()
    device, device_text = choose_device()
    mixture_device, mixture_text = choose_device(NUM_EXPERTS)
    print(f"model     {path.name}")
    print(f"device    {device_text}", flush=True)
    if mixture_device != device:
        print(f"          experts: {mixture_text}", flush=True)

    lm = SmolLM(path)
    lm.model.to(device)
    tokenizer = lm.tokenizer

    def encode(text: str) -> Tensor:
        return tokenizer(text, return_tensors="pt").input_ids.to(device)

    tales = files(__package__).joinpath("data/tales.txt").read_text(encoding="utf-8").split("\n\n\n")
    texts = [encode(tale) for tale in tales]
    num_tokens = sum(ids.shape[1] for ids in texts)
    if num_tokens < MIN_TOKENS:
        raise RuntimeError(f"the demo's texts have {num_tokens} tokens, fewer than {MIN_TOKENS}")
    messages = [{"role": "user", "content": QUESTION}]
    prompt = encode(str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)))
    references = [logits_of(lm.model, ids) for ids in texts]

    def measure(name: str, *, graph: bool) -> Result:
        rms, agreement = compare(lm.model, texts, references)
        local_prompt = prompt.to(lm.model.device)
        decoded = decode(lm.model, local_prompt)
        replayed = decode_in_place(lm.model, local_prompt, graph=True) if graph else None
        tokens = decoded.tokens
        end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
        answer = str(tokenizer.decode(tokens[:end])).strip()
        result = Result(name, rms, agreement, decoded, replayed, answer)
        print(result.row(), flush=True)
        return result

    print(f"texts     {num_tokens} teacher-forced tokens, each form against float32 on the same weights\n")
    print(f"{'form':<22}{'logit RMS error':>16}{'top-1 agreement':>18}{'tokens/s':>12}{'with graph':>12}")
    lm.to_bf16()
    plain = measure("torch bf16", graph=device.type == "cuda")
    lm.to_packed(device)
    dense = measure("humming dense", graph=device.type == "cuda")
    plan = explain(lm.packed[0], torch.bfloat16)
    lm.model.to(mixture_device)
    lm.to_experts(mixture_device)
    mixture = measure(f"humming {NUM_EXPERTS} experts", graph=False)

    packed_bytes = sum(weight.nbytes for weight in lm.packed)
    bf16_bytes = sum(2 * weight.shape.numel() for weight in lm.packed)
    print(f"\npacked    {len(lm.packed)} weights in {packed_bytes:,} bytes; as bf16 {bf16_bytes:,} bytes")
    for text in (plan, explain(lm.experts[0], torch.bfloat16)):
        print(f"plan      {text.splitlines()[0]}")
    print(f"question  {QUESTION}")
    print(f"answer    {dense.answer}")
    for form in (plain, dense, mixture):
        if row := form.graph_row():
            print(f"graph     {row}")
    failures = [failure for form in (plain, dense, mixture) if (failure := form.failure(plain))]
    for failure in failures:
        print(f"FAILED    {failure}")
    return 1 if failures else 0
