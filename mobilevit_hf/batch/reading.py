"""Read the images of a chunk: files, rows of a Parquet file, or members of a WebDataset shard."""

import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from ..data.archives import ARCHIVE_ERRORS, BLOCK
from ..data.image_formats import IMAGE_SUFFIXES, describe_format, is_inside, is_url
from ..data.images import MAX_READ_BYTES, UnreadableImageError, download
from ..redaction import redact
from .filesystems import OBJECT_STORES, display_name, is_remote, join, local_path, open_file, read_remote
from .image_columns import find_image_column
from .types import Chunk

ROWS = 32  # of a Parquet file that are read at a time


@dataclass(frozen=True)
class SourceImage:
    """An image of a chunk.

    Attributes:
        name: Name of the image in its source.
        read: Returns its path or content; raises `UnreadableImageError`.
    """

    name: str
    read: Callable[[], Path | bytes]

    def __str__(self) -> str:
        return self.name


def read_chunk(chunk: Chunk) -> Iterator[SourceImage]:
    """Yield the images of a chunk in their order.

    Raises:
        ValueError, OSError: If a Parquet file can't be read, or a file system fails.
    """
    readers = {"files": _read_files, "parquet": _read_parquet, "webdataset": _read_shard}
    return readers[chunk.kind](chunk)


def _read_files(chunk: Chunk) -> Iterator[SourceImage]:
    for name in chunk.names:
        path = join(chunk.location, name)
        yield SourceImage(redact(display_name(name)), partial(_read_path, path))


def _read_path(path: str) -> Path | bytes:
    """Return the path of a local image, or the content of one at a URL."""
    if is_url(path):
        return download(path)
    if not is_remote(path):
        return Path(local_path(path))
    _check_suffix(path)
    try:
        return read_remote(path)
    except FileNotFoundError as error:  # another error is not the image's, and ends the job, which can be resumed
        raise UnreadableImageError("no such file") from error


def _read_parquet(chunk: Chunk) -> Iterator[SourceImage]:
    from pyarrow.parquet import ParquetFile

    folder = chunk.location.rpartition("/")[0]
    with open_file(chunk.location) as opened, ParquetFile(opened) as parquet:
        column = find_image_column(parquet.schema_arrow)
        groups = range(*chunk.row_groups)
        if column is None or groups.stop > parquet.num_row_groups:
            raise ValueError(f"{chunk.location}: changed since the job was started. Restore it, or start a new job.")
        row = chunk.first_row
        for batch in parquet.iter_batches(ROWS, row_groups=list(groups), columns=[column]):
            for value in batch.column(0).to_pylist():
                yield SourceImage(f"{chunk.name}#{row}", partial(_read_value, value, folder))
                row += 1


def _read_value(value: Any, folder: str) -> Path | bytes:
    """Return the path or content of an image in a Parquet file."""
    path = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        if path:
            _check_suffix(path)
        return value
    path = value or path
    if not path:
        raise UnreadableImageError("no image in this row")
    return _read_path(_locate(path, folder))


def _locate(path: str, folder: str) -> str:
    """Return the path or URL of an image that a row names.

    A Parquet file of others must not read any file of this machine: `local://` and chains with `::` would.
    """
    if is_url(path) or (path.startswith(OBJECT_STORES) and "::" not in path):
        return path
    if is_remote(folder):
        located = join(folder, posixpath.normpath(path))
        is_outside = posixpath.normpath(path).partition("/")[0] in ("", "..")
    else:
        located = os.path.normpath(os.path.join(folder, path))  # noqa: PTH118
        is_outside = not is_inside(located, os.path.normpath(folder))
    if is_outside or is_remote(path):
        raise UnreadableImageError(f"{path} is outside of the Parquet file's folder")
    return located


def _read_shard(chunk: Chunk) -> Iterator[SourceImage]:
    """Yield the images of a tar file: members whose name is a key and the suffix of an image, as in WebDataset.

    Further images of a sample have two suffixes, such as the mask `0001.seg.png`, and are left out. If the file is
    damaged, its last row is its own name with the reason.
    """
    reason = None
    with open_file(chunk.location) as opened:
        try:
            for name, content in _tar_images(opened):
                yield SourceImage(f"{chunk.name}/{display_name(name)}", partial(_checked_content, name, content))
        except ARCHIVE_ERRORS as error:
            reason = f"can't be read to its end: {error}"
    if reason:
        yield SourceImage(chunk.name, partial(_raise_unreadable, reason))


def _tar_images(file: IO[bytes]) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name and content of each image of a tar file; None if it is too large."""
    with tarfile.open(fileobj=file) as opened:
        archive: Any = opened
        while member := archive.next():
            suffixes = posixpath.basename(member.name).lower().lstrip(".").split(".")[1:]
            if member.isfile() and len(suffixes) == 1 and f".{suffixes[0]}" in IMAGE_SUFFIXES:
                content = archive.extractfile(member)
                yield member.name, content.read() if member.size <= MAX_READ_BYTES else None
            archive.members = []  # of all so far
        # tarfile takes a damaged header for the end, and the checksum of a compressed file is at its very end.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("damaged header")
        while archive.fileobj.read(BLOCK):
            pass


def _checked_content(name: str, content: bytes | None) -> bytes:
    _check_suffix(name)
    if content is None:
        raise UnreadableImageError(f"more than {MAX_READ_BYTES // 2**20} MiB")
    return content


def _check_suffix(name: str) -> None:
    if reason := describe_format(name):
        raise UnreadableImageError(reason)


def _raise_unreadable(reason: str) -> Path:
    raise UnreadableImageError(reason)
