"""Output directory of a training run: lock, and files that a new run must not mix with."""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"
# Files of a run that has no checkpoint yet: options, log lines, and the folder of TensorBoard.
RECIPE_FILE, HISTORY_FILE, TABLE_FILE = "recipe.yaml", "metrics.jsonl", "results.csv"
TRACKER_PROJECT = "mobilevit_hf"
TEST_FILE = "evaluation-test.json"  # of the saved weights
FOLDS_FOLDER = "folds"  # models of a cross-validation
# Launchers and schedulers write logs into the directory before training starts.
LOG_SUFFIXES = (".log", ".out", ".err")


class OutputDirInUseError(ValueError):
    """Another training writes to the output directory."""


@contextmanager
def lock_output_dir(folder: Path) -> Generator[None, None, None]:
    """Create a directory and hold a lock on it, which the operating system releases if the process is killed.

    Directories that were created for it are removed at the end if nothing was written to them.

    Raises:
        OutputDirInUseError: If another process holds the lock.
        ValueError: If the directory can't be written to.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise OutputDirInUseError(
                f"output_dir: got {folder}, to which another training writes, expected one of its own. Wait until the "
                "other one ends, or choose another --output-dir."
            ) from None
        except OSError as error:
            raise ValueError(
                f"output_dir: {folder} can't be written ({error.strerror or error}). Choose another --output-dir."
            ) from error
        yield
    finally:
        if lock.is_locked and os.name != "nt":  # on Windows, an open file can't be removed
            (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()
        for path in created:
            with suppress(OSError):  # not empty
                path.rmdir()


def list_files(folder: Path) -> list[str]:
    """Return the names of the files and folders in a directory, without logs, hidden files and empty folders."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        entry.name
        for entry in entries
        if not entry.name.startswith(".")
        and entry.suffix not in LOG_SUFFIXES
        and not (entry.is_dir() and all(inner.name.startswith(".") for inner in entry.iterdir()))
    ]
