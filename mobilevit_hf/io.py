"""User paths, JSON files and atomic writes: a file is complete or unchanged, even if the process is killed."""

import json
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# Prefix of temporary folders; a killed process leaves them behind, and training and caches remove them later.
TEMP_PREFIX = ".scratch-"


def user_path(path: str | Path) -> Path:
    """Expand a leading `~` to the home folder; unchanged for an unknown user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, Path.expanduser raises for an unknown user


@contextmanager
def atomic_folder(folder: Path) -> Generator[Path, None, None]:
    """Create a temporary folder whose files are moved into `folder`, each atomically, once all are on the disk.

    After an error, nothing is moved.
    """
    with tempfile.TemporaryDirectory(prefix=TEMP_PREFIX, dir=folder) as name:
        temporary = Path(name)
        yield temporary
        for file in sorted(temporary.iterdir()):
            if file.is_file():
                _sync(file)
                file.replace(folder / file.name)
    _sync(folder)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file in an existing folder atomically, with a function that writes to the open file."""
    with atomic_folder(path.parent) as temporary, (temporary / path.name).open("wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; empty if the file does not exist.

    Raises:
        ValueError: If the file can't be read or contains another type.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: can't be read ({error}). Remove or fix it.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {type(values).__name__}, expected a JSON object. Remove or fix it.")
    return values


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows can't open folders
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
