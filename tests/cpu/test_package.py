"""The Python surface: packed weights, layers, plans, files, and life beside other packages."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import humming_ext as he
import numpy as np
import pytest
import torch
from humming_ext._explain import instance_plans
from oracle.activations import quantise, quantised_values
from oracle.formats import FORMATS, finite_codes, value_table
from oracle.matmul import gemm
from oracle.rounding import ROUND
from oracle.weights import decode, dequantise, pack_bitstream
from support import OPERANDS, SCALE_TYPES, ZERO_KINDS, array, assert_as_accurate, assert_bits_equal

ops = torch.ops.humming


def run_python(code: str, *arguments: str) -> str:
    """Standard output of a fresh interpreter; fails with its errors."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- enumerations ---------------------------------------------------------------------------------------------------


def test_formats_equal_the_oracles_table() -> None:
    assert {fmt.name: int(fmt) for fmt in he.WeightFormat} == {name: fmt.id for name, fmt in FORMATS.items()}
    for fmt in he.WeightFormat:
        for field in ("kind", "bits", "exponent_bits", "mantissa_bits"):
            assert getattr(fmt, field) == getattr(FORMATS[fmt.name], field)


@pytest.mark.parametrize(
    ("enum", "numbers"), [(he.Operand, OPERANDS), (he.ScaleType, SCALE_TYPES), (he.ZeroKind, ZERO_KINDS)]
)
def test_stored_numbers_never_change(enum, numbers: dict[str, int]) -> None:
    assert {member.name: int(member) for member in enum} == numbers


def test_build_info() -> None:
    info = he.build_info()
    assert info["version"] == he.__version__ == importlib.metadata.version("humming_ext")
    assert info["layout_version"] == 4
    assert info["cpu_isa"] in ("x86-64-v4", "x86-64-v3", "baseline")
    assert isinstance(info["instances"], list) and isinstance(info["cuda_archs"], list)
    assert info == json.loads(ops.build_info())


# ---- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "operand", "words"),
    [
        (torch.bfloat16, "bf16", "fp32 sums"),
        (torch.float16, "fp16", "fp32 sums"),
        (torch.float8_e4m3fn, "e4m3", "fp32 sums"),
        (torch.float8_e5m2, "bf16", "widened"),
        (torch.int8, "s8", "int32"),
        (torch.uint8, "s8", "widened"),
    ],
)
def test_plans_name_the_operand_and_the_accumulation(dtype: torch.dtype, operand: str, words: str) -> None:
    spec = he.QuantSpec(he.WeightFormat.int4, scale_dtype=torch.float32).for_activation(dtype, widen=True)
    assert spec.operand.name == operand
    plan = he.explain(spec.desc(128, 256), dtype, tokens=5)
    assert f"operand {operand}" in plan and words in plan and "5 tokens" in plan
    assert plan.count("\n") == 0


def test_tokens_that_gpus_widen_need_room() -> None:
    """Rows of the operand's type, which begin at multiples of 128 bytes."""
    wide, s8 = (he.QuantSpec(he.WeightFormat.int4, operand=o).desc(64, 100) for o in (he.Operand.bf16, he.Operand.s8))
    room = torch.ops.humming.widened_bytes
    assert [room(wide, dtype, 3) for dtype in (torch.int8, torch.uint8, torch.float8_e5m2)] == [3 * 256] * 3
    assert room(s8, torch.uint8, 3) == 3 * 128
    assert room(wide, torch.bfloat16, 3) == room(s8, torch.int8, 3) == room(s8, torch.bfloat16, 3) == 0


def test_plans_of_gpus_name_the_instance_or_say_that_there_is_none() -> None:
    desc = he.QuantSpec(he.WeightFormat.int4, group=128, scale_dtype=torch.bfloat16).desc(128, 128)
    # Plans are made for the first GPU here, or for Hopper where there is none.
    capability = torch.cuda.get_device_capability(0) if torch.cuda.is_available() else (9, 0)
    hopper = "90a" in he.build_info()["cuda_archs"] and capability == (9, 0)
    wanted = "CUDA instance gemm_sm90_bf16_int4" if hopper else "no instance"
    assert wanted in he.explain(desc, torch.bfloat16, cuda=True)
    mixture = he.QuantSpec(he.WeightFormat.int4).desc(128, 128, 4)
    wanted = "CUDA instance gemm_any_bf16_" if hopper else "no instance"
    assert wanted in he.explain(mixture, torch.bfloat16, cuda=True)
    s4 = he.QuantSpec(he.WeightFormat.int4, operand=he.Operand.s4).desc(128, 128, 4)  # no GPU has mixtures in s4
    assert "no instance" in he.explain(s4, torch.uint8, cuda=True)
    with pytest.raises(RuntimeError, match="x has dtype float32"):
        he.explain(desc, torch.float32)
    with pytest.raises(RuntimeError, match="tokens = 0"):
        he.explain(desc, torch.bfloat16, 0)


def test_instance_plans_are_those_of_every_gemm_instance_of_the_build() -> None:
    desc = he.QuantSpec(he.WeightFormat.int4, group=128, scale_dtype=torch.bfloat16).desc(128, 128)
    plans = instance_plans(desc, torch.bfloat16, 4)
    names = [instance["name"] for instance in he.build_info()["instances"]]
    assert [plan.name for plan in plans] == [name for name in names if name.startswith("gemm_")]
    assert all((plan.rejection is None) == (plan.estimate is not None) for plan in plans)
    first = he.explain(desc, torch.bfloat16, 4, cuda=True).splitlines()[0]
    chosen = [plan for plan in plans if plan.chosen]
    assert [first.endswith(f"CUDA instance {plan.name}") for plan in chosen] == [True] * ("no instance" not in first)
    assert instance_plans(desc, torch.bfloat16, 4, cuda=False) == []
    with pytest.raises(RuntimeError, match="tokens = 0"):
        instance_plans(desc, torch.bfloat16, 0)


def test_widening_is_asked_for() -> None:
    spec = he.QuantSpec(he.WeightFormat.e2m1, group=16, scale_dtype=torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="widen=True"):
        spec.for_activation(torch.float8_e4m3fn)
    assert spec.for_activation(torch.float8_e4m3fn, widen=True).operand == he.Operand.bf16


# ---- PackedWeight ---------------------------------------------------------------------------------------------------


def random_codes(name: str, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(finite_codes(name), shape)


@pytest.mark.parametrize(
    ("group", "block_rows", "scale_shape"),
    [
        (0, 0, (1,)),  # tensor
        (0, 1, (96, 1)),  # channel
        (0, 32, (3, 1)),
        (128, 128, (1, 3)),  # blocks
        (32, 32, (3, 10)),
        (64, 1, (96, 5)),
        (48, 1, (96, 7)),  # packed as groups of 16
        (256, 1, (96, 2)),  # packed as groups of 128
        (320, 1, (96, 1)),  # packed as groups of 64
    ],
)
def test_every_granularity_of_scales(group: int, block_rows: int, scale_shape: tuple[int, ...]) -> None:
    codes = random_codes("e4m3", 96, 320)
    scale = np.random.default_rng(1).uniform(0.5, 2, scale_shape).astype(np.float32)
    spec = he.QuantSpec(he.WeightFormat.e4m3, group=group, block_rows=block_rows, scale_dtype=torch.float32)
    weight = he.PackedWeight.pack(torch.from_numpy(codes), torch.from_numpy(scale), spec=spec)
    rows = np.arange(96) // block_rows if block_rows else np.zeros(96, int)
    columns = np.arange(320) // group if group else np.zeros(320, int)
    expected = value_table("e4m3")[codes].astype(np.float32) * scale.reshape(rows[-1] + 1, -1)[rows][:, columns]
    assert_bits_equal(weight.dequantize(), torch.from_numpy(expected))
    assert_bits_equal(weight.codes(), torch.from_numpy(codes))
    assert tuple(weight.shape) == (96, 320)


def test_float8_tensors_are_codes() -> None:
    values = torch.randn(64, 128).to(torch.float8_e4m3fn)
    weight = he.PackedWeight.pack(values, spec=he.QuantSpec(he.WeightFormat.e4m3))
    assert_bits_equal(weight.dequantize(), values.float())


def test_bitstreams_need_k() -> None:
    codes = random_codes("int3", 40, 72)
    stream = torch.from_numpy(pack_bitstream(codes, 3))
    spec = he.QuantSpec(he.WeightFormat.int3)
    assert_bits_equal(he.PackedWeight.pack(stream, spec=spec, code_bits=3, k=72).codes(), torch.from_numpy(codes))
    with pytest.raises(ValueError, match="k: required"):
        he.PackedWeight.pack(stream, spec=spec, code_bits=3)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("as_list", [False, True])
def test_experts_pack_like_their_parts(interleaved: bool, as_list: bool) -> None:
    codes = torch.from_numpy(random_codes("e2m1", 3, 80, 160))
    exponents = np.random.default_rng(2).integers(120, 128, (3, 80, 5)).astype(np.uint8)
    scale = torch.from_numpy(exponents)
    spec = he.QuantSpec(
        he.WeightFormat.e2m1, group=32, scale_dtype=torch.float8_e8m0fnu, operand=he.Operand.e4m3, gate_up=True
    )
    given = (list(codes), list(scale)) if as_list else (codes, scale)
    together = he.PackedWeight.pack(*given, spec=spec, interleaved=interleaved)
    values = together.dequantize()
    order = np.r_[0:80:2, 1:80:2] if interleaved else np.arange(80)
    expected = decode(codes.numpy(), "e2m1", scale=np.exp2(exponents.astype(float) - 127), group=32)[:, order]
    assert_bits_equal(values, torch.from_numpy(np.ascontiguousarray(expected)))
    for expert in range(3):
        one = he.PackedWeight.pack(codes[expert], scale[expert], spec=spec, interleaved=interleaved)
        assert_bits_equal(together.packed[expert], one.packed)
        assert_bits_equal(together.scale2[expert], one.scale2)


class Loaded(Sequence):
    """Copies of parts of a tensor, made when they are asked for; the one before must be gone by then."""

    def __init__(self, parts: torch.Tensor) -> None:
        self.parts, self.last = parts, lambda: None

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> torch.Tensor:
        assert self.last() is None, f"the part before {index} is still held"
        tensor = self.parts[index].clone()
        self.last = weakref.ref(tensor)
        return tensor


def test_packing_holds_one_expert_of_the_source() -> None:
    """vllm took 20 GiB more than the weights to convert mxfp4, and a repacker of experts all of a host's memory."""
    codes, scale = torch.from_numpy(random_codes("int4", 5, 40, 64)), torch.rand(5, 40, 2).bfloat16()
    spec = he.QuantSpec(he.WeightFormat.int4, group=32, scale_dtype=torch.bfloat16)
    weight = he.PackedWeight.pack(Loaded(codes), Loaded(scale), spec=spec)
    assert_bits_equal(weight.packed, he.PackedWeight.pack(codes, scale, spec=spec).packed)


@pytest.mark.parametrize(("inner", "rows"), [(288, 576), (289, 640), (320, 640)])
def test_gate_and_up_are_padded_to_64_rows_together(inner: int, rows: int) -> None:
    """vllm#56697: 288 rows of an expert padded to 384 instead of 320 cost 7.8 GiB on every GPU."""
    spec = he.QuantSpec(he.WeightFormat.int4, gate_up=True)
    weight = he.PackedWeight.pack(torch.zeros(2, 2 * inner, 128, dtype=torch.uint8), spec=spec)
    assert weight.nbytes == 2 * rows * 128 // 2


def test_a_secondary_scale_multiplies_what_the_weight_has() -> None:
    codes = torch.from_numpy(random_codes("e2m1", 40, 64))
    scale = torch.from_numpy(np.random.default_rng(3).integers(0x30, 0x40, (40, 4)).astype(np.uint8)).view(
        torch.float8_e4m3fn
    )
    spec = he.QuantSpec(he.WeightFormat.e2m1, group=16, scale_dtype=torch.float8_e4m3fn)
    secondary = torch.tensor([0.37])
    weight = he.PackedWeight.pack(codes, scale, spec=spec, scale2=secondary)
    expected = decode(codes.numpy(), "e2m1", scale=array(scale), group=16, scale2=secondary.numpy())
    assert_bits_equal(weight.dequantize(), torch.from_numpy(expected))


def test_what_would_be_lost_is_an_error_until_allowed() -> None:
    codes = torch.from_numpy(random_codes("e2m1", 64, 64))
    exponents = torch.full((64, 2), 127, dtype=torch.uint8)
    exponents[5, 1] = 100
    spec = he.QuantSpec(he.WeightFormat.e2m1, group=32, scale_dtype=torch.float8_e8m0fnu, operand=he.Operand.e4m3)
    with pytest.raises(ValueError, match=r"1 scale groups.*bf16.*max_rounded=1"):
        he.PackedWeight.pack(codes, exponents, spec=spec)
    with pytest.warns(UserWarning, match="1 scale groups"):
        he.PackedWeight.pack(codes, exponents, spec=spec, max_rounded=1)
    broken = torch.full((8, 64), 0x7F, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"512 values.*e4m3"):
        he.PackedWeight.pack(broken, spec=he.QuantSpec(he.WeightFormat.e4m3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": None}, "scale: missing"),
        ({"zero": torch.zeros(64, 4, dtype=torch.uint8)}, "zero: given"),
        ({"scale": torch.ones(64, 3)}, "scale: shape"),
        ({"scale": torch.ones(64, 4).half()}, "scale: torch.float16"),
        ({"codes": torch.zeros(64, dtype=torch.uint8)}, "codes: shape"),
        ({"scale2": torch.ones(3)}, "scale2: "),
    ],
)
def test_tensors_that_do_not_fit_the_spec_are_named(changes: dict, message: str) -> None:
    spec = he.QuantSpec(he.WeightFormat.int4, group=32, scale_dtype=torch.float32)
    arguments = {"codes": torch.zeros(64, 128, dtype=torch.uint8), "scale": torch.ones(64, 4), **changes}
    with pytest.raises((ValueError, RuntimeError), match=message):
        he.PackedWeight.pack(**arguments, spec=spec)


@pytest.fixture(scope="module")
def int4_weight() -> he.PackedWeight:
    spec = he.QuantSpec(he.WeightFormat.int4, group=64, scale_dtype=torch.bfloat16)
    scale = torch.rand(72, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    return he.PackedWeight.pack(torch.from_numpy(random_codes("int4", 72, 192)), scale, spec=spec)


def test_a_wrong_pairing_is_an_error_and_no_noise(int4_weight: he.PackedWeight) -> None:
    other = he.QuantSpec(he.WeightFormat.int4, group=32, scale_dtype=torch.bfloat16).desc(72, 192)
    with pytest.raises(ValueError, match="packed: "):
        he.PackedWeight(int4_weight.packed, None, other)
    with pytest.raises(RuntimeError, match="packed has shape"):
        ops.gemm(torch.zeros(1, 192).bfloat16(), None, int4_weight.packed, None, None, other)
    with pytest.raises(RuntimeError, match="layout version 7"):
        he.PackedWeight(int4_weight.packed, None, [7, *int4_weight.desc[1:]])
    with pytest.raises(ValueError, match="scale2: "):
        he.PackedWeight(int4_weight.packed, torch.ones(71), int4_weight.desc)
    with pytest.raises(ValueError, match="desc: expected 10 integers"):
        he.PackedWeight(int4_weight.packed, None, int4_weight.desc[:5])


def test_files_keep_everything(int4_weight: he.PackedWeight, tmp_path) -> None:
    spec = he.QuantSpec(he.WeightFormat.int8, scale_dtype=torch.float32, operand=he.Operand.s8)
    int8 = he.PackedWeight.pack(torch.from_numpy(random_codes("int8", 2, 40, 64)), torch.rand(2, 40, 1), spec=spec)
    he.save_weights({"a.b": int4_weight, "c": int8}, tmp_path / "w.safetensors")
    loaded = he.load_weights(tmp_path / "w.safetensors")
    assert loaded.keys() == {"a.b", "c"}
    for name, weight in {"a.b": int4_weight, "c": int8}.items():
        assert loaded[name].desc == weight.desc
        assert_bits_equal(loaded[name].packed, weight.packed)
        assert_bits_equal(loaded[name].dequantize(), weight.dequantize())
    assert loaded["a.b"].scale2 is None
    assert_bits_equal(loaded["c"].scale2, int8.scale2)


def test_files_of_another_layout_version_are_refused(int4_weight: he.PackedWeight, tmp_path) -> None:
    from safetensors.torch import save_file

    state = int4_weight.state("w.")
    state["w.desc"] = state["w.desc"].clone()
    state["w.desc"][0] += 1
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(RuntimeError, match=r"layout version 5.*pack the weight again"):
        he.load_weights(tmp_path / "w.safetensors")


# ---- QuantLinear ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 5)])
def test_linear_layers_multiply(dtype: str, lead: tuple[int, ...]) -> None:
    operand = he.Operand[dtype]
    spec = he.QuantSpec(he.WeightFormat.int4, group=64, scale_dtype=torch.float32, operand=operand)
    codes, scale = (
        random_codes("int4", 72, 192),
        np.random.default_rng(5).uniform(0.01, 0.1, (72, 3)).astype(np.float32),
    )
    bias = torch.linspace(-1, 1, 72)
    layer = he.QuantLinear(he.PackedWeight.pack(torch.from_numpy(codes), torch.from_numpy(scale), spec=spec), bias)
    x = torch.randn(*lead, 192, generator=torch.Generator().manual_seed(1)).to(
        getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[dtype])
    )
    y = layer(x)
    assert tuple(y.shape) == (*lead, 72) and y.dtype == x.dtype
    weights = dequantise(codes, "int4", scale=scale, group=64)
    exact = gemm(array(x).reshape(-1, 192), weights, bias=array(bias))
    plain = x.reshape(-1, 192).float() @ torch.from_numpy(ROUND[dtype](weights)).float().T + bias
    assert_as_accurate(y.reshape(-1, 72), exact, plain.to(x.dtype))


@pytest.mark.parametrize("kind", ["e4m3", "int8", "int4", "e5m2"])
@pytest.mark.parametrize("group", [0, 128])
def test_linear_layers_quantise_their_input(kind: str, group: int) -> None:
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "int8": torch.int8, "int4": torch.uint8}[kind]
    spec = he.QuantSpec(he.WeightFormat.int4, scale_dtype=torch.float32).for_activation(dtype, group, widen=True)
    codes, scale = random_codes("int4", 72, 256), torch.full((72, 1), 0.05)
    layer = he.QuantLinear(
        he.PackedWeight.pack(torch.from_numpy(codes), scale, spec=spec), activation=dtype, activation_group=group
    )
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(2)).bfloat16()
    q, x_scale = quantise(x.float().numpy(), kind, group)
    numbers = quantised_values(q, kind) * np.repeat(x_scale, group or 256, axis=1)
    exact = gemm(numbers, dequantise(codes, "int4", scale2=scale.numpy()[:, 0]))
    plain = torch.from_numpy(numbers).float() @ torch.from_numpy(value_table("int4")[codes]).float().T * 0.05
    assert_as_accurate(layer(x), exact, plain.bfloat16())


def test_linear_layers_survive_casts_and_state_dicts(int4_weight: he.PackedWeight) -> None:
    spec = he.QuantSpec(he.WeightFormat.int8, scale_dtype=torch.float32)
    weight = he.PackedWeight.pack(torch.from_numpy(random_codes("int8", 72, 192)), torch.rand(72, 1), spec=spec)
    layer = he.QuantLinear(weight, torch.zeros(72))
    cast = layer.to(torch.bfloat16)
    assert cast.scale2.dtype == torch.float32 and cast.bias.dtype == torch.bfloat16
    assert_bits_equal(cast.weight.dequantize(), weight.dequantize())

    blank = he.QuantLinear(
        he.PackedWeight(torch.zeros_like(weight.packed), torch.ones(72), weight.desc), torch.ones(72)
    )
    blank.load_state_dict(layer.state_dict())
    assert_bits_equal(blank.weight.dequantize(), weight.dequantize())
    with pytest.raises(ValueError, match="desc"):
        he.QuantLinear(int4_weight, torch.zeros(72)).load_state_dict(layer.state_dict())


def test_linear_layers_name_what_does_not_fit(int4_weight: he.PackedWeight) -> None:
    with pytest.raises(ValueError, match="bias: shape"):
        he.QuantLinear(int4_weight, torch.zeros(71))
    spec = he.QuantSpec(he.WeightFormat.int8)
    experts = he.PackedWeight.pack(torch.from_numpy(random_codes("int8", 2, 40, 64)), spec=spec)
    with pytest.raises(ValueError, match=r"weight: .*experts"):
        he.QuantLinear(experts)


# ---- the process around us ------------------------------------------------------------------------------------------

BOTH = """
import sys, importlib, torch
for name in sys.argv[1:]:
    importlib.import_module(name)
import humming_ext
spec = humming_ext.QuantSpec(humming_ext.WeightFormat.int4)
weight = humming_ext.PackedWeight.pack(torch.full((64, 64), 9, dtype=torch.uint8), spec=spec)
x = torch.ones(2, 64, dtype=torch.bfloat16)
assert torch.ops.humming.gemm(x, None, weight.packed, None, None, weight.desc).eq(64).all()
assert torch.ops.humming.pack_weight.default  # an op of the other package
"""


@pytest.mark.parametrize("order", [("humming_ext", "humming"), ("humming", "humming_ext")], ids="-then-".join)
def test_import_beside_humming_kernels(order: tuple[str, str]) -> None:
    """Both register ops in the namespace `humming`."""
    try:
        importlib.metadata.version("humming-kernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("humming-kernels is not installed")
    run_python(BOTH, *order)


def test_importing_needs_no_optional_package_and_is_quiet() -> None:
    code = """
import sys
for name in ("gguf", "transformers", "triton"):
    sys.modules[name] = None
import humming_ext
"""
    assert run_python(code) == ""


ALONE = """
import os, sys, torch
sys.dont_write_bytecode = True
os.environ.clear()
acts = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.mkdir", "os.rename", "os.remove",
        "ctypes.dlopen", "socket.connect")

def watch(event, arguments):
    if event in acts or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        print(event, arguments)
    if event == "import" and arguments[0].partition(".")[0] in ("triton", "ninja", "pynvml", "cuda"):
        print(event, arguments[0])

sys.addaudithook(watch)
import humming_ext as hx

def experts(n, k, gate_up=False):
    spec = hx.QuantSpec(hx.WeightFormat.int4, gate_up=gate_up).for_activation(torch.int8)
    return hx.PackedWeight.pack(torch.full((2, n, k), 9, dtype=torch.uint8), spec=spec)

layer = hx.FusedMoE(experts(128, 64, gate_up=True), experts(64, 64), activation="relu2")
for tokens in (1, 5):
    x, ids = torch.ones(tokens, 64).bfloat16(), torch.zeros(tokens, 1, dtype=torch.int32)
    assert layer(x, torch.ones(tokens, 1), ids).isfinite().all()
"""


def test_a_process_starts_no_compiler_and_leaves_no_file() -> None:
    """vllm#29270, flashinfer#3654: images without compilers and machines without network; DeepGEMM#301: caches on a
    shared folder; vllm#49554: a crash in NVML; vllm#51661: a variable that workers did not get."""
    assert run_python(ALONE) == ""


def test_the_extension_needs_no_cpp_symbol_of_torch() -> None:
    """sglang#30562: c10::MessageLogger was not found after another torch was installed."""
    library = importlib.util.find_spec("humming_ext._C").origin
    symbols = Path(library).read_bytes()
    assert b"aoti_torch_library_def" in symbols  # the names of the stable ABI are there
    for namespace in (b"3c10", b"2at", b"5torch"):
        assert b"_ZN" + namespace not in symbols and b"_ZNK" + namespace not in symbols, namespace


def test_the_command_line_prints_facts() -> None:
    done = subprocess.run([sys.executable, "-m", "humming_ext", "info"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert he.__version__ in done.stdout and "e2m1" in done.stdout and he.build_info()["cpu_isa"] in done.stdout


def test_the_command_line_lists_a_file(int4_weight: he.PackedWeight, tmp_path) -> None:
    he.save_weights({"layer": int4_weight}, tmp_path / "w.safetensors")
    command = [sys.executable, "-m", "humming_ext", "inspect", str(tmp_path / "w.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "layer: PackedWeight(int4 [72, 192]" in done.stdout
