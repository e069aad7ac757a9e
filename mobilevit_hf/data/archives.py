"""Unpack archives of datasets (.zip, .tar, .tar.gz, ...) into the package's cache: safely, and whole or not at all."""

import gzip
import hashlib
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any

from ..io import cache_folder, is_cache_entry, mark_cache_entry, temporary_folder
from .formats.folder import MAX_DEPTH

FOLDER, CONTENT = "datasets", "content"  # in the cache, and in an entry
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
SUFFIXES = (".zip", *TAR_SUFFIXES)
OTHER_SUFFIXES = (".rar", ".7z", ".gz", ".bz2", ".xz", ".zst")
MAX_FILES = 2_000_000
# An archive that grows more when it is unpacked is a decompression bomb: images are compressed already.
MIN_BYTES, MAX_RATIO = 2**30, 20
BLOCK = 2**20
ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, LZMAError, EOFError, NotImplementedError),
)


def is_archive(path: Path) -> bool:
    """Return whether a file has the suffix of an archive."""
    return path.name.lower().endswith((*SUFFIXES, *OTHER_SUFFIXES))


def unpack(path: Path) -> Path:
    """Return the folder in the cache with the content of an archive, which is unpacked on the first use.

    The same content is unpacked once, whatever the name of the file.

    Raises:
        ValueError: If it is no archive, is damaged or encrypted, contains links or paths that lead out of the folder,
            or is too large when unpacked. Nothing is left then.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{path}: got an archive that is not read, expected one of {', '.join(SUFFIXES)}. Unpack it.")
    root = cache_folder()
    with path.open("rb") as file:
        folder = root / FOLDER / hashlib.file_digest(file, "sha256").hexdigest()[:32]
    if not is_cache_entry(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(root) as scratch:
            content = scratch / folder.name / CONTENT
            content.mkdir(parents=True)
            try:
                _extract(path, content)
            except ARCHIVE_ERRORS as error:
                raise ValueError(f"{path} can't be unpacked: {error}. Download it again, or unpack it.") from error
            mark_cache_entry(content.parent, folder.name)
            try:
                content.parent.rename(folder)
            except OSError:  # not empty: another process was faster
                if not is_cache_entry(folder):
                    raise
    return folder / CONTENT


def unpacked_archives() -> list[Path]:
    """Return the folders of unpacked archives in the cache."""
    return [*filter(is_cache_entry, (cache_folder() / FOLDER).glob("*"))]


def _extract(path: Path, folder: Path) -> None:
    limit = min(max(MIN_BYTES, MAX_RATIO * path.stat().st_size), shutil.disk_usage(folder).free)
    total = 0
    members = _zip_members(path) if path.name.lower().endswith(".zip") else _tar_members(path)
    for number, (name, file) in enumerate(members, start=1):
        target = folder / _checked_name(path, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with file, target.open("wb") as copy:
            while block := file.read(BLOCK):
                total += len(block)
                if total > limit or number > MAX_FILES:
                    excess = f"{MAX_FILES} files" if number > MAX_FILES else f"{limit // 2**20} MiB"
                    raise ValueError(
                        f"{path}: got more than {excess}, expected at most {MAX_FILES} files, {MAX_RATIO} times the "
                        "archive's size and the free space. Unpack it if you trust its source."
                    )
                copy.write(block)


def _zip_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.flag_bits & 1:
                raise ValueError(f"{path}: {entry.filename} is encrypted. Unpack the archive with its password.")
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"{path}: {entry.filename} is a link or device, expected files. Unpack the archive.")
            if not entry.is_dir():
                yield entry.filename, archive.open(entry)


def _tar_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(path) as archive:
        for entry in archive:
            if entry.isdir():
                continue
            file = archive.extractfile(entry) if entry.isreg() else None
            if file is None:
                raise ValueError(f"{path}: {entry.name} is a link or device, expected files. Unpack the archive.")
            yield entry.name, file
        # tarfile takes a damaged header for the end, and the checksum of a compressed file is at its very end.
        stream: Any = archive.fileobj
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("damaged header")
        while stream.read(BLOCK):
            pass


def _checked_name(path: Path, name: str) -> str:
    """Return the relative path of a member."""
    cleaned = posixpath.normpath(name.replace("\\", "/"))
    parts = cleaned.split("/")
    if cleaned.startswith("/") or ".." in parts or ":" in parts[0] or len(parts) > MAX_DEPTH:
        raise ValueError(f"{path}: got the path {name[:200]!r}, expected paths within the folder. Check the archive.")
    return cleaned
