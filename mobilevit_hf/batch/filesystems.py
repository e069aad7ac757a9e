"""File systems of fsspec: `hf://`, `s3://`, `gs://` and others, next to local paths."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import IO, Any

from fsspec.core import url_to_fs

LOCAL = "file://"
OBJECT_STORES = ("hf://", "s3://", "gs://", "az://")
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")


def is_remote(source: str) -> bool:
    """Return whether a source is a URL of fsspec for anything but local files and http(s)."""
    return bool(_PROTOCOL.match(source)) and not source.startswith((LOCAL, "http://", "https://"))


def local_path(source: str) -> str:
    """Return the path of a local source, which may be a `file://` URL."""
    return source.removeprefix(LOCAL)


def remote_filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it.

    Credentials are those of the environment: `HF_TOKEN` or `hf auth login`, `AWS_*`, ...

    Raises:
        ValueError: If its package is not installed or the protocol is unknown.
    """
    protocol = url.partition("://")[0]
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"source: got {protocol}://, which needs another package. {error}.") from error
    except ValueError as error:
        known = ", ".join(OBJECT_STORES)
        raise ValueError(f"source: got {protocol}:// ({error}), expected a path or a URL such as {known}.") from error


@contextmanager
def open_file(path: str) -> Generator[IO[bytes]]:
    """Open a local file or one of fsspec for reading."""
    if is_remote(path):
        filesystem, name = remote_filesystem(path)
        with filesystem.open(name, "rb") as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file


def read_remote(url: str) -> bytes:
    """Return the content of a file of fsspec."""
    filesystem, name = remote_filesystem(url)
    return filesystem.cat_file(name)


def pin_revision(url: str) -> str:
    """Return a URL of the Hub with the commit of its revision, others unchanged: later commits change no chunk."""
    if not url.startswith("hf://"):
        return url
    filesystem, path = remote_filesystem(url)
    resolved = filesystem.resolve_path(path)
    if not getattr(resolved, "repo_id", None):  # a bucket has no revisions
        return url
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=filesystem.endpoint, token=filesystem.token)
    info = api.repo_info(resolved.repo_id, repo_type=resolved.repo_type, revision=resolved.revision)
    prefix = constants.REPO_TYPES_URL_PREFIXES.get(resolved.repo_type, "")
    return f"hf://{prefix}{resolved.repo_id}@{info.sha}/{resolved.path_in_repo}".rstrip("/")


def join(location: str, name: str) -> str:
    """Return the path or URL of a file in a folder."""
    return f"{location.rstrip('/')}/{name}" if location else name


def display_name(name: str) -> str:
    """Return a name with undecodable bytes escaped."""
    return name.encode(errors="backslashreplace").decode()
