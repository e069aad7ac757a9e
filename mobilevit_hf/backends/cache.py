"""Cache of the models that were exported on first use."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..io import TEMP_PREFIX, read_json, temporary_folder, temporary_folders, user_path
from ..records import EXPORT_FILE, ExportRecord, write_record
from .files import exported_bytes
from .formats import FORMATS, Format

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MAX_BYTES = 2 * 2**30
# An unfinished folder of this age was left behind by a killed process.
MAX_SCRATCH_SECONDS = 24 * 3600

# Configuration fields that change the outputs without changing the weights' names or shapes.
CONFIG_FIELDS = (
    "anchor_ratios",
    "anchor_scales",
    "atrous_rates",
    "center_variance",
    "feature_strides",
    "head_act",
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "output_stride",
    "patch_size",
    "size_variance",
)


class Entry(NamedTuple):
    """A cached exported model.

    Attributes:
        bytes: Size of the folder.
        used: Time of the last use, in seconds since the epoch.
        record: Values of its `ExportRecord`; empty if the file is damaged.
    """

    folder: Path
    bytes: int
    used: float
    record: dict[str, Any]


def cache_folder() -> Path:
    """Return the cache folder: `MOBILEVIT_CACHE`, or `mobilevit_hf` in the user's cache folder."""
    if folder := os.environ.get("MOBILEVIT_CACHE"):
        return user_path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobilevit_hf"


def weights_hash(model: "PreTrainedModel") -> str:
    """Return the SHA-256 hash of everything that determines a model's outputs: weights and `CONFIG_FIELDS`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    digest.update(json.dumps(_config_values(model.config), sort_keys=True).encode())
    return digest.hexdigest()


def _config_values(config: "PreTrainedConfig") -> dict[str, Any]:
    values = {name: getattr(config, name) for name in CONFIG_FIELDS if getattr(config, name, None) is not None}
    backbone = getattr(config, "backbone_config", None)
    return values if backbone is None else {**values, "backbone": _config_values(backbone)}


def package_versions(format: Format) -> dict[str, str]:
    """Return the versions of the packages that an export depends on."""
    return {name: _package_version(name) for name in ("mobilevit-hf", "torch", *format.packages)}


def _package_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # Installed under another name, such as onnxruntime-gpu, or imported from its source folder.
        return importlib.import_module(package.replace("-", "_")).__version__


def get_or_create(
    weights: str, backend: str, dtype: str, size: tuple[int, int], write: Callable[[Path], dict[str, Any]]
) -> Path:
    """Return the cached exported file for a model's weights, exporting it if it is missing.

    If two processes export the same model at once, one of the two results is kept.

    Args:
        weights: Hash from `weights_hash`.
        size: Height and width of the image processor's output.
        write: Writes the file and returns further fields of its `ExportRecord`.
    """
    format = FORMATS[backend]
    versions = package_versions(format)
    key: dict[str, Any] = {"weights": weights, "backend": backend, "dtype": dtype, "versions": versions}
    if not format.dynamic_shapes:
        key["size"] = list(size)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    file = format.path(dtype, None)
    root = cache_folder()
    folder = root / name
    if not (folder / EXPORT_FILE).is_file():
        root.mkdir(parents=True, exist_ok=True)
        with temporary_folder(root) as scratch:
            created = scratch / name
            (created / file).parent.mkdir(parents=True)
            measured = write(created / file)
            record = ExportRecord(file=file, bytes=exported_bytes(created / file), **key, **measured)
            write_record(created / EXPORT_FILE, record)
            try:
                created.rename(folder)
            except OSError:  # not empty: another process was faster
                if not (folder / EXPORT_FILE).is_file():
                    raise
        trim(keep=folder)
    with contextlib.suppress(OSError):  # the cache may be read-only
        os.utime(folder / EXPORT_FILE)  # time of the last use
    return folder / file


def entries() -> list[Entry]:
    """Return the cached models, most recently used first."""
    cached = []
    for path in cache_folder().glob(f"*/{EXPORT_FILE}"):
        record = {}
        with contextlib.suppress(ValueError):
            record = read_json(path)
        with contextlib.suppress(OSError):  # removed by another process
            size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
            cached.append(Entry(path.parent, size, path.stat().st_mtime, record))
    return sorted(cached, key=lambda entry: -entry.used)


def trim(max_bytes: int | None = None, keep: Path | None = None) -> int:
    """Remove the least recently used models until the rest fits, and unfinished folders of killed processes.

    Args:
        max_bytes: Size to keep. Default: `MOBILEVIT_CACHE_BYTES` of the environment, or 2 GiB.
        keep: Folder of a model that is never removed.

    Returns:
        Number of removed bytes.

    Raises:
        ValueError: If `MOBILEVIT_CACHE_BYTES` is not a number.
    """
    if max_bytes is None:
        text = os.environ.get("MOBILEVIT_CACHE_BYTES", str(MAX_BYTES))
        if not text.isdecimal():
            raise ValueError(f"MOBILEVIT_CACHE_BYTES: got {text!r}, expected a number of bytes. Correct or unset it.")
        max_bytes = int(text)
    total = removed = 0
    for entry in entries():
        total += entry.bytes
        if total > max_bytes and entry.folder != keep and _remove(entry.folder):
            total -= entry.bytes
            removed += entry.bytes
    for scratch in temporary_folders(cache_folder()):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > MAX_SCRATCH_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)
    return removed


def clear() -> int:
    """Remove all cached models and return the number of removed bytes."""
    return trim(max_bytes=-1)


def _remove(folder: Path) -> bool:
    """Remove a folder, renamed first so that no process reads half of it; return whether that succeeded."""
    renamed = folder.parent / f"{TEMP_PREFIX}{folder.name}-{os.getpid()}"
    try:
        folder.rename(renamed)
    except OSError:  # in use or removed by another process, or read-only
        return False
    shutil.rmtree(renamed, ignore_errors=True)
    return True
