#!/usr/bin/env python3
"""Builds a program that checks and times variants of the Hopper GEMM kernels without torch, in seconds.

The rows of a TOML file are instances in the form of csrc/instances/manifest.toml, whose families and tiles they may
use:

    [[row]]
    family = "gemm_sm90"
    operand = "bf16"
    ...
    tile = ["m8", "m16"]

Columns that are worth trying but have no tile yet are written out. What the program prints: main.cu.
"""

import argparse
import concurrent.futures
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "cmake")]

import generate_instances as generate  # noqa: E402

DEFAULTS = {"archs": ["90a"], "preset": "full", "why": "an experiment", "measured": "", "token_groups": False}
FLAGS = [
    "-std=c++17",
    "-O3",
    "-gencode=arch=compute_90a,code=sm_90a",
    "--expt-relaxed-constexpr",
    "--fmad=false",
    "-Xptxas=-v",
]


def instances_of(path: pathlib.Path) -> tuple[dict[str, generate.Family], list[generate.Instance]]:
    """The families of the manifest, and the instances of `path` beside what reads packed weights back."""
    manifest = generate.tomllib.loads((ROOT / "csrc/instances/manifest.toml").read_text())
    rows = [DEFAULTS | row for row in generate.tomllib.loads(path.read_text())["row"]]
    manifest["row"] = rows + [row for row in manifest["row"] if row["family"] == "decode"]
    families = generate.read_families(manifest)
    return families, generate.select_instances(manifest, families, "full", ["90a"])


def compile_all(commands: list[list[str]], jobs: int) -> str:
    """Runs compilers side by side. Returns what they print; stops with it where one fails."""

    def run(command: list[str]) -> str:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}")
        return done.stdout

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return "".join(pool.map(run, commands))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=pathlib.Path, help="the TOML file")
    parser.add_argument("out", type=pathlib.Path, help="folder of the program, `variants`, and of what it is made from")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default %(default)s)")
    args = parser.parse_args()

    families, instances = instances_of(args.rows)
    out, generated = args.out.resolve(), args.out.resolve() / "generated"
    run = [sys.executable, "-B"]
    for folder in ("instances", "formats", "mainloop"):
        (generated / folder).mkdir(parents=True, exist_ok=True)
    formats = ["--toml", "formats.toml", "--header", str(generated / "formats/formats_generated.h")]
    subprocess.run(
        [*run, "generate.py", *formats, "--python", str(generated / "_formats.py")],
        cwd=ROOT / "csrc/formats",
        check=True,
    )
    subprocess.run(
        [*run, str(ROOT / "cmake/generate_wgmma.py"), str(generated / "mainloop/wgmma_generated.h")], check=True
    )
    sources = {"instances/instances_generated.h": generate.generated_header(families)}
    sources["instances/instances_table.cpp"] = generate.table_source(
        families, instances, "full", ["90a"], launchers=True
    )
    for index in range(args.jobs):
        part = instances[index :: args.jobs]
        if part:
            sources[f"instances/part{index}.cu"] = generate.kernel_source(part)
    for name, text in sources.items():
        generate.write_if_changed(generated / name, text)

    code = [generated / name for name in sources if not name.endswith(".h")]
    code += [ROOT / "benchmarks/variants/main.cu"]
    code += [
        ROOT / "csrc" / name
        for name in (
            "select/gemm_sm90.cpp",
            "select/moe_gemm_sm90.cpp",
            "select/moe_problem.cpp",
            "select/candidate.cpp",
            "layout/weight_desc.cpp",
            "kernel/tensor_map.cpp",
        )
    ]
    objects = [out / f"{path.stem}.o" for path in code]
    nvcc = ["nvcc", *FLAGS, "-I", str(ROOT / "csrc"), "-I", str(generated)]
    log = compile_all(
        [[*nvcc, "-c", str(path), "-o", str(object)] for path, object in zip(code, objects, strict=True)], args.jobs
    )
    compile_all([["nvcc", FLAGS[2], *map(str, objects), "-o", str(out / "variants")]], 1)
    for line in log.splitlines():
        if "C75" in line or ("spill" in line and " 0 bytes spill stores" not in line):
            print(line.strip())
    print(out / "variants")
    return 0


if __name__ == "__main__":
    sys.exit(main())
