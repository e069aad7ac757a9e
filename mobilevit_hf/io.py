"""Paths as users write them, and files that are written whole or not at all, whatever happens meanwhile."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# How the names of folders begin in which something is not whole yet; a process that is killed leaves them behind.
SCRATCH = ".scratch-"


def user_path(path: str | Path) -> Path:
    """A path with the home folder for a leading ~; as it is if it names a user whom nobody knows."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, Path's own fails at such a user


@contextmanager
def put_in_place(folder: Path) -> Iterator[Path]:
    """A folder to write files into, which are moved into another, each in one move, once all are on the disk."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as name:
        scratch = Path(name)
        yield scratch
        for file in sorted(scratch.iterdir()):
            if file.is_file():
                _sync(file)
                file.replace(folder / file.name)
    _sync(folder)


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file whole or not at all.

    Args:
        path: In a folder that is there.
        write: Writes it, given the open file.
    """
    with put_in_place(path.parent) as scratch, (scratch / path.name).open("wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; an empty one if there is no such file.

    Raises:
        ValueError: If the file can't be read or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read ({error}). Remove or fix it.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {type(values).__name__}, expected a JSON object. Remove or fix it.")
    return values


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
