"""The cache of exported models: lookup, eviction and concurrent use."""

import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from backend_support import require_backend
from huggingface_hub import constants

import mobilevit_hf
from mobilevit_hf.backends import cache, formats
from mobilevit_hf.cli import console
from mobilevit_hf.io import CACHE_MARKER, TEMP_PREFIX, mark_cache_entry
from mobilevit_hf.model_sources import builtin

SIZE = (64, 64)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path))


@pytest.fixture
def _no_versions(monkeypatch):
    """The backends need not be installed."""
    monkeypatch.setattr(cache, "package_versions", lambda format: {})


def add_entry(name, size, used):
    folder = cache.cache_folder() / name
    folder.mkdir(parents=True)
    (folder / "model").write_bytes(bytes(size - len(name)))
    mark_cache_entry(folder, name)
    (folder / "export.json").write_text("{}")
    os.utime(folder / "export.json", (used, used))
    return folder


def test_least_recently_used_is_removed_first(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBILEVIT_CACHE_BYTES", "2500")
    old, new, oldest = add_entry("b", 1000, 200), add_entry("a", 1000, 300), add_entry("c", 1000, 100)
    assert cache.trim() == 1002
    assert sorted(tmp_path.iterdir()) == [new, old]
    assert not oldest.exists()
    monkeypatch.setenv("MOBILEVIT_CACHE_BYTES", "0")
    assert cache.trim(keep=old) == 1002
    assert list(tmp_path.iterdir()) == [old]
    monkeypatch.setenv("MOBILEVIT_CACHE_BYTES", "2 GB")
    with pytest.raises(ValueError, match="got '2 GB', expected a number of bytes"):
        cache.trim()


@pytest.mark.usefixtures("_no_versions")
def test_concurrent_exports_both_get_the_file(tmp_path):
    both_exporting, paths = threading.Barrier(2), []

    def write(file):
        file.write_bytes(b"model")
        both_exporting.wait(timeout=60)
        return {}

    def export():
        paths.append(cache.get_or_create("0" * 64, "onnx", "float32", SIZE, write))

    threads = [threading.Thread(target=export) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == b"model"
    assert len(list(tmp_path.iterdir())) == 1
    cached = cache.get_or_create("0" * 64, "onnx", "float32", SIZE, lambda file: pytest.fail("exported again"))
    assert cached == paths[0]


def test_weights_backend_dtype_versions_and_fixed_size_are_the_key(monkeypatch):
    request, written = ("0" * 64, "executorch", "float32", SIZE), []

    def get(*request, torch="2.8.0"):
        monkeypatch.setattr(cache, "package_versions", lambda format: {"torch": torch})
        return cache.get_or_create(*request, lambda file: written.append(request) or {})

    paths = [get(*request), get(*request, torch="2.9.0")]
    for index, other in enumerate(("1" * 64, "onnx", "bfloat16", (64, 96))):
        paths.append(get(*request[:index], other, *request[index + 1 :]))
    assert len({path.parents[1] for path in paths}) == len(written) == 6
    dynamic_shapes = ("0" * 64, "onnx", "float32")
    assert get(*dynamic_shapes, SIZE) == get(*dynamic_shapes, (64, 96))
    assert len(written) == 6


@pytest.mark.usefixtures("_no_versions")
def test_new_entry_evicts_unused_ones_and_abandoned_folders(tmp_path, monkeypatch):
    def get(weights):
        path = cache.get_or_create(weights, "onnx", "float32", SIZE, lambda file: file.write_bytes(bytes(1000)) and {})
        return path.parents[1]

    used, unused = get("used"), get("unused")
    for seconds, folder in enumerate((used, unused)):
        os.utime(folder / "export.json", (seconds, seconds))
    abandoned = tmp_path / f"{TEMP_PREFIX}abandoned"
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    get("used")
    monkeypatch.setenv("MOBILEVIT_CACHE_BYTES", "2800")
    new = get("new")
    assert sorted(tmp_path.iterdir()) == sorted([used, new])


@pytest.mark.usefixtures("_no_versions")
def test_failed_export_leaves_no_files(tmp_path):
    def write(file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get_or_create("0" * 64, "onnx", "float32", SIZE, write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_versions")
def test_read_only_cache_is_used(monkeypatch):
    request = ("0" * 64, "onnx", "float32", SIZE)
    path = cache.get_or_create(*request, lambda file: file.write_bytes(b"model") and {})

    def refuse(*arguments):
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.get_or_create(*request, lambda file: pytest.fail("exported again")) == path
    monkeypatch.setattr(Path, "rename", refuse)
    assert cache.clear() == 0  # counts only what was removed


def test_weights_hash_depends_on_weights_and_configuration(tiny_model):
    model = tiny_model(mobilevit_hf.MobileViTForImageClassification)
    weights = cache.weights_hash(model)
    assert cache.weights_hash(tiny_model(mobilevit_hf.MobileViTForImageClassification)) == weights
    model.config.id2label = {0: "another name"}
    assert cache.weights_hash(model) == weights
    assert cache.weights_hash(tiny_model(mobilevit_hf.MobileViTForImageClassification, output_stride=16)) != weights
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6
    assert cache.weights_hash(model) != weights


@pytest.mark.usefixtures("_no_versions")
def test_damaged_entry_is_replaced():
    def write(file):
        file.write_bytes(b"model")
        return {}

    path = cache.get_or_create("0" * 64, "onnx", "float32", SIZE, write)
    path.write_bytes(b"other")
    assert cache.get_or_create("0" * 64, "onnx", "float32", SIZE, write).read_bytes() == b"model"


def test_only_entries_are_removed(tmp_path, mobilevit):
    entry, elsewhere = add_entry("a", 1000, 200), tmp_path.parent / "elsewhere"
    shutil.copytree(entry, elsewhere)
    (elsewhere / CACHE_MARKER).write_text("linked")
    (tmp_path / "linked").symlink_to(elsewhere)
    shutil.copytree(entry, tmp_path / "my-model")  # a copy, marker included
    dataset, unpacked = tmp_path / "datasets" / "mine", tmp_path / "datasets" / "b"
    for folder in (dataset, unpacked, tmp_path / "model"):
        folder.mkdir(parents=True)
        (folder / "export.json").write_text("[]")
    mark_cache_entry(unpacked, "b")
    (entry / "link").symlink_to(elsewhere)
    code, stdout, _ = mobilevit("cache", "clear")
    assert (code, stdout[:6]) == (0, "0.0 MB")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["datasets", "linked", "model", "my-model"]
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == ["mine"]
    assert (elsewhere / "model").is_file()


@pytest.mark.usefixtures("_no_versions")
@pytest.mark.parametrize("value", [None, "/dev/null/cache"])
def test_cache_without_a_folder_is_one_line(mobilevit, monkeypatch, value):
    monkeypatch.delenv("MOBILEVIT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("mobilevit_hf.io.home_folder", lambda: None)
    if value is None:
        code, _, stderr = mobilevit("cache")
        assert (code, stderr.count("\n")) == (2, 1)
        assert "MOBILEVIT_CACHE: got no value and no home folder, expected a folder." in stderr
    else:
        monkeypatch.setenv("MOBILEVIT_CACHE", value)
        with pytest.raises(ValueError, match=r"/dev/null/cache: the cache can't be written .* Set MOBILEVIT_CACHE to"):
            cache.get_or_create("0" * 64, "onnx", "float32", SIZE, lambda file: {})


def test_cache_folder_of_an_unknown_user_is_taken_literally(monkeypatch):
    monkeypatch.setenv("MOBILEVIT_CACHE", "~unknown-user/x")
    assert cache.cache_folder() == Path("~unknown-user/x")
    assert cache.entries() == []


def test_version_of_a_package_that_is_installed_under_another_name(monkeypatch):
    require_backend("onnx")
    import onnxruntime

    version = cache.importlib.metadata.version

    def version_without_some(name):
        if name in ("onnxruntime", "mobilevit-hf"):  # as with onnxruntime-gpu, and when run from source
            raise cache.importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(cache.importlib.metadata, "version", version_without_some)
    versions = cache.package_versions(formats.FORMATS["onnx"])
    assert (versions["onnxruntime"], versions["mobilevit-hf"]) == (onnxruntime.__version__, mobilevit_hf.__version__)


def test_cache_command_lists_and_clears(tmp_path, mobilevit):
    folder = add_entry("a", 5_000_000, 200)
    (folder / "export.json").write_text(json.dumps({"weights": "f" * 64, "backend": "onnx", "dtype": "float32"}))
    code, stdout, _ = mobilevit("cache")
    assert code == 0
    assert "ffffffffffff" in stdout
    assert "5.0 MB" in stdout
    code, stdout, _ = mobilevit("cache", "clear")
    assert (code, list(tmp_path.iterdir())) == (0, [])
    assert stdout.startswith("5.0 MB removed")
    code, _, stderr = mobilevit("cache", "empty")
    assert code == 2
    assert "expected clear" in stderr


def test_cache_command_names_models(tmp_path, mobilevit, monkeypatch, classifier_dir):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-hub"))
    monkeypatch.setattr(console.output, "_width", 1000)  # long paths are not folded
    snapshot = tmp_path / "models--user--x" / "snapshots" / "abc"
    sources = [
        str(classifier_dir),
        str(builtin("blood-cells")),
        str(snapshot),
        "hf_abcdefghijklmnop",
        str(tmp_path / "old"),
    ]
    snapshot.mkdir(parents=True)
    (tmp_path / "old").mkdir()
    entries = [(source, index) for index, source in enumerate([*sources, sources[0]])]
    for source, index in entries:
        record = {"weights": f"{index}" * 64, "backend": "onnx", "dtype": "float32"}
        record["source"] = cache.name_source(source)
        folder = add_entry(f"entry-{index}", 1_000_000, 200)
        (folder / "export.json").write_text(json.dumps(record))
        os.utime(folder / "export.json", (100 + index, 100 + index))
    _, stdout, _ = mobilevit("cache")
    names = [re.split("  +", line.strip())[0] for line in stdout.splitlines()[1:-1]]
    assert names == [
        str(classifier_dir),
        f"{tmp_path / 'old'} (no longer present)",
        "hf_… (no longer present)",
        "user/x (no longer present)",
        "built-in blood-cells",
        f"{classifier_dir} (earlier weights)",
    ]


@pytest.mark.usefixtures("_no_versions")
def test_cache_entry_is_named_after_the_model_that_used_it_last(tmp_path):
    def write(file):
        file.write_bytes(b"model")
        return {}

    for source in ("a/b", None, "c/d"):
        file = cache.get_or_create("0" * 64, "onnx", "float32", SIZE, write, source)
    assert cache.read_entry(file).source == "c/d"


def test_cache_command_lists_and_clears_damaged_entries(tmp_path, mobilevit):
    (add_entry("a", 5_000_000, 200) / "export.json").write_text("")
    code, stdout, _ = mobilevit("cache")
    assert code == 0
    assert "5.0 MB in" in stdout
    assert mobilevit("cache", "clear")[0] == 0
    assert list(tmp_path.iterdir()) == []
