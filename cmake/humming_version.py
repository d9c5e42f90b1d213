"""Version provider of scikit-build-core: _version.py plus an optional local label.

HUMMING_LOCAL_VERSION=cu130 gives 0.1.0+cu130, for an index of ours; PyPI takes no local labels.
"""

import os
import pathlib
import re

VERSION_FILE = pathlib.Path(__file__).resolve().parent.parent / "python/humming_ext/_version.py"


def dynamic_metadata(field: str, settings: object = None) -> str:
    match = re.search(r'__version__ = "([^"]+)"', VERSION_FILE.read_text())
    if match is None:
        raise ValueError(f"{VERSION_FILE} has no __version__")
    label = os.environ.get("HUMMING_LOCAL_VERSION", "")
    return f"{match[1]}+{label}" if label else match[1]
