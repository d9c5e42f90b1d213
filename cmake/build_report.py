"""What each compiled kernel costs: registers, spills, stack, seconds and bytes, from the compiler's own output.

Reads OBJECT.log.json beside every object (compile_logged.py wrote it) and instances.json; writes build_report.json and
prints it as a table. A spill or a serialised wgmma fails the build unless the manifest row says `allow = "reason"`.

Of an instance with several kernels the largest registers and stack and the summed spills and bytes are given. Seconds
are those of the file divided by its instances: the compiler gives no others. Bytes are the machine code, uncompressed
(the wheel holds it compressed); they need cuobjdump, without which they are null.
"""

import argparse
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile

FUNCTION = re.compile(r"(?:function|Function properties for) '?([\w$.]+)")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
# "(C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ..." and its relatives
SERIALISED = re.compile(r"\(C751\d\)|wgmma.*serializ")


def parse_log(output: str) -> dict[str, dict]:
    """Per mangled kernel: registers, stack, spill_bytes and warnings."""
    kernels: dict[str, dict] = {}
    name = ""
    for line in output.splitlines():
        if match := FUNCTION.search(line):
            name = match[1]
        kernel = kernels.setdefault(name, {"registers": 0, "stack": 0, "spill_bytes": 0, "warnings": []})
        if match := STACK.search(line):
            kernel["stack"] = int(match[1])
            kernel["spill_bytes"] = int(match[2]) + int(match[3])
        if match := REGISTERS.search(line):
            kernel["registers"] = int(match[1])
        if SERIALISED.search(line):
            kernel["warnings"].append(line.strip())
    return kernels


def text_sections(elf: bytes) -> dict[str, int]:
    """Bytes of every .text.<kernel> section of a 64-bit little-endian ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_bytes, num_sections, names_idx = struct.unpack_from("<HHH", elf, 0x3A)

    def section(idx: int) -> tuple[int, int, int]:
        name, _, _, _, offset, size = struct.unpack_from("<IIQQQQ", elf, table + idx * entry_bytes)
        return name, offset, size

    names = section(names_idx)[1]
    sizes = {}
    for idx in range(num_sections):
        name, _, size = section(idx)
        text = elf[names + name : elf.index(b"\0", names + name)].decode()
        if text.startswith(".text."):
            sizes[text.removeprefix(".text.")] = size
    return sizes


def find_cuobjdump() -> str | None:
    packaged = pathlib.Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/cuobjdump")
    return shutil.which("cuobjdump") or next(map(str, packaged), None)


def kernel_bytes(cuobjdump: str | None, target: pathlib.Path) -> dict[str, int] | None:
    if cuobjdump is None:
        return None
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([cuobjdump, "-xelf", "all", str(target.resolve())], cwd=folder, check=True, capture_output=True)
        for cubin in pathlib.Path(folder).iterdir():
            sizes |= text_sections(cubin.read_bytes())
    return sizes


def report_file(target: pathlib.Path, instances: list[dict], cuobjdump: str | None) -> list[dict]:
    """The report rows of one object file and its instances."""
    log = json.loads(pathlib.Path(f"{target}.log.json").read_text())
    kernels = parse_log(log["output"])
    sizes = kernel_bytes(cuobjdump, target)
    # The mangled name of a kernel holds its Config as <length>sm<arch><length><config>E.
    mangled = [re.compile(rf"\dsm{i['arch']}{len(i['config'])}{i['config']}E") for i in instances]
    # What names no instance, such as a function that was not inlined, counts for every one.
    shared = [kernel for name, kernel in kernels.items() if not any(pattern.search(name) for pattern in mangled)]
    rows = []
    for instance, pattern in zip(instances, mangled, strict=True):
        own = [kernel for name, kernel in kernels.items() if pattern.search(name)]
        if not own:
            sys.exit(
                f"build report: {target.name} has no kernel of {instance['name']}; is its __global__ function a "
                "template on Config?"
            )
        own += shared
        rows.append(
            {
                "name": instance["name"],
                "arch": instance["arch"],
                "registers": max(kernel["registers"] for kernel in own),
                "spill_bytes": sum(kernel["spill_bytes"] for kernel in own),
                "stack": max(kernel["stack"] for kernel in own),
                "seconds": round(log["seconds"] / len(instances), 2),
                "bytes": sizes and sum(size for name, size in sizes.items() if pattern.search(name)),
                "warnings": [warning for kernel in own for warning in kernel["warnings"]],
                "allow": instance["allow"],
            }
        )
    return rows


def print_table(rows: list[dict]) -> None:
    print(f"{'instance':<44} {'arch':>4} {'regs':>4} {'spill':>6} {'stack':>6} {'sec':>6} {'bytes':>8}")
    for row in rows:
        size = "-" if row["bytes"] is None else row["bytes"]
        print(
            f"{row['name']:<44} {row['arch']:>4} {row['registers']:>4} {row['spill_bytes']:>6} {row['stack']:>6} "
            f"{row['seconds']:>6.2f} {size:>8}"
        )
    seconds = sum(row["seconds"] for row in rows)
    print(f"{len(rows)} instances, {seconds:.0f} s, {sum(row['bytes'] or 0 for row in rows) / 1e6:.2f} MB of code")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("objects", type=pathlib.Path, nargs="*")
    args = parser.parse_args()

    instances = json.loads(args.instances.read_text())
    cuobjdump = find_cuobjdump()
    rows = []
    for target in args.objects:
        own = [instance for instance in instances if target.name.startswith(instance["file"])]
        rows += report_file(target, own, cuobjdump)
    if rows:
        print_table(rows)
    refused = [row for row in rows if (row["spill_bytes"] or row["warnings"]) and not row["allow"]]
    for row in refused:
        reasons = [f"{row['spill_bytes']} bytes spilled", *row["warnings"]]
        print(f"refused: {row['name']} (sm_{row['arch']}): {'; '.join(reasons)}")
    if refused:
        print('Lower the register use, or give the manifest row `allow = "reason"`.')
        return 1
    args.out.write_text(json.dumps(rows, indent=0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
