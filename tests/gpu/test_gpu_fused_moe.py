"""The MoE layer on the GPU: the cases of tests/moe_layers.py, which the CPU passes too; and in graphs.

A case whose products have no kernel instance in this build is skipped.
"""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from moe_layers import BY_NAME, CASES, COMPOSED, LAYOUTS, LayerCase, Problem, composed, make_problem, quantise_tokens
from moe_routings import Routing
from support import assert_bits_equal

layouts = pytest.mark.parametrize("layout", LAYOUTS)
some_cases = pytest.mark.parametrize("case", [BY_NAME["v4-bf16"], BY_NAME["v4-fp8"], BY_NAME["gpt_oss-fp8"]], ids=str)
TOKENS = 40


def make(case: LayerCase, kind: str, tokens: int, layout: str, used: int | None = None, **options) -> Problem:
    """A problem that this build has kernels for; the test is skipped if it has none."""
    problem = make_problem(case, Routing(kind, tokens, case.top_k, case.experts, used), layout, "cuda", **options)
    try:
        problem.call()
    except RuntimeError as error:
        if "no CUDA instance" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[0])
    return problem


def empty_result(problem: Problem) -> dict[str, torch.Tensor]:
    """out, of NaN, and workspace."""
    out = torch.empty(problem.out_shape, dtype=problem.dtype, device="cuda")
    out.view(torch.int16).fill_(-1)
    return {"out": out, "workspace": torch.empty(problem.workspace_shape, dtype=torch.uint8, device="cuda")}


@layouts
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_are_as_accurate_as_their_roundings(case: LayerCase, layout: str) -> None:
    for kind, tokens in [("mapped", 100), ("skewed", 3), ("one", 33), ("balanced", 0)]:
        problem = make(case, kind, tokens, layout)
        problem.check(problem.run())


@some_cases
@pytest.mark.parametrize("tokens", [1000, 4096])
def test_many_tokens(case: LayerCase, tokens: int) -> None:
    small = replace(case, hidden=128, inner=64, experts=8, top_k=3)
    problem = make(small, "skewed", tokens, "indexed")
    problem.check(problem.run())


@layouts
@pytest.mark.parametrize("case", COMPOSED, ids=str)
def test_layers_are_the_composition_of_their_ops(case: LayerCase, layout: str) -> None:
    problem = make(case, "mapped", 33, layout)
    rows = problem.written.cuda()
    assert_bits_equal(problem.run()[rows], composed(problem)[rows])


@layouts
@pytest.mark.sanitizer
def test_a_small_layer(layout: str) -> None:
    problem = make(BY_NAME["v4-fp8"], "mapped", 9, layout)
    problem.check(problem.run())


@layouts
@some_cases
def test_fifty_runs_give_the_same_bits(case: LayerCase, layout: str) -> None:
    """humming#56: an epilogue that raced gave wrong results in most runs."""
    problem = make(case, "skewed", 64, layout)
    first = problem.run()
    for _ in range(50):
        assert_bits_equal(problem.run(), first)


@layouts
@pytest.mark.parametrize("case", [BY_NAME["v4-fp8"], BY_NAME["gpt_oss-fp8"]], ids=str)
def test_quantised_tokens_give_the_bits_of_the_layers_own(case: LayerCase, layout: str) -> None:
    """sglang#24289: tokens that DeepEP had quantised came out garbled with mxfp4."""
    problem = make(case, "mapped", 33, layout)
    first = problem.run()
    quantise_tokens(problem)
    assert_bits_equal(problem.run(), first)


@pytest.mark.parametrize("case", [BY_NAME["v4-fp8"], BY_NAME["qwen3-int8"]], ids=str)
def test_many_pairs_give_the_bits_of_quantised_tokens(case: LayerCase) -> None:
    problem = make(replace(case, hidden=256, inner=128, experts=8, top_k=2), "mapped", 4100, "indexed")
    first = problem.run()
    quantise_tokens(problem)
    assert_bits_equal(problem.run(), first)


CAPTURE_FIRST = """
import sys
sys.path[:0] = sys.argv[1:]
import torch
from moe_layers import BY_NAME, make_problem
from moe_routings import Routing
case = BY_NAME["v4-fp8"]
problem = make_problem(case, Routing("skewed", 40, case.top_k, case.experts), "indexed", "cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    out = problem.call()
graph.replay()
problem.check(out)
"""


def test_the_first_call_of_a_process_may_be_captured(request: pytest.FixtureRequest) -> None:
    """vllm#47456, vllm#56684: first calls, and first calls of a token count, waited for a compiler. Here the driver
    compiles nothing either: the build has machine code for this GPU."""
    make(BY_NAME["v4-fp8"], "skewed", TOKENS, "indexed")
    command = [sys.executable, "-c", CAPTURE_FIRST, str(request.path.parent.parent)]
    environment = {**os.environ, "CUDA_DISABLE_PTX_JIT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr


@layouts
@some_cases
def test_replays_serve_other_routings(case: LayerCase, layout: str) -> None:
    """What was captured once serves other tokens, fewer, and other routings, with the bits of calls of their own."""
    shape = (TOKENS, layout)
    options = {"capacity": TOKENS * case.top_k}
    recorded = make(case, "skewed", *shape, **options)
    given = empty_result(recorded)
    recorded.call(**given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded.call(**given)
    for kind, used in [("one", None), ("balanced", 1), ("skewed", TOKENS // 3), ("nobody", None), ("skewed", None)]:
        problem = make(case, kind, *shape, used, **options)
        expected = problem.run()
        theirs = (problem.x, *problem.rows, *problem.options.values())
        for mine, other in zip((recorded.x, *recorded.rows, *recorded.options.values()), theirs, strict=True):
            mine.copy_(other)
        given["out"].view(torch.int16).fill_(-1)
        graph.replay()
        result = given["out"].view(-1, case.hidden)
        problem.check(result)
        assert_bits_equal(result, expected, f"recorded, then {kind}")


@layouts
@some_cases
def test_a_call_neither_waits_nor_allocates(case: LayerCase, layout: str) -> None:
    problem = make(case, "skewed", TOKENS, layout)
    given = empty_result(problem)
    problem.call(**given)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        problem.call(**given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    problem.check(given["out"].view(-1, case.hidden))


def test_a_side_stream_waits_for_its_inputs() -> None:
    """x arrives on that stream behind a long kernel."""
    problem = make(BY_NAME["v4-fp8"], "skewed", TOKENS, "indexed")
    expected, x = problem.run(), problem.x.clone()
    problem.x.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        problem.x.copy_(x)
        result = problem.call()
    stream.synchronize()
    assert_bits_equal(result, expected)


@layouts
def test_compile_as_one_graph(layout: str) -> None:
    case = BY_NAME["v4-fp8"]
    problem = make(case, "skewed", TOKENS, layout)

    def around(x: torch.Tensor, *rows: torch.Tensor) -> torch.Tensor:
        return getattr(problem.layer.module, "forward" if layout == "indexed" else layout)(x * 2, *rows) + 1

    torch.compiler.reset()
    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")(problem.x, *problem.rows)
    rows, eager = problem.written.cuda(), around(problem.x, *problem.rows)
    assert_bits_equal(compiled.view(-1, case.hidden)[rows], eager.view(-1, case.hidden)[rows])


def test_a_workspace_that_is_too_small_is_refused() -> None:
    case = BY_NAME["v4-fp8"]
    problem = make(case, "skewed", TOKENS, "indexed")
    given, module = empty_result(problem), problem.layer.module
    descs = (module.w13.weight.desc, module.w2.weight.desc)
    sizes = (TOKENS, case.top_k, torch.bfloat16, torch.bfloat16, *descs, "indexed", 0)
    for size in (0, torch.ops.humming.fused_moe_workspace(*sizes) - 1):
        with pytest.raises(RuntimeError, match="workspace has"):
            problem.call(out=given["out"], workspace=given["workspace"][:size])
    with pytest.raises(RuntimeError, match="workspace does not begin at a multiple of 128"):
        problem.call(out=given["out"], workspace=torch.cat([given["workspace"]] * 2)[16:])
