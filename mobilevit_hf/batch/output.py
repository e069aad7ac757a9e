"""The folder of a job's output: parts, and files that describe the job and how far it is."""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ..io import TEMP_PREFIX, remove_abandoned, write_atomically
from .filesystems import is_remote, local_path, open_file, remote_filesystem
from .types import OutputFormat

# Readers of folders leave these out: pyarrow and Spark names with an underscore, `datasets` names without a suffix.
CHUNKS_FILE = "_chunks"  # JSON lines
JOB_FILE = "_job"  # JSON, written after the chunks
SUMMARY_FILE = "_summary"  # JSON
SUCCESS_FILE = "_SUCCESS"  # written last, empty
_PART = re.compile(r"part-(\d{8,})\.(parquet|jsonl)")


def part_name(index: int, output_format: OutputFormat) -> str:
    """Return the name of the part of a chunk."""
    return f"part-{index:08d}.{output_format}"


def find_parts(names: list[str]) -> set[int]:
    """Return the indices of the parts among file names."""
    return {int(match[1]) for name in names if (match := _PART.fullmatch(name))}


class OutputFolder:
    """A local folder, or one of fsspec whose files appear when they are complete, as in object stores.

    Args:
        location: Path or URL.
    """

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/") or location
        self._filesystem, self._path = remote_filesystem(self.location) if is_remote(location) else (None, "")
        self._folder = Path(local_path(self.location))

    def names(self) -> list[str]:
        """Return the names of all files, empty if the folder does not exist.

        Raises:
            ValueError: If it is a file.
        """
        if self._filesystem:
            with suppress(FileNotFoundError):
                paths = self._filesystem.ls(self._path, detail=False, refresh=True)
                return [path.rstrip("/").rpartition("/")[2] for path in paths]
            return []
        if self._folder.exists() and not self._folder.is_dir():
            raise ValueError(f"output: got a file, {self._folder}, expected a folder. Pass another path.")
        if not self._folder.is_dir():
            return []
        return [path.name for path in self._folder.iterdir() if not path.name.startswith(TEMP_PREFIX)]

    def prepare(self) -> None:
        """Create the folder, and remove what killed processes left in it."""
        if not self._filesystem:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self._folder)

    def open(self, name: str) -> Any:
        """Return a context manager with a file, opened for reading."""
        return open_file(f"{self.location}/{name}")

    def read_lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a text file."""
        with self.open(name) as file:
            for line in file:
                yield line.decode()

    def write(self, name: str, write: Callable[[IO[bytes]], Any]) -> None:
        """Write a file with a function that writes to the open file. It appears whole, in place of an older one."""
        if not self._filesystem:
            write_atomically(self._folder / name, write)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            with path.open("wb") as file:
                write(file)
            self._filesystem.put_file(str(path), f"{self._path}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        with suppress(FileNotFoundError):
            if self._filesystem:
                self._filesystem.rm_file(f"{self._path}/{name}")
            else:
                (self._folder / name).unlink()
