"""Files of an exported model. Importing this module does not import torch."""

import contextlib
import hashlib
from collections.abc import Generator, Sequence
from pathlib import Path

from ..io import move_into_place, remove_abandoned, temporary_folder
from ..records import EXPORT_FILE, ExportRecord


def exported_files(path: Path) -> list[Path]:
    """Return the files of an exported model: OpenVINO stores weights in a second file, Core ML a folder."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def exported_bytes(path: Path) -> int:
    """Return the size of an exported model on disk in bytes, weights included."""
    return sum(file.stat().st_size for file in _all_files(path))


def hash_files(path: Path) -> dict[str, str]:
    """Return the SHA-256 hashes of all files of an exported model, by path relative to its folder.

    They take 1 ms per MB.
    """
    hashes = {}
    for file in _all_files(path):
        with file.open("rb") as opened:
            hashes[file.relative_to(path.parent).as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
    return hashes


def _all_files(path: Path) -> list[Path]:
    files = [file for part in exported_files(path) for file in (part.rglob("*") if part.is_dir() else [part])]
    return sorted(file for file in files if file.is_file())


def check_exported(path: Path, records: Sequence[ExportRecord]) -> None:
    """Check that the files of an exported model are those that one of its records was written for.

    Raises:
        ValueError: If a file is missing, damaged or another one, or if the records have no hashes.
    """
    hashes = hash_files(path)
    if any(record.files == hashes for record in records):
        return
    expected = records[-1].files
    if not expected:
        raise ValueError(f"{path}: got no hash in {EXPORT_FILE}, expected one per file. Run mobilevit export again.")
    name = min(name for name, _ in hashes.items() ^ expected.items())
    actual, recorded = (f"SHA-256 {each[name][:12]}…" if name in each else "no file" for each in (hashes, expected))
    raise ValueError(
        f"{path.parent / name}: got {actual}, expected {recorded} as in {EXPORT_FILE}: it was damaged or replaced. "
        "Run mobilevit export again."
    )


@contextlib.contextmanager
def replace_exported(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path; on success its files replace those at `path`, on failure nothing is left behind."""
    existing = next(folder for folder in path.parents if folder.exists())
    remove_abandoned(existing)
    with temporary_folder(existing) as folder:
        yield folder / path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in exported_files(folder / path.name):
            move_into_place(part, path.parent / part.name)
