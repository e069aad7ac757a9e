"""Find the files that annotations refer to, also by paths that are valid on the machine of the exporter only."""

import functools
import posixpath
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from .folder import SPLIT_NAMES, DataFolder, is_image_name

# Words that a folder's name may have next to that of a split, as in `train_images` or `obj_train_data`.
NEUTRAL_WORDS = frozenset(
    re.findall(
        r"\w+",
        "annotation annotations annot annots anno annos bbox bboxes boxes coco data dataset image images img imgs "
        "instances jpegimages json label labels obj object objects pascal seg set split txt voc xml xmls yolo",
    )
)
UPLOAD_PREFIX = re.compile(r"(^|[/\\])[0-9a-f]{8}-(?=[^/\\]+$)")  # which Label Studio adds to uploaded files


class Reference(NamedTuple):
    """Paths of one file, relative to the dataset's folder: those to try, and those to compare other files with."""

    exact: Sequence[str]
    similar: Sequence[str]


class FileIndex:
    """Files of a dataset by path. Case and Unicode normalization don't matter, and suffixes may be left out."""

    def __init__(self, folder: DataFolder, names: Iterable[str]) -> None:
        self.folder = folder
        self.names = list(names)
        self._by_path: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for name in self.names:
            path = _key(posixpath.splitext(name)[0])
            self._by_path.setdefault(path, []).append(name)
            self._by_stem.setdefault(posixpath.basename(path), []).append(name)
        self._suffixes = {posixpath.splitext(name)[1].lower() for name in self.names}
        self._splits = {split_of(posixpath.dirname(name)) for name in self.names}

    @classmethod
    def of_images(cls, folder: DataFolder) -> "FileIndex":
        """Return an index of the folder's images, without links to other folders."""
        names = (name for name, kind in folder.walk() if kind == "file" and is_image_name(name))
        return cls(folder, (name for name in names if folder.locate([name])[0]))

    def find(self, path: str) -> str | None:
        """Return the file of a path, a JPEG first if the path has no suffix."""
        normalized = self.folder.normalize(path)
        if normalized is None:
            return None
        stem, suffix = self._split_suffix(normalized)
        names = [name for name in self._by_path.get(_key(stem), ()) if name.lower().endswith(suffix)]
        rank = {name: (name != normalized, not name.startswith(stem), ".jp" not in name.lower()) for name in names}
        return min(names, key=rank.__getitem__, default=None)

    def find_similar(
        self, path: str, split: str | None, folders: Collection[str], taken: Collection[str]
    ) -> tuple[str | None, str]:
        """Return the file of the same name whose folders have most in common with a path, or None and the reason.

        Args:
            path: Path that doesn't exist.
            split: Split of the annotations, None for that of the path: if it has folders of its own, those of other
                splits don't count.
            folders: Folders whose files don't count.
            taken: Files that don't count.
        """
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        stem, suffix = self._split_suffix(parts[-1] if parts else "")
        split = split or split_of("/".join(parts[:-1]))
        own = self._splits - {None}
        names = [
            name
            for name in self._by_stem.get(_key(stem), ())
            if name.lower().endswith(suffix)
            and name not in taken
            and posixpath.dirname(name) not in folders
            and (split not in own or split_of(posixpath.dirname(name)) in (None, split))
        ]
        scores = [_count_common(name.split("/")[:-1], parts[:-1]) for name in names]
        best = [name for name, score in zip(names, scores, strict=True) if score == max(scores)]
        if len(best) == 1:
            return best[0], ""
        return None, f"{len(best)} files of this name, such as {best[0]} and {best[1]}" if best else ""

    def _split_suffix(self, path: str) -> tuple[str, str]:
        stem, suffix = posixpath.splitext(path)
        return (stem, suffix.lower()) if suffix.lower() in self._suffixes else (path, "")


def match_files(
    index: FileIndex, references: Sequence[Reference], note: str = "", split: str | None = None
) -> list[tuple[str | None, str]]:
    """Return the file of each reference, or None and the reason.

    A file that no exact path leads to is matched by its name, if that is unambiguous and the file is in a folder that
    no exact path leads to: the same name next to a file that was found is that of another one.

    Args:
        index: Files that may be referred to.
        references: Paths by annotation.
        note: Note about what is matched by its name, behind the number; "" for none.
        split: See `FileIndex.find_similar`.
    """
    results: list[tuple[str | None, str]] = []
    for reference in references:
        found = next((name for path in _decode(reference.exact) if (name := index.find(path))), None)
        results.append((found, ""))
    folders = {posixpath.dirname(name) for name, _ in results if name}
    taken: dict[str, str] = {}
    for i, reference in enumerate(references):
        if results[i][0]:
            continue
        found, reason = None, ""
        for path, candidate in _similar_paths(reference.similar):
            found, explanation = index.find_similar(candidate, split, folders, taken)
            reason = reason or explanation
            if found:
                taken[found] = path
                break
        results[i] = (found, "" if found else reason or _explain_missing(index.folder, reference))
    if taken and note:
        first, path = next(iter(taken.items()))
        index.folder.notes.append(f"{len(taken)} {note}, such as {first} for {path}.")
    return results


@functools.lru_cache(maxsize=10_000)
def split_of(directory: str) -> str | None:
    """Return the split that a folder, or else one of its parents, is named after."""
    for part in reversed(directory.lower().split("/")):
        words = re.findall(r"[a-z]+", part)
        splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
        if len(splits) == 1 and all(word in SPLIT_NAMES or word in NEUTRAL_WORDS for word in words):
            return splits.pop()
    return None


def split_of_file(name: str) -> str | None:
    """Return the split that a file's name contains as a word, or that its folder is named after."""
    words = re.findall(r"[a-z]+", posixpath.basename(name).lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), split_of(posixpath.dirname(name)))


def parents(directory: str) -> list[str]:
    """Return a directory and those that contain it, up to `"."`."""
    parts = [] if directory in ("", ".") else directory.split("/")
    return ["/".join(parts[:count]) or "." for count in range(len(parts), -1, -1)]


def _key(path: str) -> str:
    return path.lower() if path.isascii() else unicodedata.normalize("NFC", path).casefold()


def _decode(paths: Iterable[str]) -> Iterable[str]:
    """Yield paths, and those of URLs also decoded and without a query, but for Label Studio's `?d=` of local files."""
    for path in paths:
        yield path
        if "%" in path or "?" in path:
            yield unquote(path.replace("?d=", "/").partition("?")[0])


def _similar_paths(paths: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Yield decoded paths, and what to look for: last their names without the prefix of an upload."""
    decoded = list(_decode(paths))
    yield from zip(decoded, decoded, strict=True)
    yield from ((path, UPLOAD_PREFIX.sub(r"\1", path)) for path in decoded if UPLOAD_PREFIX.search(path))


def _count_common(folders: Sequence[str], others: Sequence[str]) -> int:
    """Return how many folders two paths have in common, at their start and at their end."""
    first, second = ([_key(part) for part in parts] for parts in (folders, others))
    total = 0
    for parts, other_parts in ((first, second), (first[::-1], second[::-1])):
        for part, other in zip(parts, other_parts, strict=False):
            if part != other:
                break
            total += 1
    return total


def _explain_missing(folder: DataFolder, reference: Reference) -> str:
    if all(folder.normalize(path) is None for path in reference.exact):
        return f"{reference.exact[0]} is outside of the dataset's folder, and there is no other file of its name"
    return f"no file of the name {posixpath.basename(reference.similar[0])}"
