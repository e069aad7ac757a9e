"""Install transformers.js, in the version that the tests are for.

It is kept outside the checkout, one folder a version, beside what `transformers_suite/fetch.py` keeps; 0.5 GB. Npm
does the download, so its own settings (registry, proxy, certificates, cache) apply.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from transformers_suite.fetch import DOWNLOAD_SECONDS, cache_folder

VERSION = "4.3.1"


class NotInstalled(RuntimeError):
    """There is no transformers.js; the message is one line."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"transformers.js {VERSION} is not at hand: {reason}")


def install() -> Path:
    """The folder with `node_modules`, filled unless it is there.

    Raises:
        NotInstalled: Without npm or network, say.
    """
    folder = cache_folder().with_name(f"transformers.js-{VERSION}")
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
                _run_npm(Path(scratch) / "whole")
                (Path(scratch) / "whole").rename(folder)
        except OSError as error:
            if not folder.is_dir():  # else another process was faster
                raise NotInstalled(error) from error
    return folder


def _run_npm(folder: Path) -> None:
    """Have npm install into `folder`, and run no scripts: onnxruntime's would download what only a GPU needs."""
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstalled("there is no npm on this machine")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1"]
    try:
        process = subprocess.run(
            [npm, "install", *options, f"--prefix={folder}", f"@huggingface/transformers@{VERSION}"],
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"no download in {error.timeout:g} s") from error
    if process.returncode != 0:
        raise NotInstalled((process.stderr.strip() or "npm failed").splitlines()[0])
