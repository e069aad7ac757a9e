"""Folder of a dataset: its splits, its images by name, and protection against paths that lead out of it."""

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from PIL import ExifTags

from ..images import IMAGE_SUFFIXES, open_header
from ..types import Problem, ProblemKind

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ROTATED_ORIENTATIONS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
# A file without any of these near its start is upright; searching takes a tenth of the time of Pillow's open.
EXIF_MARKERS = (b"Exif", b"eXIf", b"ns.adobe.com/xap")


class DataFolder:
    """A folder whose files are looked up by their relative path.

    Directories are listed once. A link that leads out of the folder counts as missing: a dataset from an untrusted
    source must not include other files of this machine. The links of the Hub's cache are followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.problems: list[Problem] = []  # see `Dataset`
        self.notes: list[str] = []
        blobs = self.root.parents[1] / "blobs" if self.root.parent.name == "snapshots" else self.root
        self._allowed = tuple(f"{str(path).rstrip(os.sep)}{os.sep}" for path in (self.root, blobs))
        self._listings: dict[str, dict[str, str]] = {}

    def report(self, name: str, kind: ProblemKind, reason: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(name, kind, reason))

    def path(self, name: str) -> str:
        """Return the path of a file by its name, which is relative to the folder, with forward slashes."""
        return f"{self.root}/{name}"

    def entries(self, directory: str) -> dict[str, str]:
        """Return the sorted entries of a directory (`"."` for the folder): name → "file", "folder" or "outside"."""
        if directory not in self._listings:
            self._listings[directory] = self._list(directory)
        return self._listings[directory]

    def files(self, directory: str) -> list[str]:
        """Return the names of the files in a directory, without its subfolders, in alphabetical order."""
        return [join(directory, base) for base, kind in self.entries(directory).items() if kind == "file"]

    def read_lines(self, name: str, errors: str = "replace") -> list[str]:
        """Return the stripped lines of a UTF-8 text file that are not empty."""
        with open(self.path(name), encoding="utf-8-sig", errors=errors) as file:
            return [stripped for line in file if (stripped := line.strip())]

    def locate(self, candidates: Iterable[str]) -> tuple[str | None, str]:
        """Return the name of the first existing file among several relative paths, or None and the reason."""
        tried: dict[str, str | None] = {}
        for candidate in candidates:
            name = self.normalize(candidate)
            directory, base = posixpath.split(name or "")
            tried[candidate] = self.entries(directory or ".").get(base) if name else "outside"
            if tried[candidate] == "file":
                return name, ""
        if "outside" in tried.values():
            return None, f"{next(iter(tried))} is outside of the dataset's folder"
        return None, f"no such file: {' or '.join(tried)}"

    def normalize(self, path: str) -> str | None:
        """Return a relative path without `.`, `..` and backslashes, None if it is invalid or outside."""
        path = path.replace("\\", "/")
        prefix = f"{self.root.as_posix()}/"
        name = posixpath.normpath(path.removeprefix(prefix)) if path else ".."
        is_drive = len(name) > 1 and name[1] == ":"
        return None if name.startswith(("/", "../")) or name == ".." or "\0" in name or is_drive else name

    def images(self, directory: str) -> list[str]:
        """Return the names of all images below a directory, in alphabetical order, without hidden files."""
        names = []
        for base, kind in self.entries(directory).items():
            name, is_image = join(directory, base), is_image_name(base)
            if kind == "folder":
                names += self.images(name)
            elif kind == "file" and is_image:
                names.append(name)
            elif kind == "outside" and (is_image or not posixpath.splitext(base)[1]):
                self.report_outside(name)
        return names

    def report_outside(self, name: str) -> None:
        """Add the problem of an entry of kind "outside"."""
        self.report(name, "missing image", "not a regular file, or a link out of the dataset's folder")

    def _list(self, directory: str) -> dict[str, str]:
        path = os.path.join(self.root, directory)  # noqa: PTH118
        if not os.path.isdir(path) or not self._is_inside(path):  # noqa: PTH112
            return {}
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
        return {entry.name: self._kind(entry) for entry in sorted(visible, key=lambda entry: entry.name)}

    def _kind(self, entry: os.DirEntry) -> str:
        if entry.is_symlink() and (not self._is_inside(entry.path) or self._is_ancestor(entry.path)):
            return "outside"
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "outside"

    def _is_inside(self, path: str) -> bool:
        return f"{os.path.realpath(path)}{os.sep}".startswith(self._allowed)

    @staticmethod
    def _is_ancestor(path: str) -> bool:
        """Return whether a link leads to a folder that contains it."""
        return f"{os.path.dirname(path)}{os.sep}".startswith(f"{os.path.realpath(path)}{os.sep}")  # noqa: PTH120


def join(directory: str, base: str) -> str:
    """Return the name of an entry of a directory, which may be `"."`."""
    return posixpath.normpath(f"{directory}/{base}")


def is_image_name(name: str) -> bool:
    """Return whether a file name has an image suffix."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def split_folders(folder: DataFolder, directory: str = ".") -> dict[str, str]:
    """Return the folders in a directory that are named like splits, by split; two for the same one are an error."""
    folders: dict[str, str] = {}
    for base, kind in folder.entries(directory).items():
        split = SPLIT_NAMES.get(base.lower())
        if split in folders and kind == "folder":
            raise ValueError(
                f"{folder.root}: got {posixpath.basename(folders[split])} and {base}, expected one {split} split. "
                "Remove or rename one."
            )
        if split and kind == "folder":
            folders[split] = join(directory, base)
    return {split: folders[split] for split in ("train", "validation", "test") if split in folders}


def read_size(source: str | bytes) -> tuple[tuple[int, int], bool]:
    """Return the upright (width, height) of an image, and whether EXIF data rotates it by 90 degrees."""
    with open_header(source) as image:
        is_rotated = image.getexif().get(ExifTags.Base.Orientation) in ROTATED_ORIENTATIONS
        return image.size[::-1] if is_rotated else image.size, is_rotated


def has_exif(path: str) -> bool:
    """Return whether an image file may have EXIF data, from a quick search of its start."""
    if not path.lower().endswith((".jpg", ".jpeg", ".png")):
        return True
    with open(path, "rb") as file:
        start = file.read(8192)
    return any(marker in start for marker in EXIF_MARKERS)
