"""The CUDA ops in torch's world: streams, graphs, devices, threads, no synchronisation, no allocation, errors."""

import importlib.metadata
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import humming_ext
import pytest
import torch
from both import Call, moved, ops
from support import WeightCase, assert_bits_equal

WEIGHT = WeightCase("e2m1", "e4m3", "e8m0", 32, n=200, k=520)
DECODED = WeightCase("uint4", "bf16", "bf16", 64, "integer", n=200, k=520)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _reduce(seed: int) -> Call:
    ids = torch.randint(-1, 8, (300, 4), generator=generator(seed))
    valid = torch.tensor([250 + seed], dtype=torch.int32)
    y = torch.randn(300, 4, 520, generator=generator(seed)).bfloat16()
    return Call("moe_reduce", (y, torch.rand(300, 4, generator=generator(seed)), ids, valid, 1.5, y[:, 0].contiguous()))


def _align(seed: int) -> Call:
    ids = torch.randint(-1, 64, (3000, 2), generator=generator(seed), dtype=torch.int32)
    return Call("moe_align", (ids, 64, 16, None))


# Every op with inputs that depend on the seed but have one shape.
CALLS: dict[str, Callable[[int], Call]] = {
    "prepack": lambda seed: Call("prepack", WEIGHT.make(seed).prepack_args()),
    "decode_packed": lambda seed: Call(
        "decode_packed", (DECODED.make(seed).pack()[0], torch.rand(200, generator=generator(seed)), DECODED.desc)
    ),
    "quantize_activation": lambda seed: Call(
        "quantize_activation",
        (torch.randn(300, 1040, generator=generator(seed)).bfloat16(), torch.float8_e4m3fn, 128),
        {"activation": "silu", "activation_args": [3.0]},
    ),
    "quantize_activation-many-rows": lambda seed: Call(
        "quantize_activation",
        (torch.randn(513, 2056, generator=generator(seed)).bfloat16(), torch.float8_e4m3fn, 0),
    ),
    "quantize_activation-static": lambda seed: Call(
        "quantize_activation",
        (torch.randn(300, 520, generator=generator(seed)), torch.int8, 0),
        {"static_scale": torch.tensor([0.01 + seed])},
    ),
    "moe_align": _align,
    "moe_reduce": _reduce,
}


def tensors(args: tuple, kwargs: dict) -> list[torch.Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]


def launch(call: Call, args: tuple, kwargs: dict, outputs: dict[str, torch.Tensor]) -> None:
    getattr(ops, call.op).out(*args, **kwargs, **outputs)


@pytest.mark.parametrize("name", CALLS)
def test_results_on_a_side_stream_wait_for_their_inputs(name: str) -> None:
    """The inputs arrive on that stream behind a long kernel; an op on another stream would read the zeros before."""
    call = CALLS[name](1)
    args, kwargs = call.on("cuda")
    outputs = call.outputs("cuda")
    originals = [value.clone() for value in tensors(args, kwargs)]
    for value in tensors(args, kwargs):
        value.view(torch.uint8).zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for value, original in zip(tensors(args, kwargs), originals, strict=True):
            value.view(torch.uint8).copy_(original.view(torch.uint8))
        launch(call, args, kwargs, outputs)
    stream.synchronize()
    call.check(outputs)


@pytest.mark.parametrize("name", CALLS)
def test_graphs_replay_with_new_data(name: str) -> None:
    first = CALLS[name](1)
    args, kwargs = first.on("cuda")
    outputs = first.outputs("cuda")
    launch(first, args, kwargs, outputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(first, args, kwargs, outputs)
    for seed in (2, 3, 1):
        call = CALLS[name](seed)
        new_args, new_kwargs = call.on("cuda")
        for old, new in zip(tensors(args, kwargs), tensors(new_args, new_kwargs), strict=True):
            old.view(torch.uint8).copy_(new.view(torch.uint8))
        for output in outputs.values():
            output.view(torch.uint8).fill_(0xFF)
        graph.replay()
        call.check(outputs, f"replay with seed {seed}")


CAPTURE_FIRST = """
import sys
sys.path[:0] = sys.argv[1:]
import test_gpu_torch, torch
for name, make in test_gpu_torch.CALLS.items():
    call = make(1)
    args, kwargs = call.on("cuda")
    outputs = call.outputs("cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        test_gpu_torch.launch(call, args, kwargs, outputs)
    graph.replay()
    call.check(outputs, "first call in a capture")
"""


def test_the_first_call_of_a_process_may_be_captured(request: pytest.FixtureRequest) -> None:
    """And the driver compiles nothing for it: the build has machine code for this GPU."""
    tests = request.path.parent.parent
    command = [sys.executable, "-c", CAPTURE_FIRST, str(tests / "gpu"), str(tests)]
    environment = {**os.environ, "CUDA_DISABLE_PTX_JIT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", CALLS)
def test_a_hundred_runs_give_the_same_bits(name: str) -> None:
    call = CALLS[name](1)
    args, kwargs = call.on("cuda")
    outputs = call.outputs("cuda")
    launch(call, args, kwargs, outputs)
    reference = {key: value.clone() for key, value in outputs.items()}
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(100):
        for value in outputs.values():
            value.view(torch.uint8).fill_(0xFF)
        launch(call, args, kwargs, outputs)
        for key, value in outputs.items():
            differing += (value.view(torch.uint8) != reference[key].view(torch.uint8)).sum()
    assert differing.item() == 0
    call.check(outputs)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_synchronises_or_allocates(name: str) -> None:
    call = CALLS[name](1)
    args, kwargs = call.on("cuda")
    outputs = call.outputs("cuda")
    launch(call, args, kwargs, outputs)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        launch(call, args, kwargs, outputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    call.check(outputs)


@pytest.mark.parametrize("name", CALLS)
def test_another_thread(name: str) -> None:
    call = CALLS[name](1)
    outputs = call.outputs("cuda")
    thread = threading.Thread(target=call.run, args=("cuda", outputs))
    thread.start()
    thread.join()
    call.check(outputs)


@pytest.mark.parametrize("name", CALLS)
def test_the_device_of_the_tensors_is_used(name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    call = CALLS[name](1)
    outputs = call.outputs("cuda:1")
    with torch.cuda.device(0):
        call.run("cuda:1", outputs)
        assert torch.cuda.current_device() == 0
    call.check(outputs)


def functional(call: Call) -> tuple[tuple, dict]:
    return tuple(moved(arg, "cuda") for arg in call.args), {k: moved(v, "cuda") for k, v in call.kwargs.items()}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    call = CALLS[name](1)
    if call.op == "prepack":  # opcheck compares inputs with allclose, which torch has not for e8m0
        call.args = (*call.args[:2], call.args[2].view(torch.uint8), *call.args[3:])
    args, kwargs = functional(call)
    torch.library.opcheck(getattr(ops, call.op).default, args, kwargs)


@pytest.mark.parametrize("name", CALLS)
def test_compile_as_one_graph(name: str) -> None:
    call = CALLS[name](1)
    args, kwargs = functional(call)
    torch.compiler.reset()
    compiled = torch.compile(getattr(ops, call.op), fullgraph=True, backend="aot_eager")
    results = compiled(*args, **kwargs)
    call.check(dict(zip(call.expected, results if isinstance(results, tuple) else (results,), strict=True)))


@pytest.mark.parametrize("name", CALLS)
def test_tensors_of_other_devices_are_named(name: str) -> None:
    """One argument at a time stays on the CPU."""
    call = CALLS[name](1)
    args, kwargs = call.on("cuda")
    outputs = call.outputs("cuda")
    first = next(i for i, value in enumerate(args) if isinstance(value, torch.Tensor))
    for i, value in enumerate(args):
        if i != first and isinstance(value, torch.Tensor):
            with pytest.raises(RuntimeError, match=rf"humming::{call.op}: .* is on cpu, but .* is on cuda:0"):
                launch(call, (*args[:i], value.cpu(), *args[i + 1 :]), kwargs, outputs)
    for key, value in {**kwargs, **outputs}.items():
        if isinstance(value, torch.Tensor) and value.numel():
            changed = {**kwargs, **outputs, key: value.cpu()}
            with pytest.raises(RuntimeError, match=rf"humming::{call.op}: {key} is on cpu, but .* is on cuda:0"):
                getattr(ops, call.op).out(*args, **changed)


def test_blocks_that_are_not_aligned_are_refused() -> None:
    call = CALLS["moe_align"](1)
    args, kwargs = call.on("cuda")
    outputs = call.outputs("cuda")
    rows = outputs["blocks"].shape[0]
    outputs["blocks"] = torch.empty(4 * rows + 1, dtype=torch.int32, device="cuda")[1:].view(rows, 4)
    with pytest.raises(RuntimeError, match=r"blocks.*align"):
        launch(call, args, kwargs, outputs)


def test_mixtures_name_the_missing_instance() -> None:
    """A clear error, after the arguments were checked."""
    x = torch.zeros(3, 128, dtype=torch.int8, device="cuda")
    groups = torch.ones(3, 4, device="cuda")  # of 32 columns, in fp32: no kernel takes such scales
    experts = WeightCase("int6", n=64, k=128, experts=2)
    packed = experts.make().pack()[0].cuda()
    offsets = torch.tensor([0, 1, 3], dtype=torch.int32, device="cuda")
    rest = ("contiguous", None, None, None, offsets, None, None, 1)
    with pytest.raises(RuntimeError, match="humming::moe_gemm: no CUDA instance in this build"):
        ops.moe_gemm(x, groups, packed, None, None, experts.desc, *rest)


def test_packed_weights_move_between_devices(tmp_path) -> None:
    codes = torch.randint(0, 16, (72, 192), dtype=torch.uint8)
    scale = torch.rand(72, 3).bfloat16()
    spec = humming_ext.QuantSpec(humming_ext.WeightFormat.int4, group=64, scale_dtype=torch.bfloat16)
    cpu = humming_ext.PackedWeight.pack(codes, scale, spec=spec)
    gpu = humming_ext.PackedWeight.pack(codes, scale, spec=spec, device="cuda")
    assert gpu.device.type == "cuda"
    assert_bits_equal(gpu.packed.cpu(), cpu.packed)
    assert_bits_equal(gpu.dequantize().cpu(), cpu.dequantize())
    assert_bits_equal(cpu.to("cuda").to("cpu").packed, cpu.packed)


def test_packing_memory_does_not_grow_with_the_experts() -> None:
    """Experts are packed one by one: what the peak adds to the result is the same for 4 and for 16 of them."""
    n, k = 1024, 2048
    spec = humming_ext.QuantSpec(humming_ext.WeightFormat.int4, group=64, scale_dtype=torch.bfloat16)

    def extra(experts: int) -> int:
        codes = torch.randint(0, 16, (experts, n, k), dtype=torch.uint8)
        scale = torch.rand(experts, n, k // 64).bfloat16()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        weight = humming_ext.PackedWeight.pack(codes, scale, spec=spec, device="cuda")
        return torch.cuda.max_memory_allocated() - before - weight.nbytes

    assert extra(16) < extra(4) + n * k  # less than the codes of one expert more


def test_one_row_has_no_stride() -> None:
    """A row of an odd number of columns that begins where kernels want it is not copied, whatever its stride."""
    codes, scale = torch.randint(0, 16, (72, 541), dtype=torch.uint8), torch.rand(72, 5).bfloat16()
    spec = humming_ext.QuantSpec(humming_ext.WeightFormat.int4, group=128, scale_dtype=torch.bfloat16)
    weight = humming_ext.PackedWeight.pack(codes, scale, spec=spec)
    x = torch.randn(3, 544).bfloat16()[:1, :541]
    exact = x.double() @ weight.dequantize().double().T
    y = ops.gemm(x.cuda().as_strided((1, 541), (544, 1)), None, weight.packed.cuda(), None, None, weight.desc)
    assert float((y.cpu().double() - exact).abs().max()) < 2**-7 * float(exact.abs().max())


@pytest.mark.parametrize("zero", [humming_ext.ZeroKind.none, humming_ext.ZeroKind.integer])
@pytest.mark.parametrize(("n", "k"), [(96, 200), (128, 256), (192, 384)])
def test_pinned_weights_are_packed_in_place(n: int, k: int, zero: humming_ext.ZeroKind) -> None:
    """Codes that the kernel reads from the host, and scales for several experts at a time, give the same bytes."""
    experts = 7
    has_zero = zero == humming_ext.ZeroKind.integer
    weight_format = humming_ext.WeightFormat.uint4 if has_zero else humming_ext.WeightFormat.int4
    spec = humming_ext.QuantSpec(weight_format, group=32, scale_dtype=torch.bfloat16, zero=zero, gate_up=True)
    rows, groups = (experts, n), -(-k // 32)
    codes = torch.randint(0, 256, (*rows, -(-k // 2)), dtype=torch.uint8).pin_memory()
    scale = torch.rand(*rows, groups).bfloat16().pin_memory()
    zeros = torch.randint(0, 16, (*rows, groups), dtype=torch.uint8).pin_memory() if has_zero else None
    arguments = {"spec": spec, "k": k, "code_bits": 4}
    cpu = humming_ext.PackedWeight.pack(codes, scale, zeros, **arguments)
    gpu = humming_ext.PackedWeight.pack(codes, scale, zeros, **arguments, device="cuda")
    assert_bits_equal(gpu.packed.cpu(), cpu.packed)


def test_pinned_weights_take_less_than_one_expert() -> None:
    """What packing takes beside the result, of weights that it reads in place."""
    experts, n, k = 24, 1024, 2048
    spec = humming_ext.QuantSpec(
        humming_ext.WeightFormat.e2m1, group=32, scale_dtype=torch.float8_e8m0fnu, operand=humming_ext.Operand.e4m3
    )
    codes = torch.randint(0, 256, (experts, n, k // 2), dtype=torch.uint8).pin_memory()
    scale = torch.full((experts, n, k // 32), 120, dtype=torch.uint8).pin_memory()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    weight = humming_ext.PackedWeight.pack(codes, scale, spec=spec, k=k, code_bits=4, device="cuda")
    assert torch.cuda.max_memory_allocated() - before - weight.nbytes < (codes.nbytes + scale.nbytes) // experts


BESIDE = """
import sys, importlib, torch
for name in sys.argv[1:]:
    importlib.import_module(name)
ids = torch.tensor([[0, 1], [1, 2]], dtype=torch.int32)
expected = torch.ops.humming.moe_align(ids, 4, 2, None)
for a, b in zip(torch.ops.humming.moe_align(ids.cuda(), 4, 2, None), expected):
    assert torch.equal(a.cpu(), b)
"""


@pytest.mark.parametrize("order", [("humming_ext", "humming"), ("humming", "humming_ext")], ids="-then-".join)
def test_import_beside_humming_kernels(order: tuple[str, str]) -> None:
    """Both register ops in the namespace `humming`."""
    try:
        importlib.metadata.version("humming-kernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("humming-kernels is not installed")
    done = subprocess.run([sys.executable, "-c", BESIDE, *order], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
