"""Every test that docs/regressions.md names is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "regressions.md").read_text(encoding="utf-8")
GUARDED = re.findall(r"^\| (?!seen in|---)(.*) \|$", TEXT[: TEXT.index("## Not guarded")], re.MULTILINE)
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", TEXT)))


@pytest.mark.parametrize("line", GUARDED, ids=lambda line: line.partition(" | ")[0])
def test_every_line_names_a_test(line: str) -> None:
    assert re.fullmatch(r"(`tests/\w+/\w+\.py::test_\w+`(, )?)+", line.split(" | ")[2])


@pytest.mark.parametrize("test", NAMED)
def test_named_tests_exist(test: str) -> None:
    file, name = test.split("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
