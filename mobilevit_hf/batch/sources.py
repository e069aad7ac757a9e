"""Sources of images: files and folders, Parquet files and WebDataset shards, local, on the Hub or in a bucket.

A source is listed once, in a stream: the paths of a million files are never in memory at the same time, except those
of one remote folder, which fsspec lists as a whole. `sources` is resolved in the parent; `reading` runs in workers.
"""

import dataclasses
import glob
import os
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub.errors import HTTPError

from ..data.image_formats import IMAGE_SUFFIXES, UnreadFiles, input_folder, is_url, is_video, walk_files
from .filesystems import display_name, is_remote, join, local_path, open_file, pin_revision, remote_filesystem
from .types import Chunk

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
PARQUET_SUFFIX = ".parquet"


class FoundFile(NamedTuple):
    """A file of a source.

    Attributes:
        location: Absolute path or URL of a folder; empty for an http(s) URL.
        name: Path relative to it with forward slashes, or the URL.
        is_named: Whether the user named the file itself, so that it is an image whatever its suffix.
    """

    location: str
    name: str
    is_named: bool

    @property
    def path(self) -> str:
        """Path or URL of the file."""
        return join(self.location, self.name)


def find_kind(file: FoundFile) -> Literal["files", "parquet", "webdataset"] | None:
    """Return how a file is read, None if it has no images. Videos are: with the reason why they are not."""
    name = file.name.lower()
    if not is_url(name) and name.endswith(PARQUET_SUFFIX):
        return "parquet"
    if not is_url(name) and name.endswith(TAR_SUFFIXES):
        return "webdataset"
    suffix = os.path.splitext(name)[1]  # noqa: PTH122, many names
    return "files" if file.is_named or suffix in IMAGE_SUFFIXES or is_video(name) else None


class Listing:
    """Lists the files of sources and splits them into chunks.

    Args:
        sources: Paths, glob patterns and URLs: http(s) of an image, or of any file system of fsspec, such as
            "hf://datasets/user/name" or "s3://bucket/folder".
        chunk_size: Maximum number of images per chunk. The rows of a row group of a Parquet file stay in one chunk,
            and a WebDataset shard is one, because it can only be read from its start.
        output: Folder whose files are left out.

    Raises:
        ValueError: If a source does not exist, can't be listed or has no images.
    """

    def __init__(self, sources: Sequence[str], chunk_size: int, output: str) -> None:
        self.sources, self.chunk_size = sources, chunk_size
        self._unread = UnreadFiles()
        self._output = output if is_remote(output) else os.path.abspath(local_path(output))  # noqa: PTH100
        self.notes: list[str] = []
        self.num_files = 0

    def files(self) -> Iterator[FoundFile]:
        """Yield the files of the sources, each once."""
        paths = [local_path(source) for source in self.sources if not is_url(source) and not is_remote(source)]
        folders = {os.path.abspath(path) for path in paths if Path(path).is_dir()}  # noqa: PTH100
        folders = {path for path in folders if not any(str(parent) in folders for parent in Path(path).parents)}
        common = os.path.commonpath([input_folder(path) for path in paths]) if paths else ""
        for folder in sorted(folders):
            for path in walk_files(folder, {self._output}):
                yield FoundFile(common, _relative(path, common), is_named=False)
        seen: set[str] = set()
        for source in self.sources:
            for file in self._find_others(source, common):
                inside = file.path.startswith(tuple(f"{folder}/" for folder in (*folders, self._output)))
                if file.path not in seen and not inside:
                    seen.add(file.path)
                    yield file

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of all files. Afterwards, `num_files` and `notes`, on files that are not read, are set."""
        indices = count()
        for chunk in self._split():
            yield dataclasses.replace(chunk, index=next(indices))
        if unread := self._unread.describe():
            self.notes.append(unread)

    def count_files(self) -> int:
        """Return the number of files that `chunks` would read."""
        return sum(find_kind(file) is not None for file in self.files())

    def _find_others(self, source: str, common: str) -> Iterator[FoundFile]:
        """Yield the files of a source that is no local folder."""
        if is_url(source):
            yield FoundFile("", source, is_named=True)
        elif is_remote(source):
            yield from _find_remote(source)
        elif Path(path := local_path(source)).is_file():
            yield FoundFile(common, _relative(path, common), is_named=True)
        elif not Path(path).is_dir():
            matches = filter(os.path.isfile, glob.iglob(path, recursive=True))  # noqa: PTH207
            found = False
            for match in matches:
                found = True
                yield FoundFile(common, _relative(match, common), is_named=True)
            if not found:
                raise ValueError(f"source: got {source}, expected an existing file, folder or pattern.")

    def _split(self) -> Iterator[Chunk]:
        location, names = "", []

        def flush() -> Iterator[Chunk]:
            if names:
                yield Chunk(0, "files", location, names=tuple(names), num_images=len(names))
                names.clear()

        for file in self.files():
            kind = find_kind(file)
            self.num_files += kind is not None
            if kind == "parquet":
                yield from self._split_parquet(file)
            elif kind == "webdataset":
                yield Chunk(0, kind, file.path, name=display_name(file.name))
            elif kind == "files":
                if file.location != location:
                    yield from flush()
                    location = file.location
                names.append(file.name)
                if len(names) == self.chunk_size:
                    yield from flush()
            else:
                self._unread.add(file.path)
        yield from flush()

    def _split_parquet(self, file: FoundFile) -> Iterator[Chunk]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        from .image_columns import find_image_column

        try:
            with open_file(file.path) as opened, ParquetFile(opened) as parquet:
                column = find_image_column(parquet.schema_arrow)
                sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
                columns = ", ".join(parquet.schema_arrow.names)
        except ArrowException as error:
            raise ValueError(
                f"{file.path}: can't be read as Parquet ({error}). Remove it or download it again."
            ) from error
        if column is None and Path(file.name).name == "metadata.parquet":  # of a folder of image files
            self.notes.append(f"Skipped {file.path}: it has no column of images.")
            return
        if column is None:
            raise ValueError(
                f"{file.path}: got the columns {columns}, expected one of images: structs with bytes or path, bytes, "
                "or paths in image, path, file_name or url. Pass another source."
            )
        start = first_row = rows = 0
        for index, size in enumerate([*sizes, None]):
            if rows and (size is None or rows + size > self.chunk_size):
                yield Chunk(
                    0,
                    "parquet",
                    file.path,
                    name=display_name(file.name),
                    row_groups=(start, index),
                    first_row=first_row,
                    num_images=rows,
                )
                start, first_row, rows = index, first_row + rows, 0
            rows += size or 0


def _find_remote(source: str) -> Iterator[FoundFile]:
    """Yield the files of a URL of fsspec, with a clear error if it can't be read."""
    try:
        yield from _list_remote(source)
    except (OSError, HTTPError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"source: got {source}, which can't be listed ({reason}), expected an accessible folder or file. Check "
            "its name, the connection and the credentials."
        ) from error


def _list_remote(source: str) -> Iterator[FoundFile]:
    """Yield the files of a URL of fsspec: a file, all files below a folder, or the matches of a glob pattern."""
    source = pin_revision(source)
    filesystem, path = remote_filesystem(source)
    if glob.has_magic(path):
        folder = re.split(r"[*?[]", path)[0].rpartition("/")[0]
        names = [name for name in sorted(filesystem.glob(path)) if filesystem.isfile(name)]
        is_named = True
    elif filesystem.isdir(path):
        folder, is_named = path.rstrip("/"), False
        names = (f"{parent}/{name}" for parent, _, files in filesystem.walk(path) for name in sorted(files))
    else:
        folder, is_named = path.rpartition("/")[0], True
        names = [path] if filesystem.exists(path) else []
    location, found = filesystem.unstrip_protocol(folder), False
    for name in names:
        found = True
        yield FoundFile(location, name.removeprefix(folder).lstrip("/"), is_named)
    if not found:
        raise ValueError(f"source: got {source}, expected an existing file, folder or pattern.")


def _relative(path: str, folder: str) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")
