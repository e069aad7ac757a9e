"""Programs that were exported on first use, kept for the next time."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedConfig

from ..io import SCRATCH, user_path
from .formats import FORMATS, Format

RECORD = "export.json"
MAX_BYTES = 2 * 2**30
# Something unfinished this old was left behind by a process that was killed.
SCRATCH_SECONDS = 24 * 3600

# What of a configuration changes the answers of given weights; the rest is in their shapes.
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
    """A program in the cache."""

    folder: Path
    bytes: int
    used: float
    record: dict[str, Any]


def cache_folder() -> Path:
    """Where programs are kept: `MOBILEVIT_CACHE`, or `mobilevit_hf` in the user's cache folder."""
    if folder := os.environ.get("MOBILEVIT_CACHE"):
        return user_path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobilevit_hf"


def weights_hash(model: nn.Module) -> str:
    """A name for what a model computes: its weights, and what of its configuration they don't show."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    digest.update(json.dumps(_fields(model.config), sort_keys=True).encode())
    return digest.hexdigest()


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    fields = {name: getattr(config, name) for name in CONFIG_FIELDS if getattr(config, name, None) is not None}
    backbone = getattr(config, "backbone_config", None)
    return fields if backbone is None else {**fields, "backbone": _fields(backbone)}


def versions(format: Format) -> dict[str, str]:
    """What a program depends on beside the model."""
    return {name: _version(name) for name in ("mobilevit-hf", "torch", *format.packages)}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # It is installed under another name, as onnxruntime-gpu is, or runs from its source.
        return importlib.import_module(package.replace("-", "_")).__version__


def fetch(
    weights: str, backend: str, dtype: str, size: tuple[int, int], write: Callable[[Path], dict[str, Any]]
) -> Path:
    """The program for a model's weights, exported if it isn't there yet.

    Two processes that want the same program at once each export it, and one of the two is kept.

    Args:
        weights: From `weights_hash`.
        backend: A key of `formats.FORMATS`.
        dtype: What it computes in.
        size: Height and width of the model's images.
        write: Writes the program into a folder, under its `Format.path`, and returns what to record of it.

    Returns:
        The program's file.
    """
    format = FORMATS[backend]
    facts = {"weights": weights, "backend": backend, "dtype": dtype, "versions": versions(format)}
    if not format.any_size:
        facts["size"] = list(size)
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    root = cache_folder()
    folder, file = root / name, format.path(dtype, None)
    if not (folder / RECORD).is_file():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=root, ignore_cleanup_errors=True) as scratch:
            new = Path(scratch) / name
            (new / file).parent.mkdir(parents=True)
            record = facts | write(new)
            (new / RECORD).write_text(json.dumps(record, indent=2) + "\n")
            try:
                new.rename(folder)
            except OSError:  # another process was faster: then its folder is not empty
                if not (folder / RECORD).is_file():
                    raise
        trim(keep=folder)
    with contextlib.suppress(OSError):  # a cache may be for reading only
        os.utime(folder / RECORD)  # when it was last used
    return folder / file


def entries() -> list[Entry]:
    """What is in the cache, the one used last first."""
    found = []
    for record in cache_folder().glob(f"*/{RECORD}"):
        with contextlib.suppress(OSError):  # another process is removing it
            size = sum(file.stat().st_size for file in record.parent.rglob("*") if file.is_file())
            found.append(Entry(record.parent, size, record.stat().st_mtime, _read(record)))
    return sorted(found, key=lambda entry: -entry.used)


def _read(record: Path) -> dict[str, Any]:
    """What was recorded of a program; nothing, if that is damaged."""
    try:
        facts = json.loads(record.read_text())
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def trim(max_bytes: int | None = None, keep: Path | None = None) -> int:
    """Remove what was not used for longest until the rest fits, and what killed processes left behind.

    Args:
        max_bytes: How much may stay. Default: `MOBILEVIT_CACHE_BYTES` of the environment, or 2 GiB.
        keep: A program's folder that stays whatever it takes.

    Returns:
        How many bytes were removed.

    Raises:
        ValueError: If the environment's limit is no number.
    """
    limit = _limit() if max_bytes is None else max_bytes
    total = removed = 0
    for entry in entries():
        total += entry.bytes
        if total > limit and entry.folder != keep and _remove(entry.folder):
            total -= entry.bytes
            removed += entry.bytes
    for scratch in _leftovers(SCRATCH_SECONDS):
        shutil.rmtree(scratch, ignore_errors=True)
    return removed


def clear() -> int:
    """Remove everything; returns how many bytes."""
    return trim(max_bytes=-1)


def _limit() -> int:
    text = os.environ.get("MOBILEVIT_CACHE_BYTES", str(MAX_BYTES))
    if not text.isdecimal():
        raise ValueError(f"MOBILEVIT_CACHE_BYTES: got {text!r}, expected a number of bytes. Correct or unset it.")
    return int(text)


def _remove(folder: Path) -> bool:
    """Take a program away at once, then delete it: nobody finds half of it. Whether it could be."""
    away = folder.parent / f"{SCRATCH}{folder.name}-{os.getpid()}"
    try:
        folder.rename(away)
    except OSError:  # another process removes it, or uses it, or it may only be read
        return False
    shutil.rmtree(away, ignore_errors=True)
    return True


def _leftovers(seconds: float) -> Iterator[Path]:
    for folder in cache_folder().glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > seconds:
                yield folder


def read_record(path: Path) -> list[dict[str, Any]]:
    """What an `export.json` says of each file; nothing, if it is no such file."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
