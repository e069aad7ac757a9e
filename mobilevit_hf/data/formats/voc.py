"""Pascal VOC's XML: a file an image, in `Annotations` beside `JPEGImages` and `ImageSets`, or beside the images."""

import posixpath
from itertools import chain
from xml.etree import ElementTree

from ..images import IMAGE_SUFFIXES
from ..types import Dataset
from .boxes import NO_BOX, Annotated, make_samples
from .folder import SPLIT_NAMES, DataFolder, is_image_name, split_folders

SETS = "ImageSets/Main"
IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def recognizes(folder: DataFolder) -> bool:
    """Whether there are XML files where this format has them."""
    return any(_xml_names(folder, directory) for directory in _annotation_folders(folder))


def read(folder: DataFolder) -> Dataset:
    """Read Pascal VOC's XML.

    Corners are taken as they are, counted from 1 or 0, and objects marked difficult like the others. Splits are the
    lists of `ImageSets/Main`, where the images of `trainval` that are in no other list go to the split that has
    none; else folders named like splits; else all is for training. The classes are those in the training split, in
    alphabetical order.

    Raises:
        ValueError: If there are no XML files.
    """
    if not recognizes(folder):
        raise ValueError(f"No XML files in {folder.root}. Expected Annotations/*.xml beside JPEGImages.")
    files = _files_by_split(folder)
    read_files = {split: [_read_file(folder, name) for name in names] for split, names in files.items()}
    splits = {split: [image for image in images if image] for split, images in read_files.items()}
    keys = {key for image in splits.get("train") or chain(*splits.values()) for key in image.keys}
    classes = tuple(sorted(keys - {None}))
    places = {name: place for place, name in enumerate(classes)}
    samples = {split: make_samples(folder, images, places) for split, images in splits.items()}
    return Dataset("object-detection", classes, samples, "voc")


def _annotation_folders(folder: DataFolder) -> list[str]:
    parents = [".", *split_folders(folder).values()]
    places = [posixpath.normpath(f"{parent}/{base}") for parent in parents for base in ("Annotations", "annotations")]
    return [place for place in [*places, *parents] if folder.entries(place)]


def _xml_names(folder: DataFolder, directory: str) -> list[str]:
    below = "" if directory == "." else f"{directory}/"
    entries = folder.entries(directory).items()
    return [f"{below}{base}" for base, kind in entries if kind == "file" and base.lower().endswith(".xml")]


def _files_by_split(folder: DataFolder) -> dict[str, list[str]]:
    sets = _read_sets(folder)
    if sets:
        directory = _annotation_folders(folder)[0]
        _note_unlisted(folder, sets)
        return {split: [f"{directory}/{name}.xml" for name in names] for split, names in sets.items()}
    files: dict[str, list[str]] = {}
    for directory in _annotation_folders(folder):
        split = SPLIT_NAMES.get(directory.split("/")[0].lower(), "train")
        files[split] = files.get(split, []) + _xml_names(folder, directory)
    return {split: names for split, names in files.items() if names}


def _read_sets(folder: DataFolder) -> dict[str, list[str]]:
    """The images' names in the lists of `ImageSets/Main`, by split; a list may have a second column."""
    lists: dict[str, list[str]] = {}
    for base in ("train", "val", "test", "trainval"):
        if folder.entries(SETS).get(f"{base}.txt") == "file":
            with open(folder.path(f"{SETS}/{base}.txt"), encoding="utf-8-sig", errors="replace") as file:
                lists[base] = list(dict.fromkeys(line.split()[0] for line in file if line.strip()))
    listed = {name for base in ("train", "val", "test") for name in lists.get(base, [])}
    rest = [name for name in lists.get("trainval", []) if name not in listed]
    train, val = lists.get("train", []), lists.get("val", [])
    if rest:
        split = "val" if train and not val else "train"
        train, val = (train, rest) if split == "val" else (train + rest, val)
        folder.notes.append(
            f"{len(rest)} images only {SETS}/trainval.txt lists went to the {SPLIT_NAMES[split]} split."
        )
    splits = {"train": train, "validation": val, "test": lists.get("test", [])}
    return {split: names for split, names in splits.items() if names}


def _note_unlisted(folder: DataFolder, sets: dict[str, list[str]]) -> None:
    listed = {name for names in sets.values() for name in names}
    images = [base for place in IMAGE_FOLDERS for base in folder.entries(place) if is_image_name(base)]
    unlisted = [base for base in images if posixpath.splitext(base)[0] not in listed]
    if unlisted:
        folder.notes.append(f"{len(unlisted)} images are in no list of {SETS} and not read, such as {unlisted[0]}.")


def _read_file(folder: DataFolder, file: str) -> Annotated | None:
    """What a file says; None if it or its image was reported."""
    located, reason = folder.locate([file])
    if located is None:
        folder.report(file, "unreadable annotation", reason)
        return None
    try:
        with open(folder.path(located), "rb") as opened:
            data = opened.read()
        # Entities that name each other grow without bound, and UTF-16 would hide them from this check.
        if any(mark in data for mark in (b"<!DOCTYPE", b"<!ENTITY", b"\0")):
            raise ValueError("a DOCTYPE, entities or UTF-16, which are not read")
        tree = ElementTree.fromstring(data)
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        folder.report(file, "unreadable annotation" if data.strip() else "empty label file", str(error))
        return None
    name, reason = folder.locate(_image_names(file, tree.findtext("filename")))
    if name is None:
        folder.report(file, "missing image", reason)
        return None
    image = Annotated(name, _size(tree))
    for entry in tree.iter("object"):
        image.boxes.append(_corners(entry.find("bndbox")))
        image.keys.append((entry.findtext("name") or "").strip() or None)
    if not image.boxes:
        folder.report(file, "empty label file", "no objects; the image is kept as background")
    return image


def _image_names(file: str, stated: str | None) -> list[str]:
    """Where a file's image may be: named like the file, which holds after renaming, or as the file states."""
    directory, base = posixpath.split(file)
    parent = posixpath.dirname(directory) if posixpath.basename(directory).lower() == "annotations" else directory
    folders = [posixpath.join(parent, place) for place in IMAGE_FOLDERS] + [directory, parent]
    stem = base[: -len(".xml")]
    suffixes = sorted(IMAGE_SUFFIXES, key=lambda suffix: suffix != ".jpg")
    bases = [f"{stem}{end}" for suffix in suffixes for end in (suffix, suffix.upper())]
    return [
        posixpath.join(place, name) for place in folders for name in [*bases, *([stated.strip()] if stated else [])]
    ]


def _size(tree: ElementTree.Element) -> tuple[float, float] | None:
    try:
        width, height = (float(tree.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None


def _corners(box: ElementTree.Element | None) -> tuple[float, ...]:
    try:
        return tuple(float(box.findtext(corner)) for corner in CORNERS)
    except (AttributeError, TypeError, ValueError):
        return NO_BOX
