"""Rules of the source that no linter checks: imports that ship to the Hub, no pickles, nothing that needs POSIX."""

import ast
import re
from pathlib import Path

import pytest

import mobilevit_hf

PACKAGE = Path(mobilevit_hf.__file__).parent
ROOT = Path(__file__).parents[1]
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in path.parts]
MODELING = sorted((PACKAGE / "modeling").glob("*.py"))


def relative_name(path):
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODELING, ids=relative_name)
def test_modeling_imports_siblings_by_name(path):
    """`from .x import y` is the one form for which the Hub's loader copies the other file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert "load" not in {alias.name for alias in node.names}, f"line {node.lineno}: call it `torch.load`"
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("trust_remote_code") != "True", f"line {node.lineno}: trusts remote code"
        if ast.unparse(node.func) == "torch.load":
            assert given.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only=True"


def is_text_mode(mode):
    """Return whether a node is a constant such as "w" or "a+", not one such as "rb"."""
    value = getattr(mode, "value", None)
    return isinstance(value, str) and set(value) <= set("rwaxt+") and bool(value)


def lacks_encoding(call):
    """Return whether a call reads or writes text in the encoding of the system."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords:
        return False
    name, is_method = getattr(call.func, "attr", getattr(call.func, "id", "")), isinstance(call.func, ast.Attribute)
    if is_method and name == "read_text":
        return not call.args  # with an argument, that of a distribution of importlib.metadata
    if is_method and name == "write_text":
        return True
    if is_method and name == "open":  # of a path; the first argument of others, such as os.open, is no mode
        return is_text_mode(call.args[0] if call.args else keywords.get("mode"))
    if name in ("open", "fdopen"):
        mode = call.args[1] if len(call.args) > 1 else keywords.get("mode")
        return bool(call.args) and (mode is None or is_text_mode(mode))
    return bool({"text", "universal_newlines"} & set(keywords)) and name in ("run", "Popen", "check_output")


PROGRAMS = [path for folder in ("scripts", "examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", [*SOURCES, *PROGRAMS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_has_an_encoding(path):
    """Otherwise it is that of the system: on Windows not UTF-8, and class names are written as other characters."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    lines = [f"line {call.lineno}: {ast.unparse(call)[:80]}" for call in calls if lacks_encoding(call)]
    assert not lines, lines


# Modules and attributes that Python has on POSIX systems only.
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    *("os.fork", "os.forkpty", "os.geteuid", "os.getgid", "os.getuid", "os.killpg", "os.mkfifo", "os.setsid"),
    *("os.sched_getaffinity", "os.statvfs", "os.uname", "signal.SIGHUP", "signal.SIGKILL", "signal.SIGUSR1"),
}
FORK = ("fork", "forkserver")


def is_guard(node):
    """Return whether the code in a node handles systems without a module or a name."""
    if isinstance(node, ast.With | ast.Try):
        return any(name in ast.unparse(node) for name in ("ImportError", "AttributeError"))
    if isinstance(node, ast.If | ast.IfExp):
        return any(name in ast.unparse(node.test) for name in ("sys.platform", "os.name", "hasattr"))
    return False


def posix_uses(node, *, is_guarded=False):
    """Yield the uses of POSIX modules and names, and of fork, that no guard surrounds."""
    is_guarded = is_guarded or is_guard(node)
    # A branch for Windows that returns is a guard of what follows in its function.
    for child in ast.iter_child_nodes(node):
        yield from posix_uses(child, is_guarded=is_guarded)
        if isinstance(child, ast.If) and is_guard(child) and isinstance(child.body[-1], ast.Return):
            is_guarded = True
    if isinstance(node, ast.Import) and not is_guarded:
        yield from (alias.name for alias in node.names if alias.name in POSIX_MODULES)
    if isinstance(node, ast.ImportFrom) and not is_guarded and not node.level and node.module in POSIX_MODULES:
        yield node.module
    if isinstance(node, ast.Attribute) and not is_guarded and ast.unparse(node) in POSIX_NAMES:
        yield ast.unparse(node)
    if isinstance(node, ast.Call) and any(getattr(arg, "value", None) in FORK for arg in node.args):
        yield ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=relative_name)
def test_no_posix_only_code_outside_of_a_guard(path):
    assert not list(posix_uses(ast.parse(path.read_text(encoding="utf-8"))))


COMMAND_WITH_PATH = re.compile(
    r"(?:mobilevit (?:predict|train|evaluate|export|convert|publish)|--model|--output-dir)\b[^.:;]*$"
)
PATH_NAMES = re.compile(r"(?:dir|folder|source|path|name|data)\b")


def unquoted_paths(tree):
    """Yield the line of each path in a command of a message that a shell would split at a space."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = ""
            for part in node.values:
                if isinstance(part, ast.Constant):
                    text += str(part.value)
                    continue
                value = ast.unparse(part.value)
                if (
                    COMMAND_WITH_PATH.search(text)
                    and PATH_NAMES.search(value)
                    and not value.startswith("quote_words(")
                ):
                    yield node.lineno
                text += "X"


def test_unquoted_path_in_a_command_is_recognized():
    assert list(unquoted_paths(ast.parse('f"Run mobilevit evaluate {quote_words(model)} {data}"'))) == [1]
    assert not list(unquoted_paths(ast.parse('f"Run mobilevit evaluate {quote_words(data)}. Folder: {data}"')))


@pytest.mark.parametrize("path", SOURCES, ids=relative_name)
def test_commands_of_messages_quote_paths(path):
    assert not list(unquoted_paths(ast.parse(path.read_text(encoding="utf-8"))))
