"""Fetch the test mixins from the source distribution of the installed transformers version.

    python tests/transformers_suite/fetch.py

They are cached outside the checkout, one folder per version: in `$MOBILEVIT_TRANSFORMERS_TESTS` if set, else in
`$XDG_CACHE_HOME/mobilevit_hf` or `~/.cache/mobilevit_hf`. The download uses pip and its settings (index, proxy,
certificates, find-links).
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path, PurePosixPath

PACKAGE = f"transformers-{version('transformers')}"
DOWNLOAD_SECONDS = 300


class SuiteUnavailable(RuntimeError):
    """The tests of the installed transformers version are unavailable; the message is one line."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"The tests of {PACKAGE} are unavailable: {reason}")


def cache_folder() -> Path:
    """Return the folder outside the checkout for the tests of this version."""
    if chosen := os.environ.get("MOBILEVIT_TRANSFORMERS_TESTS"):
        return Path(chosen).expanduser() / PACKAGE
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "mobilevit_hf" / PACKAGE


def fetch() -> Path:
    """Download the tests of the installed transformers version, unless cached, and return their folder.

    Raises:
        SuiteUnavailable: If the download fails, for example without network.
    """
    folder = cache_folder()
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{PACKAGE}-") as scratch:
                _move_into_place(_unpack_tests(_download(Path(scratch))), folder)
        except (OSError, tarfile.TarError) as error:
            raise SuiteUnavailable(error) from error
    return folder / "tests"


def _download(folder: Path) -> Path:
    """Download the source distribution to `folder` by pip."""
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries=1", "--timeout=15"]
    requirement = ["--no-deps", "--no-binary=transformers", f"--dest={folder}", PACKAGE.replace("-", "==", 1)]
    try:
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, *requirement],
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise SuiteUnavailable(f"no download within {error.timeout:g} s") from error
    if pip.returncode != 0:
        reason = (pip.stderr.strip() or pip.stdout.strip() or "pip failed").splitlines()[-1]
        raise SuiteUnavailable(reason)
    return next(folder.glob("*.tar.gz"))


def _unpack_tests(archive_path: Path) -> Path:
    """Unpack the files under tests/ next to the archive."""
    with tarfile.open(archive_path) as archive:
        tests = [member for member in archive if PurePosixPath(member.name).parts[:2] == (PACKAGE, "tests")]
        archive.extractall(archive_path.parent, members=tests, filter="data")
    unpacked = archive_path.parent / PACKAGE
    if not (unpacked / "tests").is_dir():
        raise SuiteUnavailable("the source distribution does not contain them")
    return unpacked


def _move_into_place(unpacked: Path, folder: Path) -> None:
    """Rename atomically, so that the folder is complete or absent; a concurrent process may be faster."""
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


if __name__ == "__main__":
    try:
        print(fetch())
    except SuiteUnavailable as problem:
        sys.exit(str(problem))
