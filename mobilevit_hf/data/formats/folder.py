"""Folder of a dataset: its splits, its images by name, and protection against paths that lead out of it."""

import codecs
import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..image_formats import IMAGE_SUFFIXES
from ..images import open_header, read_orientation
from ..types import Problem, ProblemKind

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Files in the output of a training run, whose figures are never data: here, of transformers and of ultralytics.
RUN_FILES = ("run.json", "model.safetensors", "args.yaml")
RUNS = "runs"
# Folders that macOS, Synology and `mobilevit predict` leave; hidden ones are skipped too.
IGNORED_FOLDERS = ("__MACOSX", "@eaDir", "mobilevit-samples")
MAX_DEPTH = 64  # of nested folders
BLOCK = 2**20
ROTATED_ORIENTATIONS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
# A file without any of these near its start is upright; searching takes a tenth of the time of Pillow's open.
EXIF_MARKERS = (b"Exif", b"eXIf", b"ns.adobe.com/xap")


class DataFolder:
    """A folder whose files are looked up by their relative path.

    Directories are listed once, without hidden files and the output of training runs. Links to images and folders
    elsewhere are followed where images are listed, because a user made them on this machine. Paths written in
    annotation files are followed within the folder only: a dataset from an untrusted source must not include other
    files of this machine. The links of the Hub's cache are always followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.problems: list[Problem] = []  # see `Dataset`
        self.notes: list[str] = []
        blobs = self.root.parents[1] / "blobs" if self.root.parent.name == "snapshots" else self.root
        self._allowed = tuple(f"{str(path).rstrip(os.sep)}{os.sep}" for path in (self.root, blobs))
        self._listings: dict[str, dict[str, str]] = {}
        self._walked: list[tuple[str, str]] | None = None
        self._by_suffix: dict[str, list[str]] | None = None
        self._linked: set[str] = set()  # files and folders whose link leads out of the folder
        self._reported: set[str] = set()  # entries of kind "outside"

    def subfolder(self, name: str) -> "DataFolder":
        """Return a folder in this one, with links to files of this one allowed."""
        inner = DataFolder(self.root / name)
        inner._allowed += self._allowed
        return inner

    def report(self, name: str, kind: ProblemKind, reason: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(name, kind, reason))

    def path(self, name: str) -> str:
        """Return the path of a file by its name, which is relative to the folder, with forward slashes."""
        return f"{self.root}/{name}"

    def entries(self, directory: str) -> dict[str, str]:
        """Return the sorted entries of a directory (`"."` for the folder): name → "file", "folder" or "outside".

        "outside" is what must not be read: links in a cycle, to nothing, or to files elsewhere that are not images.
        """
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
            if tried[candidate] == "file" and not self._linked.isdisjoint((name, directory)):
                tried[candidate] = "outside"
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
        for name, kind in self.walk(directory):
            is_image = is_image_name(name)
            if kind == "file" and is_image:
                names.append(name)
            elif kind == "outside" and (is_image or not posixpath.splitext(name)[1]):
                self.report_outside(name)
        return names

    def walk(self, directory: str = ".") -> Iterator[tuple[str, str]]:
        """Yield the names and kinds of all entries below a directory, in alphabetical order, without its folders."""
        if directory != ".":
            yield from self._walk(directory)
            return
        if self._walked is None:  # several formats look for their files
            self._walked = list(self._walk("."))
        yield from self._walked

    def _walk(self, directory: str) -> Iterator[tuple[str, str]]:
        parents = [(directory, iter(self.entries(directory).items()))]
        while parents:
            parent, entries = parents[-1]
            prefix = "" if parent == "." else f"{parent}/"
            for base, kind in entries:
                if kind == "folder":
                    name = f"{prefix}{base}"
                    parents.append((name, iter(self.entries(name).items())))
                    break
                yield f"{prefix}{base}", kind
            else:
                parents.pop()

    def files_by_suffix(self) -> dict[str, list[str]]:
        """Return the names of all files by their suffix in lower case."""
        if self._by_suffix is None:
            self._by_suffix = {}
            for name, kind in self.walk():
                if kind == "file":
                    self._by_suffix.setdefault(posixpath.splitext(name)[1].lower(), []).append(name)
        return self._by_suffix

    def has_images(self, directory: str) -> bool:
        """Return whether there is any image below a directory."""
        return any(kind == "file" and is_image_name(name) for name, kind in self.walk(directory))

    def report_outside(self, name: str) -> None:
        """Add the problem of an entry of kind "outside", once."""
        if name in self._reported:
            return
        self._reported.add(name)
        path = self.path(name)
        if os.path.islink(path):  # noqa: PTH114
            reason = "a link in a cycle, to nothing, or to a file outside of the dataset's folder"
        elif name.count("/") >= MAX_DEPTH:
            reason = f"a folder within more than {MAX_DEPTH} others"
        else:
            reason = "not a regular file"
        self.report(name, "missing image", reason)

    def _list(self, directory: str) -> dict[str, str]:
        parent, base = posixpath.split(directory)
        if directory != "." and (
            directory.count("/") >= MAX_DEPTH or self.entries(parent or ".").get(base) != "folder"
        ):
            return {}
        path = os.path.join(self.root, directory)  # noqa: PTH118
        if not os.path.isdir(path):  # noqa: PTH112
            return {}
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith((".", *IGNORED_FOLDERS))]
        if not self._is_inside(path):
            self._linked.add(directory)
        kinds = {}
        prefix = "" if directory == "." else f"{directory}/"
        for entry in sorted(visible, key=lambda entry: entry.name):
            name = f"{prefix}{entry.name}"
            kind = self._kind(entry, name)
            if kind == "folder" and is_run(entry.path):
                self.notes.append(f"Skipped {name}, the output of a training run.")
            else:
                kinds[entry.name] = kind
        return kinds

    def _kind(self, entry: os.DirEntry, name: str) -> str:
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself
            return "outside"
        if is_folder and name.count("/") >= MAX_DEPTH:
            return "outside"
        if entry.is_symlink():
            if is_folder and os.path.realpath(entry.path) in self._chain(posixpath.dirname(name) or "."):
                return "outside"
            if not self._is_inside(entry.path):
                if is_file and not is_image_name(entry.name):
                    return "outside"
                self._linked.add(name)
        return "folder" if is_folder else "file" if is_file else "outside"

    def _chain(self, directory: str) -> set[str]:
        """Return the resolved paths of a directory, of the directories on the way to it, and of their parents."""
        chain: set[str] = set()
        while True:
            resolved = os.path.realpath(self.path(directory))
            chain |= {resolved, *map(str, Path(resolved).parents)}
            if directory == ".":
                return chain
            directory = posixpath.dirname(directory) or "."

    def _is_inside(self, path: str) -> bool:
        return f"{os.path.realpath(path)}{os.sep}".startswith(self._allowed)


def is_run(path: str) -> bool:
    """Return whether a folder is the output of a training run, or the folder `runs` of several."""
    if any(os.path.isfile(os.path.join(path, name)) for name in RUN_FILES):  # noqa: PTH113, PTH118
        return True
    if os.path.basename(path) != RUNS:  # noqa: PTH119
        return False
    with os.scandir(path) as entries:
        return any(entry.is_dir() and is_run(entry.path) for entry in entries)


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
        is_rotated = read_orientation(image) in ROTATED_ORIENTATIONS
        return image.size[::-1] if is_rotated else image.size, is_rotated


def has_exif(path: str) -> bool:
    """Return whether an image file may have EXIF data, from a quick search of its start."""
    if not path.lower().endswith((".jpg", ".jpeg", ".png")):
        return True
    with open(path, "rb") as file:
        start = file.read(8192)
    return any(marker in start for marker in EXIF_MARKERS)


def text_encoding(path: str) -> str:
    """Return the encoding of a text file: UTF-8, UTF-16 with a byte order mark, or else that of Windows."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        file.seek(0)
        try:
            while block := file.read(BLOCK):
                decoder.decode(block)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8-sig"
