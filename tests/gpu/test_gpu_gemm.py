"""The dense product on the GPU: bit for bit where arithmetic is exact, else as accurate as torch in the operand's type.

Cases are tried against every instance of the build: what this build has no instance for is skipped with its reason.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace

import humming_ext
import numpy as np
import pytest
import torch
from oracle.matmul import gemm
from oracle.rounding import ROUND
from support import (
    TORCH,
    Activations,
    WeightCase,
    assert_as_accurate,
    assert_bits_equal,
    guarded,
    operand_rounded,
    tensor,
)

ops = torch.ops.humming

NATIVE = {"bf16": "bf16", "fp16": "fp16", "e4m3": "e4m3", "s8": "int8"}
# Format, operand, scale type, group, zero: one for every kind of arithmetic; the build's preset says which run.
PAIRS = [
    *(("int4", operand, "bf16", 128, "none") for operand in ("bf16", "fp16", "e4m3", "s8")),
    *(("int4", "bf16", scale, 32, "none") for scale in ("bf16", "fp16")),
    *(("uint4", operand, "fp16", group, "integer") for operand in ("bf16", "fp16") for group in (32, 64, 128)),
    ("uint4", "bf16", "fp16", 32, "floating"),
    *((name, "bf16", "bf16", 128, "none") for name in ("int2", "int3", "int8")),
    *(("e2m1", operand, "e8m0", 32, "none") for operand in ("bf16", "fp16", "e4m3")),
    ("e2m1", "bf16", "e4m3", 16, "none"),
    *((name, operand, "none", 0, "none") for name in ("e4m3", "e3m2", "int8") for operand in ("bf16", "fp16")),
    *((name, "e4m3", "none", 0, "none") for name in ("int2", "int3", "int4", "e2m1", "e3m2", "e4m3")),
    *((name, "s8", "none", 0, "none") for name in ("int2", "int3", "int4", "int8")),
    *(("uint4", operand, "none", 0, "integer") for operand in ("e4m3", "s8")),
]
SHAPES = [(200, 80), (360, 192), (200, 288), (360, 360), (80, 720), (256, 1024)]
LARGE = (1440, 2880)
TOKENS = (1, 3, 8, 16, 17, 64, 65, 100, 256, 300)


def case_of(pair: tuple, n: int, k: int, **fields: object) -> WeightCase:
    """The weight of a pair; skips the test if this build has no instance for it."""
    name, operand, scale, group, zero = pair
    case = WeightCase(name, operand, scale, group, zero, n=n, k=k, **fields)
    plan = humming_ext.explain(case.desc, TORCH[NATIVE[operand]], 1, cuda=True)
    if "no instance" in plan:
        pytest.skip(plan)
    return case


def token_scale(operand: str) -> str:
    return "none" if operand in ("bf16", "fp16") else "token"


def gpu_gemm(
    case: WeightCase,
    x: Activations,
    scale2: np.ndarray | None = None,
    bias: torch.Tensor | None = None,
    **kwargs: object,
) -> torch.Tensor:
    """The product on the GPU, on weights packed there."""
    weights = case.make()
    packed, row_scale, _ = ops.prepack(*weights.prepack_args("cuda"))
    factor = row_scale.cpu().numpy() if row_scale.numel() else None
    if scale2 is not None:
        factor = scale2 if factor is None else scale2 * factor
    second = None if factor is None else torch.from_numpy(np.asarray(factor, np.float32)).cuda()
    x_scale = None if x.x_scale is None else x.x_scale.cuda()
    return ops.gemm(x.x.cuda(), x_scale, packed, second, None if bias is None else bias.cuda(), case.desc, **kwargs)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_identity_returns_the_weights(pair: tuple) -> None:
    """Power-of-two scales: the dequantised weight has no rounding in any operand, so it comes back bit for bit."""
    case = case_of(pair, 136, 208, power_of_two_scales=True)
    if pair[4] == "floating":
        pytest.skip("an offset plus a scaled code is rounded to the operand")
    kind = NATIVE[case.operand]
    x = Activations.make(np.random.default_rng(0), kind, case.k, case.k, token_scale(case.operand))
    x.x = torch.eye(case.k).to(TORCH[kind])
    if x.x_scale is not None:
        x.x_scale = torch.ones(case.k)
    out = gpu_gemm(case, x, out_dtype=torch.float32).cpu()
    assert_bits_equal(out.T.contiguous(), torch.from_numpy(case.make().decoded()) + 0.0)


def products(pair: tuple) -> Iterator[tuple[WeightCase, int]]:
    """Every shape with some token counts and every token count with some shapes; the large one twice."""
    for turn, ((n, k), m) in enumerate(itertools.product(SHAPES, TOKENS)):
        if (turn + len(pair[0])) % 3 == 0:
            yield case_of(pair, n, k), m
    for m in (17, 256):
        yield case_of(pair, *LARGE), m


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_random_products_are_as_accurate_as_torch(pair: tuple) -> None:
    for case, m in products(pair):
        weights = case.make()
        rng = weights.rng
        x = Activations.make(rng, NATIVE[case.operand], m, case.k, token_scale(case.operand))
        values = weights.values()
        unit = 1 / (np.sqrt(case.k) * (values.std() + 1e-9) * (x.values.std() + 1e-9))
        scale2 = ROUND["fp32"](rng.uniform(0.5, 1, case.n) * unit)
        bias = ROUND["bf16"](rng.standard_normal(case.n))
        out = gpu_gemm(case, x, scale2, tensor(bias, "bf16"), out_dtype=torch.bfloat16)
        plain = torch.from_numpy(x.values).float() @ torch.from_numpy(operand_rounded(values, case.operand)).float().T
        plain = (plain * torch.from_numpy(scale2).float() + torch.from_numpy(bias).float()).bfloat16()
        exact = gemm(x.values, weights.values(scale2), bias=bias)
        assert_as_accurate(out.cpu(), exact, plain, f"{case} m={m}")


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pair", [PAIRS[0], ("e2m1", "e4m3", "e8m0", 32, "none")], ids=str)
@pytest.mark.parametrize("m", [1, 33, 200])
def test_outputs_of_every_type_and_alignment(pair: tuple, m: int, out_dtype: torch.dtype) -> None:
    """fp32 rows, odd widths and odd strides are written in full and nothing beside them."""
    for n in (200, 203):
        case = case_of(pair, n, 256)
        x = Activations.make(np.random.default_rng(1), NATIVE[case.operand], m, case.k, token_scale(case.operand))
        packed, row_scale, _ = ops.prepack(*case.make().prepack_args("cuda"))
        second = row_scale / 4096 if row_scale.numel() else None  # sums of e4m3 values would pass fp16
        x_scale = None if x.x_scale is None else x.x_scale.cuda()
        args = (x.x.cuda(), x_scale, packed, second, None, case.desc)
        expected = ops.gemm(*(a.cpu() if isinstance(a, torch.Tensor) else a for a in args), out_dtype=torch.float32)
        for pitch in (n, n + 5):
            with guarded((m, n), out_dtype, "cuda", pitch=pitch) as out:
                ops.gemm.out(*args, out=out, workspace=out.new_empty(0, dtype=torch.uint8))
                got = out.float().cpu()
            error = (got - expected).norm() / expected.norm()
            assert error < 6e-3, (n, pitch, float(error))


@pytest.mark.parametrize("m", [1, 16, 64, 300])
def test_gate_up_rows_come_back_in_logical_order(m: int) -> None:
    case = replace(case_of(PAIRS[0], 208, 256), gate_up=True, row_order="gate_up")
    x = Activations.make(np.random.default_rng(2), "bf16", m, case.k)
    values = case.make().values()
    plain = torch.from_numpy(x.values).float() @ torch.from_numpy(operand_rounded(values, case.operand)).float().T
    out = gpu_gemm(case, x, out_dtype=torch.bfloat16)
    assert_as_accurate(out.cpu(), gemm(x.values, values), plain.bfloat16(), str(case))


@pytest.mark.parametrize("pair", [PAIRS[0], ("e2m1", "e4m3", "e8m0", 32, "none")], ids=str)
@pytest.mark.parametrize("m", [1, 16, 64, 256])
def test_hundred_runs_and_graph_replays_give_the_same_bits(pair: tuple, m: int) -> None:
    case = case_of(pair, 1024, 2048)
    x = Activations.make(np.random.default_rng(3), NATIVE[case.operand], m, case.k, token_scale(case.operand))
    packed, row_scale, _ = ops.prepack(*case.make().prepack_args("cuda"))
    x_scale = None if x.x_scale is None else x.x_scale.cuda()
    args = (x.x.cuda(), x_scale, packed, row_scale if row_scale.numel() else None, None, case.desc)
    first = ops.gemm(*args)
    out = torch.full_like(first, float("nan"))
    workspace = out.new_empty(0, dtype=torch.uint8)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(4):  # one after the other: each may start before the last has ended
            ops.gemm.out(*args, out=out, workspace=workspace)
    for _ in range(25):
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert_bits_equal(out.cpu(), first.cpu())


def test_what_has_no_instance_is_refused_instance_by_instance() -> None:
    case = WeightCase("int6", n=64, k=128)
    packed = case.make().pack()[0].cuda()
    x = torch.zeros(3, 128, dtype=torch.bfloat16, device="cuda")
    with pytest.raises(RuntimeError, match=r"humming::gemm: no CUDA instance in this build.*int6 weights x bfloat16"):
        ops.gemm(x, None, packed, None, None, case.desc)
    with pytest.raises(RuntimeError, match="humming::gemm: x has shape"):
        ops.gemm(x[:, :64].contiguous(), None, packed, None, None, case.desc)
    with pytest.raises(RuntimeError, match="humming::gemm: packed is on cpu"):
        ops.gemm(x, None, packed.cpu(), None, None, case.desc)
    assert ops.gemm(x[:0], None, packed, None, None, case.desc).shape == (0, 64)


def test_the_build_lists_its_products() -> None:
    names = {entry["name"] for entry in json.loads(ops.build_info())["instances"]}
    assert any(name.startswith("gemm_sm90_") for name in names) == ("90a" in humming_ext.build_info()["cuda_archs"])
