"""A dataset's folder: its splits, its images by name, and nothing that lies outside."""

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from PIL import ExifTags

from ..images import IMAGE_SUFFIXES, open_header
from ..types import Problem

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
QUARTER_TURNS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
# A file without any of these near its start is upright; looking takes a tenth of the time of Pillow's open.
EXIF_MARKS = (b"Exif", b"eXIf", b"ns.adobe.com/xap")


class DataFolder:
    """A folder in which images are looked up by their path below it.

    Folders are listed once. A link that leads out of the folder counts as missing: what a dataset from elsewhere
    names must not make other files of this machine part of it. The Hub's cache is made of such links, and allowed.

    Attributes:
        root: The folder, resolved.
        problems: What was found wrong in it so far.
        notes: Decisions to tell the user.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        blobs = self.root.parents[1] / "blobs" if self.root.parent.name == "snapshots" else self.root
        self._allowed = tuple(f"{str(path).rstrip(os.sep)}{os.sep}" for path in (self.root, blobs))
        self._listings: dict[str, dict[str, str]] = {}

    def report(self, name: str, kind: str, reason: str) -> None:
        """Add to the problems."""
        self.problems.append(Problem(name, kind, reason))

    def path(self, name: str) -> str:
        """The file of a name, which is its path below the folder with forward slashes."""
        return f"{self.root}/{name}"

    def name(self, path: Path) -> str:
        """The name of a path that starts with the folder's."""
        return path.relative_to(self.root).as_posix()

    def entries(self, directory: str) -> dict[str, str]:
        """What is in a directory, `"."` being the folder: names to `"file"`, `"folder"` or `"outside"`, sorted."""
        if directory not in self._listings:
            self._listings[directory] = self._list(directory)
        return self._listings[directory]

    def locate(self, candidates: Iterable[str]) -> tuple[str | None, str]:
        """The first of several paths below the folder at which there is a file.

        Returns:
            Its name, None if there is none, and why.
        """
        tried, outside = [], False
        for candidate in candidates:
            name = self.normal(candidate)
            directory, base = posixpath.split(name or "")
            kind = self.entries(directory or ".").get(base) if name else "outside"
            if kind == "file":
                return name, ""
            outside |= kind == "outside"
            tried.append(candidate)
        if outside:
            return None, f"{tried[0]} leads out of the dataset's folder, which is not followed"
        return None, f"no such file: {' or '.join(dict.fromkeys(tried))}"

    def normal(self, path: str) -> str | None:
        """A path below the folder without `.`, `..` and backslashes; None if it leads out or is not a path."""
        path = path.replace("\\", "/")
        prefix = f"{self.root.as_posix()}/"
        name = posixpath.normpath(path.removeprefix(prefix)) if path else ".."
        is_drive = len(name) > 1 and name[1] == ":"
        return None if name.startswith(("/", "../")) or name == ".." or "\0" in name or is_drive else name

    def images(self, directory: str) -> list[str]:
        """The names of all images below a directory, in alphabetical order, hidden files left out."""
        found = []
        for base, kind in self.entries(directory).items():
            name = base if directory == "." else f"{directory}/{base}"
            is_image = is_image_name(base)
            if kind == "folder":
                found += self.images(name)
            elif kind == "file" and is_image:
                found.append(name)
            elif kind == "outside" and (is_image or not posixpath.splitext(base)[1]):
                self.report(name, "missing image", "no file, or a link out of the dataset's folder")
        return found

    def _list(self, directory: str) -> dict[str, str]:
        path = os.path.join(self.root, directory)  # noqa: PTH118
        if not os.path.isdir(path) or not self._is_inside(path):  # noqa: PTH112
            return {}
        with os.scandir(path) as entries:
            kinds = {
                entry.name: self._kind(entry) for entry in entries if not entry.name.startswith((".", "__MACOSX"))
            }
        return dict(sorted(kinds.items()))

    def _kind(self, entry: os.DirEntry) -> str:
        if entry.is_symlink() and (not self._is_inside(entry.path) or self._is_above(entry.path)):
            return "outside"
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "outside"

    def _is_inside(self, path: str) -> bool:
        return f"{os.path.realpath(path)}{os.sep}".startswith(self._allowed)

    @staticmethod
    def _is_above(path: str) -> bool:
        """Whether a link leads to a folder, in which it may lie itself."""
        return f"{os.path.dirname(path)}{os.sep}".startswith(f"{os.path.realpath(path)}{os.sep}")  # noqa: PTH120


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def split_folders(folder: DataFolder, directory: str = ".") -> dict[str, str]:
    """The folders in a directory that are named like splits, by the split's name.

    Raises:
        ValueError: If two are the same split.
    """
    found: dict[str, str] = {}
    for base, kind in folder.entries(directory).items():
        split = SPLIT_NAMES.get(base.lower())
        if split is None or kind != "folder":
            continue
        if split in found:
            raise ValueError(
                f"{folder.root} holds {posixpath.basename(found[split])} and {base}, both the {split} split. Keep one."
            )
        found[split] = base if directory == "." else f"{directory}/{base}"
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def read_size(source: str | bytes) -> tuple[tuple[int, int], bool]:
    """The width and height that an image is stored in, and whether EXIF turns it by a quarter.

    Args:
        source: The path or the content of its file, of which the header is read.

    Raises:
        One of `DECODER_ERRORS` if its header can't be read.
    """
    with open_header(source) as image:
        return image.size, image.getexif().get(ExifTags.Base.Orientation) in QUARTER_TURNS


def may_be_turned(path: str) -> bool:
    """Whether it takes a closer look to know that EXIF doesn't turn an image.

    Raises:
        OSError: If it can't be read.
    """
    if not path.lower().endswith((".jpg", ".jpeg", ".png")):
        return True
    with open(path, "rb") as file:
        head = file.read(8192)
    return any(mark in head for mark in EXIF_MARKS)
