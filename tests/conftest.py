"""Shared set-up. The tests import the installed package, never python/, and the oracle that lies beside this file."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

HOST_DIR = Path(__file__).resolve().parent.parent / "build" / "host"


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """The module `_host` of the development build; HUMMING_REQUIRE_HOST=1 makes its absence a failure."""
    sys.path.insert(0, str(HOST_DIR))
    try:
        return importlib.import_module("_host")
    except ImportError as error:
        reason = f"the host test module is not built ({error}); run `make test`"
        if os.environ.get("HUMMING_REQUIRE_HOST") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Many small products take a tenth of the time with one thread where others compete for the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
