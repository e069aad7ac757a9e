"""Install the tested version of transformers.js.

It is kept outside the checkout, in one folder per version next to that of `transformers_suite/fetch.py`; 0.5 GB. npm
downloads it, so npm's settings (registry, proxy, certificates, cache) apply.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from transformers_suite.fetch import DOWNLOAD_SECONDS, cache_folder

VERSION = "4.3.2"


class NotInstalledError(RuntimeError):
    """transformers.js can't be installed; the message is one line."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"transformers.js {VERSION} is not available: {reason}")


def install() -> Path:
    """Return the folder with `node_modules`, installing it on first use.

    Raises:
        NotInstalledError: Without npm or a network connection.
    """
    folder = cache_folder().with_name(f"transformers.js-{VERSION}")
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
                _run_npm(Path(scratch) / "install")
                (Path(scratch) / "install").rename(folder)
        except OSError as error:
            if not folder.is_dir():  # otherwise another process was faster
                raise NotInstalledError(error) from error
    return folder


def _run_npm(folder: Path) -> None:
    """Install into `folder` without install scripts: onnxruntime's downloads GPU libraries."""
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstalledError("npm is not installed")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1"]
    try:
        process = subprocess.run(
            [npm, "install", *options, f"--prefix={folder}", f"@huggingface/transformers@{VERSION}"],
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalledError(f"download timed out after {error.timeout:g} s") from error
    if process.returncode != 0:
        raise NotInstalledError((process.stderr.strip() or "npm failed").splitlines()[0])
