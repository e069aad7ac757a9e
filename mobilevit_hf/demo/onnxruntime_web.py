"""Files of onnxruntime-web, which run a model in the browser. They are downloaded on the first use and cached."""

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError

from ..io import cache_folder, mark_cache_entry, temporary_folder

# Of the releases 1.20 to 1.30, the smallest (11.2 MB, compressed 2.9) and the fastest one: 33 ms for XXS at 256x256 in
# Chromium on one core, 1.30 takes 38.
PACKAGE, VERSION = "onnxruntime-web", "1.22.0"
# SHA-256 of the files of its variant without WebGPU, which runs in every browser.
FILES = {
    "ort.wasm.min.mjs": "6ef726f355b791129f7ddf3f62e7877a16b9b777abe87004b8ab306e6b9cf265",
    "ort-wasm-simd-threaded.mjs": "30dd851d9c00622940500f71ddd2ff8820c5cb65270816080175b958705385a8",
    "ort-wasm-simd-threaded.wasm": "71aef04959c5c1b6de461b6538e2058e306610034a85aad2742d0c7fd4533fe4",
}
CDN = f"https://cdn.jsdelivr.net/npm/{PACKAGE}@{VERSION}/dist/"
DOWNLOAD_SECONDS = 300


def runtime_files() -> list[Path]:
    """Return the files of the runtime in the cache, downloading them on the first use.

    They are downloaded by npm, so that its settings apply, or from a CDN if npm is not installed or fails. Their
    hashes are checked.

    Raises:
        ValueError: If they can't be downloaded.
    """
    root = cache_folder()
    folder = root / f"{PACKAGE}-{VERSION}"
    if not _is_complete(folder):
        root.mkdir(parents=True, exist_ok=True)
        with temporary_folder(root) as scratch:
            _download(scratch)
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            try:
                (scratch / folder.name).rename(folder)
            except OSError:  # another process was faster
                if not _is_complete(folder):
                    raise
    return [folder / name for name in FILES]


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() and _sha256(folder / name) == digest for name, digest in FILES.items())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(scratch: Path) -> None:
    """Download the files into a folder of the cache entry's name in `scratch`."""
    sources: dict[str, Callable[[Path], None]] = {"npm": _download_from_npm, "the CDN": _download_from_cdn}
    folder, reasons = scratch / f"{PACKAGE}-{VERSION}", []
    for name, download in sources.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            download(folder)
        except (OSError, HTTPError, KeyError, subprocess.SubprocessError, tarfile.TarError) as error:
            reasons.append(f"{name}: {_reason(error)}")
            continue
        if _is_complete(folder):
            mark_cache_entry(folder, folder.name)
            return
        reasons.append(f"{name}: the files have other hashes")
    raise ValueError(
        f"{PACKAGE} {VERSION}: can't be downloaded ({'; '.join(reasons)}). Check the connection, or copy the files "
        f"{', '.join(FILES)} from dist/ of that npm package to {cache_folder() / folder.name}."
    )


def _download_from_npm(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("not installed")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--loglevel=error", "--fetch-retries=1"]
    process = subprocess.run(
        command, cwd=folder.parent, capture_output=True, timeout=DOWNLOAD_SECONDS, encoding="utf-8"
    )
    if process.returncode != 0:
        raise OSError(process.stderr or "failed")
    with tarfile.open(folder.parent / f"{PACKAGE}-{VERSION}.tgz") as archive:
        for name in FILES:
            content = archive.extractfile(f"package/dist/{name}")
            if content is None:
                raise OSError(f"{name} is not a file")
            (folder / name).write_bytes(content.read())


def _download_from_cdn(folder: Path) -> None:
    for name in FILES:
        response = get_session().get(CDN + name, timeout=DOWNLOAD_SECONDS, follow_redirects=True)
        response.raise_for_status()
        (folder / name).write_bytes(response.content)


def _reason(error: Exception) -> str:
    """Return the first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
