"""Fetch the test mixins that transformers carries in its source distribution, for the very version installed.

    python tests/transformers_suite/fetch.py

They are kept outside the checkout, one folder a version: in `$MOBILEVIT_TRANSFORMERS_TESTS` if that is set, else in
`$XDG_CACHE_HOME/mobilevit_hf` or `~/.cache/mobilevit_hf`. Pip does the download, so its own settings (index, proxy,
certificates, find-links) apply.
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
    """The tests of the installed transformers cannot be had; the message is one line."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"the tests of {PACKAGE} are not at hand: {reason}")


def cache_folder() -> Path:
    """The folder outside the checkout that holds the tests of this version, there or not."""
    if chosen := os.environ.get("MOBILEVIT_TRANSFORMERS_TESTS"):
        return Path(chosen).expanduser() / PACKAGE
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "mobilevit_hf" / PACKAGE


def fetch() -> Path:
    """The folder with the tests of the installed transformers version, downloaded unless it is there.

    Raises:
        SuiteUnavailable: Without network, say.
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
    """Have pip put the source distribution into `folder`."""
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries=1", "--timeout=15"]
    what = ["--no-deps", "--no-binary=transformers", f"--dest={folder}", PACKAGE.replace("-", "==", 1)]
    try:
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, *what],
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise SuiteUnavailable(f"no download in {error.timeout:g} s") from error
    if pip.returncode != 0:
        reason = (pip.stderr.strip() or pip.stdout.strip() or "pip failed").splitlines()[-1]
        raise SuiteUnavailable(reason)
    return next(folder.glob("*.tar.gz"))


def _unpack_tests(archive_path: Path) -> Path:
    """Unpack the files under tests/, and no others, beside the archive."""
    with tarfile.open(archive_path) as archive:
        tests = [member for member in archive if PurePosixPath(member.name).parts[:2] == (PACKAGE, "tests")]
        archive.extractall(archive_path.parent, members=tests, filter="data")
    unpacked = archive_path.parent / PACKAGE
    if not (unpacked / "tests").is_dir():
        raise SuiteUnavailable("its source distribution has none")
    return unpacked


def _move_into_place(unpacked: Path, folder: Path) -> None:
    """Rename, so that the folder is either whole or absent; of two processes the faster one wins."""
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
