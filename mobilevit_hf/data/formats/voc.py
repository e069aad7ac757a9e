"""Pascal VOC XML: one file per image, in `Annotations` next to `JPEGImages` and `ImageSets`, or next to the images."""

import posixpath
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

from ..images import IMAGE_SUFFIXES
from ..types import Dataset, Split
from .annotations import INVALID_BOX, AnnotatedImage, Annotation, find_classes, make_samples
from .folder import SPLIT_NAMES, DataFolder, is_image_name, join, split_folders

IMAGE_SETS = "ImageSets/Main"
IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
CORNERS = ("bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")


def recognizes(folder: DataFolder) -> bool:
    """Return whether there are XML files in one of the usual places."""
    return any(_xml_files(folder, directory) for directory in _annotation_folders(folder))


def read(folder: DataFolder) -> Dataset:
    """Read Pascal VOC XML.

    Coordinates are used unchanged, whether they start at 0 or 1, and objects marked as difficult are included. Splits
    are the lists in `ImageSets/Main` (images that only `trainval` lists go to the split without a list of its own),
    or else folders named like splits, or else all images are the training split. Classes are those of the training
    split in alphabetical order.

    Raises:
        ValueError: If there are no XML files.
    """
    if not recognizes(folder):
        raise ValueError(f"{folder.root}: got no XML files, expected Annotations/*.xml next to JPEGImages.")
    files = _files_by_split(folder)
    images = {split: [image for n in names if (image := _read_file(folder, n))] for split, names in files.items()}
    classes, labels = find_classes(images)
    splits: dict[str, Split] = {split: make_samples(folder, part, labels) for split, part in images.items()}
    return Dataset("object-detection", classes, splits, "voc")


def _annotation_folders(folder: DataFolder) -> list[str]:
    parents = [".", *split_folders(folder).values()]
    names = [join(parent, base) for parent in parents for base in ("Annotations", "annotations")]
    return [name for name in [*names, *parents] if folder.entries(name)]


def _xml_files(folder: DataFolder, directory: str) -> list[str]:
    return [name for name in folder.files(directory) if name.lower().endswith(".xml")]


def _files_by_split(folder: DataFolder) -> dict[str, list[str]]:
    if image_sets := _read_image_sets(folder):
        listed = {name for names in image_sets.values() for name in names}
        images = [base for directory in IMAGE_FOLDERS for base in folder.entries(directory) if is_image_name(base)]
        if unlisted := [base for base in images if posixpath.splitext(base)[0] not in listed]:
            folder.notes.append(f"Skipped {len(unlisted)} images in no list of {IMAGE_SETS}, such as {unlisted[0]}.")
        directory = _annotation_folders(folder)[0]
        return {split: [f"{directory}/{name}.xml" for name in names] for split, names in image_sets.items()}
    files: dict[str, list[str]] = {}
    for directory in _annotation_folders(folder):
        split = SPLIT_NAMES.get(directory.split("/")[0].lower(), "train")
        files[split] = files.get(split, []) + _xml_files(folder, directory)
    return {split: names for split, names in files.items() if names}


def _read_image_sets(folder: DataFolder) -> dict[str, list[str]]:
    """Return the image names in the lists of `ImageSets/Main` by split. A list may have a second column."""
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": [], "trainval": []}
    for base, names in lists.items():
        if folder.entries(IMAGE_SETS).get(f"{base}.txt") == "file":
            names += dict.fromkeys(line.split()[0] for line in folder.read_lines(f"{IMAGE_SETS}/{base}.txt"))
    combined = lists.pop("trainval")
    listed = set().union(*lists.values())
    if others := [name for name in combined if name not in listed]:
        base = "val" if lists["train"] and not lists["val"] else "train"
        lists[base] += others
        folder.notes.append(
            f"Added {len(others)} images that only {IMAGE_SETS}/trainval.txt lists to the {SPLIT_NAMES[base]} split."
        )
    return {SPLIT_NAMES[base]: names for base, names in lists.items() if names}


def _read_file(folder: DataFolder, file: str) -> AnnotatedImage | None:
    """Parse an annotation file, or report a problem and return None."""
    located, reason = folder.locate([file])
    if located is None:
        folder.report(file, "unreadable annotation", reason)
        return None
    data = b""
    try:
        data = (folder.root / located).read_bytes()
        # Entities that refer to each other expand without bound, and UTF-16 would bypass this check.
        if any(marker in data for marker in (b"<!DOCTYPE", b"<!ENTITY", b"\0")):
            raise ValueError("DOCTYPE, entities and UTF-16 are not supported")
        tree = ElementTree.fromstring(data)
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        folder.report(file, "unreadable annotation" if data.strip() else "empty label file", str(error))
        return None
    name, reason = folder.locate(_image_candidates(file, tree.findtext("filename")))
    if name is None:
        folder.report(file, "missing image", reason)
        return None
    objects = [
        Annotation((entry.findtext("name") or "").strip() or None, _parse_floats(entry, CORNERS) or INVALID_BOX)
        for entry in tree.iter("object")
    ]
    if not objects:
        folder.report(file, "empty label file", "no objects; the image is used as background")
    size = _parse_floats(tree, ("size/width", "size/height"))
    return AnnotatedImage(name, objects, size if size and all(side > 0 for side in size) else None)


def _image_candidates(file: str, annotated_name: str | None) -> list[str]:
    """Return possible paths of an annotation's image: the name of the XML file, which survives renaming, first."""
    directory, base = posixpath.split(file)
    parent = posixpath.dirname(directory) if posixpath.basename(directory).lower() == "annotations" else directory
    directories = [posixpath.join(parent, name) for name in IMAGE_FOLDERS] + [directory, parent]
    stem = base[: -len(".xml")]
    suffixes = sorted(IMAGE_SUFFIXES, key=lambda suffix: (suffix != ".jpg", suffix))
    names = [f"{stem}{variant}" for suffix in suffixes for variant in (suffix, suffix.upper())]
    names += [annotated_name.strip()] if annotated_name else []
    return [posixpath.join(directory, name) for directory in directories for name in names]


def _parse_floats(element: ElementTree.Element, paths: Iterable[str]) -> tuple[Any, ...] | None:
    """Return the numbers in the text of subelements, None if one is missing or can't be parsed."""
    try:
        return tuple(float(element.findtext(path) or "") for path in paths)
    except ValueError:
        return None
