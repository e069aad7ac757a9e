"""Download of the browser's runtime."""

import hashlib
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobilevit_hf.backends import cache
from mobilevit_hf.demo import onnxruntime_web
from mobilevit_hf.demo.onnxruntime_web import runtime_files
from mobilevit_hf.io import is_cache_entry

CONTENTS = {"ort.mjs": b"script", "ort.wasm": b"program"}


@pytest.fixture(autouse=True)
def sources(monkeypatch, tmp_path):
    """Files on npm and the CDN, by source; without an entry, the source does not answer."""
    sources = {}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    monkeypatch.setattr(onnxruntime_web, "FILES", hashes)
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path / "cache"))

    def run_npm(command, cwd, **options):
        archive = Path(cwd, f"{command[2].replace('@', '-')}.tgz")
        with tarfile.open(archive, "w:gz") as package:
            for name, content in sources.get("npm", {}).items():
                (tmp_path / name).write_bytes(content)
                package.add(tmp_path / name, f"package/dist/{name}")
        failed = "npm" not in sources
        return onnxruntime_web.subprocess.CompletedProcess(command, int(failed), "", "npm error network\nmore")

    def get(url, **options):
        if "cdn" not in sources:
            raise OSError("no connection")
        content = sources["cdn"][url.rpartition("/")[2]]
        return SimpleNamespace(content=content, raise_for_status=lambda: None)

    monkeypatch.setattr(onnxruntime_web.shutil, "which", lambda name: name)
    monkeypatch.setattr(onnxruntime_web.subprocess, "run", run_npm)
    monkeypatch.setattr(onnxruntime_web, "get_session", lambda: SimpleNamespace(get=get))
    return sources


@pytest.mark.parametrize("source", ["npm", "cdn"])
def test_files_are_downloaded_once(sources, source):
    sources[source] = CONTENTS
    paths = runtime_files()
    assert {path.name: path.read_bytes() for path in paths} == CONTENTS
    assert is_cache_entry(paths[0].parent)
    del sources[source]
    assert runtime_files() == paths


def test_damaged_file_is_downloaded_again(sources):
    sources["npm"] = CONTENTS
    path, *_ = runtime_files()
    path.write_bytes(b"damaged")
    runtime_files()
    assert path.read_bytes() == CONTENTS[path.name]


def test_clearing_the_cache_removes_the_files(sources):
    sources["npm"] = CONTENTS
    path, *_ = runtime_files()
    assert cache.clear() >= sum(map(len, CONTENTS.values()))
    assert not path.exists()


def test_changed_file_is_rejected(sources, tmp_path):
    sources["npm"] = sources["cdn"] = CONTENTS | {"ort.mjs": b"another script"}
    with pytest.raises(ValueError, match="npm: the files have other hashes; the CDN: the files have other hashes"):
        runtime_files()
    assert list((tmp_path / "cache").iterdir()) == []


def test_missing_connection_is_a_one_line_error(tmp_path):
    with pytest.raises(ValueError, match=r"npm: npm error network; the CDN: no connection") as error:
        runtime_files()
    assert "\n" not in str(error.value)
    assert str(tmp_path / "cache" / "onnxruntime-web-") in str(error.value)
