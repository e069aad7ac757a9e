"""The cache of exported programs: what is taken from it, what goes first, and that it holds nothing half written."""

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from engines import need

import mobilevit_hf
from mobilevit_hf.backends import cache, formats
from mobilevit_hf.io import SCRATCH


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path))


def fill(name, size, used):
    folder = cache.cache_folder() / name
    folder.mkdir(parents=True)
    (folder / "program").write_bytes(bytes(size))
    (folder / "export.json").write_text("{}")
    os.utime(folder / "export.json", (used, used))
    return folder


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBILEVIT_CACHE_BYTES", "2500")
    old, new, oldest = fill("b", 1000, 200), fill("a", 1000, 300), fill("c", 1000, 100)
    assert cache.trim() == 1002
    assert sorted(tmp_path.iterdir()) == [new, old]
    assert not oldest.exists()
    monkeypatch.setenv("MOBILEVIT_CACHE_BYTES", "0")
    assert cache.trim(keep=old) == 1002
    assert list(tmp_path.iterdir()) == [old]
    monkeypatch.setenv("MOBILEVIT_CACHE_BYTES", "2 GB")
    with pytest.raises(ValueError, match="got '2 GB', expected a number of bytes"):
        cache.trim()


def test_two_that_export_at_once_both_get_the_program(tmp_path, monkeypatch):
    together, answers = threading.Barrier(2), []

    def write(folder):
        (folder / "onnx" / "model.onnx").write_bytes(b"program")
        together.wait(timeout=60)  # both are past the look whether it is there
        return {}

    def work():
        answers.append(cache.fetch("0" * 64, "onnx", "float32", (64, 64), write))

    monkeypatch.setattr(cache, "versions", lambda format: {})
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers[0] == answers[1]
    assert answers[0].read_bytes() == b"program"
    assert len(list(tmp_path.iterdir())) == 1
    assert (
        cache.fetch("0" * 64, "onnx", "float32", (64, 64), lambda folder: pytest.fail("exported again")) == answers[0]
    )


def test_no_other_program_is_taken_for_it(tmp_path, monkeypatch):
    """Of other weights, engine, precision or libraries; ExecuTorch's also take one size of image."""
    wanted, written = ("0" * 64, "executorch", "float32", (64, 64)), []

    def fetch(*wanted, torch="2.8.0"):
        monkeypatch.setattr(cache, "versions", lambda format: {"torch": torch})
        return cache.fetch(*wanted, lambda folder: written.append(wanted) or {})

    paths = [fetch(*wanted), fetch(*wanted, torch="2.9.0")]
    for place, other in enumerate(("1" * 64, "onnx", "bfloat16", (64, 96))):
        paths.append(fetch(*wanted[:place], other, *wanted[place + 1 :]))
    assert len({path.parents[1] for path in paths}) == len(written) == 6
    any_size = ("0" * 64, "onnx", "float32")
    assert fetch(*any_size, (64, 64)) == fetch(*any_size, (64, 96))
    assert len(written) == 6


def test_a_program_that_is_used_stays_and_what_does_not_fit_beside_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "versions", lambda format: {})

    def fetch(weights):
        return cache.fetch(
            weights,
            "onnx",
            "float32",
            (64, 64),
            lambda folder: (folder / "onnx/model.onnx").write_bytes(bytes(1000)) and {},
        ).parents[1]

    used, unused = fetch("used"), fetch("unused")
    for seconds, folder in enumerate((used, unused)):
        os.utime(folder / "export.json", (seconds, seconds))
    left = tmp_path / f"{SCRATCH}left"
    left.mkdir()
    os.utime(left, (0, 0))
    fetch("used")
    monkeypatch.setenv("MOBILEVIT_CACHE_BYTES", "2500")
    new = fetch("new")
    assert sorted(tmp_path.iterdir()) == sorted([used, new])


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "versions", lambda format: {})

    def write(folder):
        (folder / "onnx" / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fetch("0" * 64, "onnx", "float32", (64, 64), write)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_for_reading_only_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "versions", lambda format: {})
    wanted = ("0" * 64, "onnx", "float32", (64, 64))
    path = cache.fetch(*wanted, lambda folder: {})

    def refuse(*arguments):
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.fetch(*wanted, lambda folder: pytest.fail("exported again")) == path
    monkeypatch.setattr(Path, "rename", refuse)
    assert cache.clear() == 0  # and nothing is said to be removed that is still there


def test_the_hash_tells_models_apart(tiny_model):
    model = tiny_model(mobilevit_hf.MobileViTForImageClassification)
    name = cache.weights_hash(model)
    assert cache.weights_hash(tiny_model(mobilevit_hf.MobileViTForImageClassification)) == name
    model.config.id2label = {0: "another name"}
    assert cache.weights_hash(model) == name
    assert cache.weights_hash(tiny_model(mobilevit_hf.MobileViTForImageClassification, output_stride=16)) != name
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6
    assert cache.weights_hash(model) != name


def test_a_home_of_nobody_holds_no_programs(monkeypatch):
    monkeypatch.setenv("MOBILEVIT_CACHE", "~nobody-has-this-name/x")
    assert cache.cache_folder() == Path("~nobody-has-this-name/x")
    assert cache.entries() == []


def test_an_engine_installed_under_another_name_has_its_version(monkeypatch):
    need("onnx")
    import onnxruntime

    find = cache.importlib.metadata.version

    def version(name):
        if name in ("onnxruntime", "mobilevit-hf"):  # there is onnxruntime-gpu, and the bare source
            raise cache.importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(cache.importlib.metadata, "version", version)
    found = cache.versions(formats.FORMATS["onnx"])
    assert (found["onnxruntime"], found["mobilevit-hf"]) == (onnxruntime.__version__, mobilevit_hf.__version__)


def test_cache_is_listed_and_cleared(tmp_path, monkeypatch, mobilevit):
    folder = fill("a", 5_000_000, 200)
    (folder / "export.json").write_text(json.dumps({"weights": "f" * 64, "backend": "onnx", "dtype": "float32"}))
    code, out, _ = mobilevit("cache")
    assert code == 0
    assert "ffffffffffff" in out
    assert "5.0 MB" in out
    code, out, _ = mobilevit("cache", "clear")
    assert (code, list(tmp_path.iterdir())) == (0, [])
    assert out.startswith("5.0 MB removed")
    code, _, err = mobilevit("cache", "empty")
    assert code == 2
    assert "expected clear" in err


def test_a_damaged_record_is_listed_and_cleared(tmp_path, monkeypatch, mobilevit):
    (fill("a", 5_000_000, 200) / "export.json").write_text("")
    code, out, _ = mobilevit("cache")
    assert code == 0
    assert "5.0 MB in" in out
    assert mobilevit("cache", "clear")[0] == 0
    assert list(tmp_path.iterdir()) == []
