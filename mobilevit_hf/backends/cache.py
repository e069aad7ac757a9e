"""Cache of the models that were exported on first use."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..io import (
    CACHE_MARKER,
    TEMP_PREFIX,
    cache_folder,
    is_cache_entry,
    mark_cache_entry,
    read_json,
    remove_abandoned,
    temporary_folder,
)
from ..model_sources import ASSETS, builtin_models
from ..records import EXPORT_FILE, ExportRecord, read_record, write_record
from .files import check_exported, exported_bytes, hash_files
from .formats import FORMATS, Format
from .interfaces import Interface

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MAX_BYTES = 2 * 2**30
BUILTIN = "built-in "
HUB_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/")  # folder of a model in the cache of huggingface_hub

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
    weights: str,
    backend: str,
    dtype: str,
    size: tuple[int, int],
    write: Callable[[Path], dict[str, Any]],
    source: str | None = None,
    interface: Interface = "tensors",
) -> Path:
    """Return the cached exported file for a model's weights, exporting it if it is missing.

    If two processes export the same model at once, one of the two results is kept.

    Args:
        weights: Hash from `weights_hash`.
        size: Height and width of the image processor's output.
        write: Writes the file and returns further fields of its `ExportRecord`.
        source: Name of the model from `name_source`, recorded for `mobilevit cache`.
        interface: Interface of the file.
    """
    format = FORMATS[backend]
    versions = package_versions(format)
    key: dict[str, Any] = {"weights": weights, "backend": backend, "dtype": dtype, "versions": versions}
    if interface != "tensors":
        key["interface"] = interface
    if not format.dynamic_shapes or interface != "tensors":
        key["size"] = list(size)
    name = hashlib.sha256(f"{CACHE_MARKER} {json.dumps(key, sort_keys=True)}".encode()).hexdigest()[:32]
    file = format.file.format(suffix=format.suffixes[dtype])
    root = cache_folder()
    folder = root / name
    if not _is_complete(folder, file):
        with _writable(root) as scratch:
            created = scratch / name
            (created / file).parent.mkdir(parents=True)
            measured = write(created / file)
            measured |= {"bytes": exported_bytes(created / file), "files": hash_files(created / file)}
            write_record(created / EXPORT_FILE, ExportRecord(file=file, source=source, **key, **measured))
            mark_cache_entry(created, name)
            try:
                created.rename(folder)
            except OSError:  # not empty: another process was faster
                if not _is_complete(folder, file):
                    raise
        trim(keep=folder)
    with contextlib.suppress(OSError):  # the cache may be read-only
        if source and (record := read_entry(folder / file)).source != source:
            record.source = source
            write_record(folder / EXPORT_FILE, record)
        os.utime(folder / EXPORT_FILE)  # time of the last use
    return folder / file


def name_source(source: str) -> str:
    """Return a model's name in the cache: "built-in NAME", the absolute path of its folder, or its Hub id."""
    path = Path(source).absolute()
    if path.parent == ASSETS:
        return f"{BUILTIN}{path.name}"
    if match := HUB_SNAPSHOT.search(path.as_posix()):
        return match[1].replace("--", "/")
    return str(path) if path.is_dir() else source


def describe_source(source: str | None, weights: str) -> str:
    """Return a model's name from `name_source` for a list, and whether the model is not there any more.

    Args:
        weights: Hash of its weights, which stands for an unknown name.
    """
    if source is None:
        return f"unknown model, weights {weights[:12]}"
    if source.startswith(BUILTIN):
        is_present = source.removeprefix(BUILTIN) in builtin_models()
    elif Path(source).is_absolute():
        is_present = Path(source, "config.json").is_file()
    else:
        from huggingface_hub import try_to_load_from_cache

        is_present = isinstance(try_to_load_from_cache(source, "config.json"), str)
    return source if is_present else f"{source} (no longer present)"


def read_entry(path: Path) -> ExportRecord:
    """Return the record of a file of `get_or_create`."""
    record = read_record(path.parents[1] / EXPORT_FILE, ExportRecord)
    assert record is not None
    return record


@contextlib.contextmanager
def _writable(root: Path) -> Generator[Path, None, None]:
    """Create a temporary folder in the cache."""
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(temporary_folder(root))
        except OSError as error:
            raise ValueError(
                f"{root}: the cache can't be written ({error}). Set MOBILEVIT_CACHE to a folder that can be."
            ) from error
        yield scratch


def _is_complete(folder: Path, file: str) -> bool:
    """Return whether an entry has the file that its record names by hash; remove an incomplete entry."""
    with contextlib.suppress(ValueError, OSError):
        if record := read_record(folder / EXPORT_FILE, ExportRecord):
            check_exported(folder / file, [record])
            return True
    if is_cache_entry(folder):
        _remove(folder)
    return False


def entries() -> list[Entry]:
    """Return the cached models, most recently used first. Other folders are ignored."""
    cached = []
    for path in (folder / EXPORT_FILE for folder in cache_folder().glob("*") if is_cache_entry(folder)):
        record = {}
        with contextlib.suppress(ValueError):
            record = read_json(path)
        with contextlib.suppress(OSError):  # removed by another process
            cached.append(Entry(path.parent, folder_bytes(path.parent), path.stat().st_mtime, record))
    return sorted(cached, key=lambda entry: -entry.used)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


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
    remove_abandoned(cache_folder())
    return removed


def clear() -> int:
    """Remove all cached models, unpacked datasets and downloads, and return the number of removed bytes."""
    from ..data.archives import unpacked_archives  # imports torch

    removed = trim(max_bytes=-1)
    others = [*unpacked_archives(), *filter(is_cache_entry, cache_folder().glob("*"))]
    sizes = {folder: folder_bytes(folder) for folder in others}
    return removed + sum(size for folder, size in sizes.items() if _remove(folder))


def _remove(folder: Path) -> bool:
    """Remove a folder, renamed first so that no process reads half of it; return whether that succeeded."""
    renamed = folder.parent / f"{TEMP_PREFIX}{folder.name}-{os.getpid()}"
    try:
        folder.rename(renamed)
    except OSError:  # in use or removed by another process, or read-only
        return False
    shutil.rmtree(renamed, ignore_errors=True)
    return True
