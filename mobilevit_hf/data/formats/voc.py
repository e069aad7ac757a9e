"""Pascal VOC XML: one file per image, in `Annotations` next to `JPEGImages` and `ImageSets`, or next to the images."""

import math
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..types import Dataset
from .annotations import INVALID_BOX, AnnotatedImage, Annotation, find_classes, make_splits, note_unused
from .folder import SPLIT_NAMES, DataFolder, is_image_name
from .lookup import FileIndex, Reference, match_files, parents, split_of

TASKS = ("object-detection",)
IMAGE_SETS = ("ImageSets/Main", "ImageSets")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", ".")
MAX_FILES = 100  # XML files that are searched for an annotation
MAX_BYTES = 16_000_000  # larger XML files are not read
CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Encodings that the parser may not know. A declared UTF-16 is wrong where the declaration itself can be read.
DECLARED_ENCODING = re.compile(
    rb"<\?xml[^>]*encoding=[\"'](iso-?8859-?\d+|latin-?1|windows-?\d+|cp\d+|gb\w+|big5|shift_?jis|euc-?\w+|koi8-?\w)[\"']",
    re.IGNORECASE,
)
ROOT = re.compile(r"\s*(<\?.*?\?>\s*|<!--.*?-->\s*)*<annotation[\s>]", re.DOTALL)
# A list may have a second column: whether the image contains a class.
FLAG = re.compile(r"\s+-?[01]$")


def recognizes(folder: DataFolder) -> bool:
    """Return whether there is an XML file with an `annotation` in any subfolder."""
    return any(_is_annotation(folder.path(name)) for name in _xml_files(folder)[:MAX_FILES])


def read(folder: DataFolder) -> Dataset:
    """Read Pascal VOC XML.

    The image of an XML file is that of the same name in the same folder or next to it (`JPEGImages`, `images`, with
    the same subfolders), or else the one that is named in the file, or else the only one of that name. Coordinates are
    used unchanged, whether they start at 0 or 1, and objects marked as difficult are included. Splits are the lists in
    `ImageSets/Main` (images that only `trainval` lists go to the split without a list of its own), or next to the
    images, or else folders named like splits, or else all images are the training split. Classes are those of the
    training split in alphabetical order.

    Raises:
        ValueError: If there are no XML files.
    """
    if not _xml_files(folder):
        raise ValueError(f"{folder.root}: got no XML files, expected Annotations/*.xml next to JPEGImages.")
    index = FileIndex.of_images(folder)
    images = {split: _read_files(index, names, split) for split, names in _files_by_split(folder).items()}
    note_unused(index, images, "without a valid XML file in a split")
    classes, labels = find_classes(images)
    return Dataset("object-detection", classes, make_splits(folder, images, labels), "voc")


def _xml_files(folder: DataFolder) -> list[str]:
    return folder.files_by_suffix().get(".xml", [])


def _is_annotation(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return ROOT.match(_decode(file.read(4096), errors="ignore")) is not None
    except (OSError, ValueError, LookupError):
        return False


def _files_by_split(folder: DataFolder) -> dict[str, list[str]]:
    files = _xml_files(folder)
    if listed := _read_lists(folder, FileIndex(folder, files)):
        return listed
    by_split: dict[str, list[str]] = {}
    for name in files:
        by_split.setdefault(split_of(posixpath.dirname(name)) or "train", []).append(name)
    return by_split


def _find_lists(folder: DataFolder) -> list[str]:
    """Return the lists of images, in `ImageSets/Main` of any subfolder or in the folder itself."""
    texts = [name for name in folder.files_by_suffix().get(".txt", ()) if _list_split(name)]
    for ending in IMAGE_SETS:
        if names := [name for name in texts if f"/{posixpath.dirname(name)}".endswith(f"/{ending}")]:
            return names
    return [name for name in texts if "/" not in name]


def _list_split(name: str) -> str | None:
    stem = posixpath.basename(name).removesuffix(".txt").lower()
    return "trainval" if stem == "trainval" else SPLIT_NAMES.get(stem)


def _read_lists(folder: DataFolder, index: FileIndex) -> dict[str, list[str]]:
    """Return the annotation files by split, without those in no list."""
    lists: dict[str, list[str]] = {"train": [], "validation": [], "test": [], "trainval": []}
    names = _find_lists(folder)
    for name in names:
        references = [_list_reference(name, line) for line in dict.fromkeys(folder.read_lines(name))]
        matches = match_files(index, references, f"names in {name} are matched with XML files elsewhere")
        if not any(found for found, _ in matches):
            if "/" in name and references:  # and not any text that is named like a split
                folder.notes.append(
                    f"None of the {len(references)} XML files that {name} lists exists: it is not used."
                )
            continue
        for reference, (found, reason) in zip(references, matches, strict=True):
            if found:
                lists[_list_split(name) or "train"].append(found)
            else:
                folder.report(reference.exact[0], "unreadable annotation", f"listed in {name}: {reason}")
    combined = lists.pop("trainval")
    listed = set().union(*lists.values())
    if others := [name for name in combined if name not in listed]:
        split = "validation" if lists["train"] and not lists["validation"] else "train"
        lists[split] += others
        folder.notes.append(f"Added {len(others)} images that only trainval.txt lists to the {split} split.")
    return {split: files for split, files in lists.items() if files}


def _list_reference(file: str, line: str) -> Reference:
    """Return the possible annotation files of a line: a name, with or without a flag, or paths of image and XML."""
    paths = [word for word in reversed(line.split()) if is_image_name(word) or word.endswith(".xml")]
    names = [
        re.sub(r"\.xml$", "", posixpath.splitext(text)[0] if is_image_name(text) else text)
        for text in (line, FLAG.sub("", line), *paths)
    ]
    parent = re.sub(r"/?ImageSets(/Main)?$", "", posixpath.dirname(file)) or "."
    directories = [posixpath.normpath(f"{parent}/{name}") for name in ("Annotations", "annotations", ".")]
    exact = [posixpath.join(directory, f"{name}.xml") for name in names for directory in directories]
    return Reference(exact, [f"{name}.xml" for name in names])


def _read_files(index: FileIndex, files: list[str], split: str) -> list[AnnotatedImage]:
    """Parse annotation files, and report those with a problem."""
    folder = index.folder
    trees = {file: tree for file in files if (tree := _parse_file(folder, file)) is not None}
    references = [_image_reference(file, tree) for file, tree in trees.items()]
    images: dict[str, AnnotatedImage] = {}
    num_swapped = 0
    for (file, tree), (name, reason) in zip(
        trees.items(),
        match_files(index, references, "XML files are matched with images by name only", split),
        strict=True,
    ):
        if name is None or name in images:
            folder.report(file, "missing image", reason or f"{name} is that of another XML file")
            continue
        objects = [_parse_object(entry) for entry in tree.iter("object")]
        if not objects:
            folder.report(file, "empty label file", "no objects; the image is used as background")
        num_swapped += sum(x1 > x2 or y1 > y2 for _, (x1, y1, x2, y2), *_ in objects)
        objects = [entry._replace(box=_sort_corners(entry.box)) for entry in objects]
        width, height = _parse_floats(tree.find("size"), ("width", "height")) or (0, 0)
        images[name] = AnnotatedImage(name, objects, (width, height) if min(width, height) > 0 else None)
    if num_swapped:
        folder.notes.append(f"{num_swapped} boxes of {split} have corners in the wrong order: they were swapped.")
    return list(images.values())


def _parse_file(folder: DataFolder, file: str) -> ElementTree.Element | None:
    """Parse an annotation file, or report a problem and return None."""
    data = b""
    try:
        path = Path(folder.path(file))
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES // 1_000_000} MB")
        data = path.read_bytes()
        text = _decode(data)
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities that refer to each other expand without bound
            raise ValueError("DOCTYPE and entities are not supported")
        tree = ElementTree.fromstring(text.strip())
        if tree.tag != "annotation":
            raise ValueError(f"got the element {tree.tag[:40]!r}, expected 'annotation'")
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        folder.report(file, "unreadable annotation" if data.strip() else "empty label file", str(error))
        return None
    return tree


def _decode(data: bytes, errors: str = "strict") -> str:
    """Decode XML by its byte order mark or its declaration; the parser knows few encodings."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors)
    declared = DECLARED_ENCODING.match(data)
    return data.decode(declared[1].decode() if declared else "utf-8-sig", errors)


def _image_reference(file: str, tree: ElementTree.Element) -> Reference:
    """Return the possible images of an annotation file: its own name, which survives renaming, first."""
    directory, base = posixpath.split(file)
    stem = base[: -len(".xml")]
    written = [(tree.findtext(tag) or "").strip().replace("\\", "/") for tag in ("filename", "path")]
    names = [posixpath.basename(name) for name in written if name]
    parts = directory.split("/")
    mirrored = [[*parts[:i], name, *parts[i + 1 :]] for i in range(len(parts)) for name in IMAGE_FOLDERS]
    directories = [directory, *map("/".join, mirrored)]
    directories += [f"{parent}/{name}" for parent in parents(directory) for name in IMAGE_FOLDERS]
    same = [name for name in names if posixpath.splitext(name)[0] == stem]  # its suffix tells a photo from its mask
    similar = [posixpath.join(directory, name) for name in (*same, stem, *names)]
    return Reference([posixpath.normpath(f"{parent}/{stem}") for parent in directories], similar)


def _parse_object(entry: ElementTree.Element) -> Annotation:
    """Return an object with its box, or the extent of its polygon or rotated box."""
    key = (entry.findtext("name") or "").strip() or None
    polygon, rotated = entry.find("polygon"), entry.find("robndbox")
    box = _parse_floats(entry.find("bndbox"), CORNERS)
    if box is None and polygon is not None:
        points = [(child.tag, child.text or "") for child in polygon.iter() if re.fullmatch(r"[xy]\d*", child.tag)]
        xs, ys = ([_parse_float(text) for tag, text in points if tag[0] == axis] for axis in "xy")
        box = (min(xs), min(ys), max(xs), max(ys)) if xs and ys else None
    elif box is None and (values := _parse_floats(rotated, ("cx", "cy", "w", "h", "angle"))):
        x, y, width, height, angle = values
        cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
        half_width, half_height = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
    return Annotation(key, box or INVALID_BOX, fault="" if box else " has no `bndbox` with four numbers")


def _sort_corners(box: Any) -> tuple[float, ...]:
    x1, y1, x2, y2 = box
    return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


def _parse_floats(element: ElementTree.Element | None, tags: Iterable[str]) -> tuple[float, ...] | None:
    """Return the numbers in the text of subelements, None if one is missing or can't be parsed."""
    try:
        return None if element is None else tuple(float(element.findtext(tag) or "") for tag in tags)
    except ValueError:
        return None


def _parse_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
