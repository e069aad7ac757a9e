"""User paths, JSON files and atomic writes: a file is complete or unchanged, even if the process is killed."""

import contextlib
import json
import math
import os
import shlex
import shutil
import stat
import subprocess
import uuid
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

with contextlib.suppress(ImportError):  # Windows
    import fcntl

# Names of temporary folders: a killed process leaves them behind, and only folders of this name are removed later.
TEMP_PREFIX = ".mobilevit-tmp-"
# File in each entry of the cache that holds the entry's name: nothing else in the cache folder is removed.
CACHE_MARKER = ".mobilevit-cache-entry"
# Far more than a configuration or a record needs; a larger file would fill the memory.
MAX_JSON_BYTES = 64 * 2**20


def user_path(path: str | Path) -> Path:
    """Expand a leading `~` to the home folder; unchanged for an unknown user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, Path.expanduser raises for an unknown user


def quote_words(*words: str | Path) -> str:
    """Return the words of a command, such as paths with spaces, quoted for the shell of this system."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(map(str, words))


def count_noun(number: int, noun: str) -> str:
    """Return a number and a noun, such as "1 image" or "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def home_folder() -> Path | None:
    """Return the home folder, None without `HOME` and an entry in the user database, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def cache_folder() -> Path:
    """Return the cache folder: `MOBILEVIT_CACHE`, or `mobilevit_hf` in the user's cache folder.

    Raises:
        ValueError: If neither is known.
    """
    if folder := os.environ.get("MOBILEVIT_CACHE"):
        return user_path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder, "mobilevit_hf")
    if (home := home_folder()) is None:
        raise ValueError("MOBILEVIT_CACHE: got no value and no home folder, expected a folder. Set it, or HOME.")
    return home / ".cache" / "mobilevit_hf"


def mark_cache_entry(folder: Path, name: str) -> None:
    """Mark a finished folder as an entry of the cache, before it is renamed to `name`."""
    (folder / CACHE_MARKER).write_text(name, encoding="utf-8")


def is_cache_entry(folder: Path) -> bool:
    """Return whether a folder is an entry of the cache: not a copy under another name, nor a link to one."""
    with contextlib.suppress(OSError):
        marker = folder / CACHE_MARKER
        return not folder.is_symlink() and marker.is_file() and marker.read_bytes() == folder.name.encode()
    return False


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Generator[Path, None, None]:
    """Create a folder in `parent` that is removed at the end.

    Its mode follows the umask, unlike that of Python's `tempfile`: `move_into_place` reads it.
    """
    folder = parent / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # a file system without locks
            stack.enter_context(_lock(folder))
        yield folder


def temporary_folders(parent: Path) -> list[Path]:
    """Return the temporary folders in `parent`, those of running processes included."""
    return [path for path in parent.glob(f"{TEMP_PREFIX}*") if path.is_dir() and not path.is_symlink()]


def remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders in `parent` that killed processes left behind."""
    for folder in temporary_folders(parent):
        with contextlib.suppress(OSError), _lock(folder):  # in use, or on a system without locks of folders
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Generator[None, None, None]:
    """Hold a lock on a folder, which the system releases if the process is killed.

    Raises:
        OSError: If another process holds it, or the system can't lock folders.
    """
    descriptor = os.open(folder, os.O_RDONLY)  # an error on Windows
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def move_into_place(source: Path, target: Path) -> None:
    """Move a file or folder of a `temporary_folder` to `target`, flushed to the disk and with modes by the umask.

    A file is replaced atomically. An existing folder is first moved into the temporary folder.
    """
    _finish(source)
    _replace(source, target)
    _sync(target.parent)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Generator[Path, None, None]:
    """Create a temporary folder whose entries are moved into `folder`, each atomically, once all are on the disk.

    After an error, nothing is moved.
    """
    with temporary_folder(folder) as temporary:
        yield temporary
        entries = sorted(temporary.iterdir())
        for entry in entries:
            _finish(entry)
        for entry in entries:
            _replace(entry, folder / entry.name)
    _sync(folder)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file in an existing folder atomically, with a function that writes to the open file."""
    with atomic_folder(path.parent) as temporary, (temporary / path.name).open("wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file that contains an object (`dict`) or an array (`list`); empty if the file does not exist.

    Raises:
        ValueError: If it is not a file, can't be read, is too large or contains another type. The message is one line.
    """
    if not path.exists():
        return kind()
    if not path.is_file():  # reading a pipe or a device may never end
        raise ValueError(f"{path}: got {'a folder' if path.is_dir() else 'no file'}, expected a JSON file. Remove it.")
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        limit = MAX_JSON_BYTES // 2**20
        raise ValueError(f"{path}: got {size // 2**20} MiB, expected at most {limit}. Remove or fix it.")
    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: can't be read ({error}). Remove or fix it.") from error
    if not isinstance(values, kind):
        expected = "a JSON array" if kind is list else "a JSON object"
        raise ValueError(f"{path}: got {type(values).__name__}, expected {expected}. Remove or fix it.")
    return values


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that may come from elsewhere; bytes are UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        ValueError: If it is invalid, too deeply nested, or contains a number that is not finite as a float.
    """
    reject = partial(_parse_number, float)
    try:
        return json.loads(text, parse_constant=reject, parse_float=reject, parse_int=partial(_parse_number, int))
    except RecursionError:
        raise ValueError("too deeply nested") from None


def _parse_number(kind: type[int] | type[float], text: str) -> int | float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"got {text[:20]}, expected a finite number")
    return value if kind is float else int(text)


def _finish(path: Path) -> None:
    """Flush a file or folder of a temporary folder to the disk, and set the modes that the umask gives."""
    by_umask = path.parent.stat().st_mode & 0o777
    for part in (path, *path.rglob("*")):
        mode = stat.S_IMODE(part.stat().st_mode)
        expected = mode & ~0o777 | (by_umask if part.is_dir() else by_umask & 0o666)
        if mode != expected:
            with contextlib.suppress(OSError):  # a file system without modes
                part.chmod(expected)
        _sync(part)


def _replace(source: Path, target: Path) -> None:
    """Rename a file or folder of a temporary folder; a target that is in the way is moved into that folder."""
    if target.is_dir() and not target.is_symlink():
        target.rename(source.with_name(f"{source.name}.replaced"))
    source.replace(target)


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows can't open folders
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
