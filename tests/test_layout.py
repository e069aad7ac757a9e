"""Who imports whom, read from the source: imports point one way, and the files that ship to the Hub stand alone."""

import ast
import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mobilevit_hf

PACKAGE = Path(mobilevit_hf.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "__pycache__" not in path.parts
}

# What each part may import of this package; the first row that fits a module counts. Parts need not exist yet.
CONFIGURATIONS = ["modeling.configuration_*"]
LAYERS = [*CONFIGURATIONS, "modeling.layers_*"]
SSDLITE = [*LAYERS, "modeling.ssdlite*"]
MODELING = ["modeling", "modeling.*"]
CORE = [*MODELING, "configuration", "registration", "pipelines", "convert*", "checkpoints", "allocator", "files"]
TOOLS = [
    *CORE,
    "metrics",
    "metrics.*",
    "hub",
    "hub.*",
    "backends",
    "backends.*",
    "visualization",
    "visualization.*",
]
MAY_IMPORT = {
    "modeling.configuration_*": CONFIGURATIONS,
    "modeling.layers_*": LAYERS,
    "modeling.ssdlite*": SSDLITE,
    "modeling.image_processing_*": [*SSDLITE, "modeling.image_processing_*"],
    "modeling.modeling_*": [*SSDLITE, "modeling.modeling_*"],
    "modeling.__init__": [],
    "configuration": CONFIGURATIONS,
    "registration": MODELING,
    "allocator": [],
    "files": [],
    "samples": ["files"],
    "checkpoints": CORE,
    "pipelines": [*CORE, "backends", "backends.*"],
    "convert*": CORE,
    "metrics*": [*MODELING, "metrics", "metrics.*"],
    "visualization*": [*CORE, "visualization", "visualization.*"],
    "hub*": TOOLS,
    "backends.quantization": [*TOOLS, "data", "data.*", "evaluation", "evaluation.*"],
    "backends*": TOOLS,
    "data*": [*CORE, "data", "data.*"],
    "evaluation*": [*CORE, "metrics", "metrics.*", "data", "data.*", "evaluation", "evaluation.*"],
    "training*": [*TOOLS, "data", "data.*", "evaluation", "evaluation.*", "training", "training.*"],
    "demo*": [*TOOLS, "data", "data.*", "demo", "demo.*"],
    "cli*": ["*"],
    "__main__": ["*"],
    "__init__": ["*"],
}


def modules_named(path, module):
    """The modules of this package that a file imports, by their dotted names in it; "" is the package itself."""
    parts = module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {".".join(name[1:]) for name in names if name[0] == PACKAGE.name}
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = [*parts[: len(parts) - node.level + 1], *base]
            elif base[0] == PACKAGE.name:
                base = base[1:]
            else:
                continue
            # `from x import y` names the module x.y if there is one, otherwise something in x.
            children = [".".join([*base, alias.name]) for alias in node.names]
            found |= {child if is_module(child) else ".".join(base) for child in children}
    return found


def is_module(name):
    return name in FILES or f"{name}.__init__" in FILES


def fits(module, patterns):
    return any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_one_way(module):
    rows = [allowed for part, allowed in MAY_IMPORT.items() if fits(module, [part])]
    assert rows, f"{module}: give it a row in MAY_IMPORT"
    wrong = {name for name in modules_named(FILES[module], module) if not fits(name, rows[0])}
    assert not wrong, f"{module} imports {wrong}, and may import {rows[0]}"


def test_no_import_cycle():
    def file_of(name):
        return name if name in FILES else f"{name}.__init__".removeprefix(".")

    graph = {module: {file_of(name) for name in modules_named(path, module)} for module, path in FILES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" ← ".join(error.args[1]))


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("modeling.")])
def test_what_ships_to_the_hub_imports_siblings_only(module):
    """`from .x import y` is the one form for which the Hub's loader brings the other file along."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"line {node.lineno}: from outside the folder"
            assert node.module, f"line {node.lineno}: `from . import`"
            assert f"modeling.{node.module}" in FILES, f"line {node.lineno}: no sibling {node.module}"
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] != PACKAGE.name, f"line {node.lineno}: by the package's name"
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != PACKAGE.name for alias in node.names), f"line {node.lineno}"


@pytest.mark.parametrize("module", FILES)
def test_nothing_pickled_or_remote_is_executed(module):
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert "load" not in {alias.name for alias in node.names}, f"line {node.lineno}: call it `torch.load`"
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("trust_remote_code") != "True", f"line {node.lineno}: never trusts by itself"
        if ast.unparse(node.func) == "torch.load":
            assert given.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only=True"
