"""Names of images in predictions: relative to the folder that all inputs have in common, and unique."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...redaction import redact
from ..image_formats import IMAGE_SUFFIXES, input_folder, is_url

MAX_BYTES = 200  # of a file name: file systems allow 255, and a number and a suffix are added
# Characters that Windows rejects or that readers of annotations take for separators.
UNSAFE = re.compile(r'[<>:"|?*\\/]')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices on Windows


def relative_names(inputs: Iterable[str], sources: Iterable[str]) -> dict[str, str]:
    """Return the names of images by source: paths relative to the inputs' common folder, and URLs without passwords.

    Args:
        inputs: Arguments of `find_images`.
        sources: Paths and URLs that it returned for them.
    """
    folders = [input_folder(source) for source in inputs if not is_url(source)]
    common = os.path.commonpath(folders) if folders else ""
    return {source: redact(source) if is_url(source) else _relative_name(source, common) for source in sources}


def file_names(names: dict[str, str]) -> dict[str, str]:
    """Return names of copies, by source: safe in any file system, and different without their suffixes.

    Annotations have the name of their image with another suffix. A URL becomes its host and path. Names without an
    image suffix get `.png`.
    """
    taken: set[str] = set()
    result = {}
    for source, name in names.items():
        path = _url_path(source) if is_url(source) else name
        *folders, file = [safe_name(part) for part in path.split("/") if part] or ["image"]
        stem, suffix = posixpath.splitext(file)
        if suffix.lower() not in IMAGE_SUFFIXES:
            stem, suffix = file, ".png"
        stem = "/".join([*folders, stem])
        stems = (f"{stem}-{number}" if number > 1 else stem for number in count(1))
        stem = next(stem for stem in stems if _fold(stem) not in taken)
        taken.add(_fold(stem))
        result[source] = f"{stem}{suffix}"
    return result


def class_folders(classes: Iterable[str]) -> dict[str, str]:
    """Return a safe and unique folder name for each class."""
    taken: set[str] = set()
    folders = {}
    for name in dict.fromkeys(classes):
        safe = safe_name(name)
        safe = next(n for i in count(1) if _fold(n := f"{safe}-{i}" if i > 1 else safe) not in taken)
        taken.add(_fold(safe))
        folders[name] = safe
    return folders


def safe_name(name: str) -> str:
    """Return a name that is one valid, visible file name everywhere: other characters become `_`."""
    name = UNSAFE.sub("_", "".join(c if c.isprintable() else "_" for c in name)).strip()
    name = re.sub(r"^\.|[. ]+$", "_", name) or "_"
    name = f"_{name}" if RESERVED.fullmatch(name) else name
    stem, suffix = posixpath.splitext(name)
    while len(stem.encode()) > MAX_BYTES:
        stem = stem[:-1]
    return f"{stem}{suffix[: MAX_BYTES // 8]}"


def _relative_name(source: str, folder: str) -> str:
    name = Path(os.path.relpath(source, folder)).as_posix()
    return name.encode(errors="backslashreplace").decode()  # undecodable bytes


def _url_path(url: str) -> str:
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}/{unquote(parts.path)}"
    except ValueError:  # which can't be fetched either
        return url


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
