"""Files, functions and classes that a reader can hold in mind."""

import ast

import pytest
from conftest import ROOT

FILE_LINES, FUNCTION_LINES, CLASS_LINES = 300, 60, 250
MODULES = sorted(path for folder in ("myllm", "tune") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_longer_than_a_reader_can_hold(path):
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            most = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            assert node.end_lineno - node.lineno + 1 <= most, node.name
