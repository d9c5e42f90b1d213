"""The machine code of the build's kernels for Ampere and Ada, where there is no GPU to run them: the tensor core's own
instruction for every operand, and no local memory."""

import importlib.util
import re
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

import humming_ext
import pytest

ARCHS = ("80", "89")
MULTIPLY = {
    "bf16": "HMMA.16816.F32.BF16",
    "fp16": "HMMA.16816.F32",
    "s8": "IMMA.16832.S8.S8",
    "s4": "IMMA.16864.S4.S4",
    "e4m3": "QMMA.16832.F32.E4M3.E4M3",
}
OPERANDS = {"80": {"bf16", "fp16", "s8", "s4"}, "89": set(MULTIPLY)}


@cache
def kernels(arch: str) -> dict[str, tuple[str, set[str]]]:
    """Of every kernel of gemm_sm80 and moe_gemm_sm80 for `arch`, by its mangled name: its operand, its instructions."""
    if arch not in humming_ext.build_info()["cuda_archs"]:
        pytest.skip(f"the build holds no code for sm_{arch}")
    packaged = Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/cuobjdump")
    cuobjdump = shutil.which("cuobjdump") or next(map(str, packaged), None)
    if cuobjdump is None:
        pytest.skip("there is no cuobjdump; requirements-ci.txt has it")
    library = importlib.util.find_spec("humming_ext._C").origin
    command = [cuobjdump, "-sass", "-arch", f"sm_{arch}", library]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {}
    for function in text.split("Function : ")[1:]:
        name, _, code = function.partition("\n")
        # The mangled name holds that of the Config, which begins with the family, perhaps Moe..., and the operand.
        if match := re.search(r"GemmSm80(Bf16|Fp16|E4m3|S8|S4)", name):
            instructions = set(
                re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d\s+)?([A-Z][A-Z0-9_.]*)", code, re.MULTILINE)
            )
            found[name] = match[1].lower(), instructions
    return found


@pytest.mark.parametrize("arch", ARCHS)
def test_every_instance_has_its_code(arch: str) -> None:
    instances = [entry for entry in humming_ext.build_info()["instances"] if "gemm_sm80_" in entry["name"]]
    assert len(kernels(arch)) == sum(entry["arch"] == int(arch) for entry in instances)
    assert {operand for operand, _ in kernels(arch).values()} == OPERANDS[arch]


@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_multiply_in_the_type_of_their_operand(arch: str) -> None:
    for name, (operand, instructions) in kernels(arch).items():
        multiplied = {i for i in instructions if re.match(r"[A-Z]MMA\.", i)}
        assert multiplied == {MULTIPLY[operand]}, name


@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_copy_past_the_registers_and_keep_nothing_in_local_memory(arch: str) -> None:
    for name, (_, instructions) in kernels(arch).items():
        opcodes = {i.partition(".")[0] for i in instructions}
        assert {"LDGSTS", "LDSM"} <= opcodes, name
        assert not {"LDL", "STL", "LD", "ST"} & opcodes, name  # nor generic loads, which do not know where they go
