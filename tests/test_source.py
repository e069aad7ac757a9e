"""Rules of the source that the import linter can not express: imports that ship to the Hub, and no pickles."""

import ast
from pathlib import Path

import pytest

import mobilevit_hf

PACKAGE = Path(mobilevit_hf.__file__).parent
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in path.parts]
MODELING = sorted((PACKAGE / "modeling").glob("*.py"))


def relative_name(path):
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODELING, ids=relative_name)
def test_modeling_imports_siblings_by_name(path):
    """`from .x import y` is the one form for which the Hub's loader copies the other file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"line {node.lineno}: imports from outside the folder"
            assert node.module, f"line {node.lineno}: `from . import`"
            assert path.with_name(f"{node.module}.py") in MODELING, f"line {node.lineno}: no sibling {node.module}"
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] != PACKAGE.name, f"line {node.lineno}: imports by the package's name"
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != PACKAGE.name for alias in node.names), f"line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=relative_name)
def test_no_pickled_or_remote_code_is_executed(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert "load" not in {alias.name for alias in node.names}, f"line {node.lineno}: call it `torch.load`"
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("trust_remote_code") != "True", f"line {node.lineno}: trusts remote code"
        if ast.unparse(node.func) == "torch.load":
            assert given.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only=True"
