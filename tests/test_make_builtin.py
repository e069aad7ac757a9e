from pathlib import Path
from runpy import run_path

import pytest


def test_failed_replacement_keeps_the_old_folder(tmp_path):
    replace_folder = run_path(str(Path(__file__).parents[1] / "scripts" / "make_builtin.py"))["replace_folder"]
    model = tmp_path / "model"
    replace_folder(model, {"a": b"old", "b": b"old"})
    replace_folder(model, {"a": b"new"})
    assert [(path.name, path.read_bytes()) for path in model.iterdir()] == [("a", b"new")]
    with pytest.raises(OSError, match="missing"):
        replace_folder(model, {"a": b"newer", "missing/b": b""})
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["model", "model/a"]
    assert (model / "a").read_bytes() == b"new"
