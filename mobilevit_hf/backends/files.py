"""Files of an exported model. Importing this module does not import torch."""

import contextlib
from collections.abc import Generator
from pathlib import Path

from ..io import move_into_place, temporary_folder


def exported_files(path: Path) -> list[Path]:
    """Return the files of an exported model: OpenVINO stores weights in a second file, Core ML a folder."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def exported_bytes(path: Path) -> int:
    """Return the size of an exported model on disk in bytes, weights included."""
    files = [file for part in exported_files(path) for file in ([part] if part.is_file() else part.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


@contextlib.contextmanager
def replace_exported(path: Path) -> Generator[Path, None, None]:
    """Yield a scratch path; on success its files replace those at `path`, on failure nothing is left behind."""
    existing = next(folder for folder in path.parents if folder.exists())
    with temporary_folder(existing) as folder:
        yield folder / path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in exported_files(folder / path.name):
            move_into_place(part, path.parent / part.name)
