"""Forwards `python setup.py bdist_wheel|sdist|install` to the build described by pyproject.toml and CMakeLists.txt.

The usual way is `pip install . --no-build-isolation`, with torch installed.
"""

import argparse
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("bdist_wheel", "sdist", "install"))
    parser.add_argument("-d", "--dist-dir", type=pathlib.Path, default=ROOT / "dist")
    args = parser.parse_args()

    if args.command == "install":
        pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", str(ROOT)]
        return subprocess.call(pip)
    from scikit_build_core import build

    args.dist_dir.mkdir(parents=True, exist_ok=True)
    hook = build.build_wheel if args.command == "bdist_wheel" else build.build_sdist
    print(args.dist_dir / hook(str(args.dist_dir)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
