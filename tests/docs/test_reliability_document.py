"""The tests that the document on reliability names are there."""

from __future__ import annotations

import ast
import re

import pytest
from document_reader import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "reliability.md"
NAMED = re.compile(r"`(tests/[\w/]*test_\w+\.py)?(?:::(test_\w+))?`")


def named_tests() -> list[tuple[str, str]]:
    """File, and function or nothing; ``::test_x`` alone belongs to the file before it."""
    found, file = [], ""
    for match in NAMED.finditer(DOCUMENT.read_text()):
        file = match[1] or file
        if match[1] or match[2]:
            found.append((file, match[2] or ""))
    return found


def test_every_promise_names_a_test() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and not line.startswith("| -")]
    promises = [line for line in rows if not line.startswith("| promise")]
    assert len(promises) > 30
    assert [line for line in promises if not NAMED.search(line.split("|")[2])] == []


@pytest.mark.parametrize(("file", "function"), sorted(set(named_tests())))
def test_named_test_is_there(file: str, function: str) -> None:
    tree = ast.parse((REPOSITORY / file).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert function in functions if function else any(name.startswith("test_") for name in functions)
