"""Compiler launcher: runs a compiler command, repeats its output, and keeps output and time for the build report.

compile_logged.py [ccache] nvcc ... -o OBJECT        writes OBJECT.log.json
"""

import json
import re
import subprocess
import sys
import time

# The lines by which ptxas -v describes every kernel; the build report shows their content.
STATISTICS = re.compile(
    r"ptxas info +: (\d+ bytes gmem|Compiling entry function|Function properties|Used \d+ registers|Compile time)"
    r"| +\d+ bytes stack frame, "
)


def main() -> int:
    command = sys.argv[1:]
    begin = time.monotonic()
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.monotonic() - begin
    target = command[command.index("-o") + 1]
    with open(f"{target}.log.json", "w") as log:
        json.dump({"seconds": round(seconds, 2), "output": result.stdout}, log)
    sys.stderr.writelines(line for line in result.stdout.splitlines(keepends=True) if not STATISTICS.match(line))
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
