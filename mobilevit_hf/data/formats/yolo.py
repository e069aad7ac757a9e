"""YOLO's text files: `images/` beside `labels/`, a line an object; the classes in `data.yaml` or `classes.txt`."""

import posixpath
from collections.abc import Iterable
from typing import Any

import yaml

from ..types import Dataset
from .boxes import NO_BOX, Annotated, make_samples
from .folder import DataFolder, split_folders

CLASS_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
SPLIT_KEYS = {"train": "train", "validation": "val", "test": "test"}


def recognizes(folder: DataFolder) -> bool:
    """Whether there is a YAML file with `names`, or a folder `labels`."""
    return _find_yaml(folder) is not None or any("labels" in folder.entries(place) for place in _label_parents(folder))


def read(folder: DataFolder, file: str | None = None) -> Dataset:
    """Read YOLO's text files.

    A line is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` of a polygon, whose box is taken; all from 0 to 1 of
    the upright image. An image without a label file is background, as one with an empty file is, which is reported
    too. `data.yaml` names the classes and where the images of each split are; without it they are in `classes.txt`,
    and in `images/train` or `train/images`, or all in `images`.

    Args:
        folder: Where all is.
        file: The YAML file to read instead of the one in the folder.

    Raises:
        ValueError: If classes, images or label files can't be found.
    """
    file = file or _find_yaml(folder)
    content = _load_yaml(folder, file) if file else {}
    classes = _classes(folder, file, content)
    if any(content.get(key) for key in SPLIT_KEYS.values()):
        names = {
            split: _images_of_entry(folder, file, content, key)
            for split, key in SPLIT_KEYS.items()
            if content.get(key)
        }
    else:
        names = {split: folder.images(place) for split, place in _image_folders(folder).items()}
    if not any(names.values()):
        raise ValueError(f"No images in {folder.root}. Expected images/train beside labels/train, or train/images.")
    unlabelled = {
        split: [name for name in found if _label_file(folder, name) is None] for split, found in names.items()
    }
    if unlabelled == names:
        raise ValueError(
            f"No label files for the images of {folder.root}. Expected labels/train/a.txt for images/train/a.jpg."
        )
    for split, found in unlabelled.items():
        if found:
            folder.notes.append(
                f"{len(found)} images of {split} have no label file and are background, as {found[0]}."
            )
    places = {number: number for number in range(len(classes))}
    splits = {}
    for split, found in names.items():
        images = [image for name in found if (image := _read_labels(folder, name))]
        splits[split] = make_samples(folder, images, places, is_relative=True)
    return Dataset("object-detection", classes, splits, "yolo")


def _find_yaml(folder: DataFolder) -> str | None:
    """The YAML file that names classes, `data.yaml` first; only its text is looked at."""
    entries = folder.entries(".").items()
    names = [base for base, kind in entries if kind == "file" and base.endswith((".yaml", ".yml"))]
    for base in sorted(names, key=lambda base: (base != "data.yaml", base)):
        with open(folder.path(base), encoding="utf-8", errors="replace") as opened:
            if any(line.startswith("names:") for line in opened):
                return base
    return None


def _load_yaml(folder: DataFolder, file: str) -> dict[str, Any]:
    try:
        with open(folder.path(file), encoding="utf-8") as opened:
            content = yaml.safe_load(opened)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{folder.root / file} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{folder.root / file} is no mapping. Expected `names`, `train` and `val`.")
    return content


def _classes(folder: DataFolder, file: str | None, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if file is None:
        file = next((name for name in CLASS_FILES if folder.locate([name])[0]), None)
        if file is None:
            raise ValueError(
                f"No data.yaml with `names` and no classes.txt in {folder.root}. Write the classes in one."
            )
        with open(folder.path(file), encoding="utf-8-sig", errors="replace") as opened:
            names = [line.strip() for line in opened if line.strip()]
    values = names.values() if isinstance(names, dict) else names
    if not isinstance(values, Iterable) or not all(isinstance(name, str | int) for name in values):
        names = None  # nested lists: a few aliases of them would print as gigabytes
    if isinstance(names, dict):
        numbers = sorted(names, key=lambda number: (not isinstance(number, int), str(number).zfill(9)))
        names = [names[number] for number in numbers] if numbers == list(range(len(numbers))) else None
    if not isinstance(names, list) or not names or len({str(name) for name in names}) != len(names):
        raise ValueError(
            f"{folder.root / file}: expected `names` as a list of names that differ, or by number from 0."
        )
    return tuple(str(name) for name in names)


def _images_of_entry(folder: DataFolder, file: str, content: dict[str, Any], key: str) -> list[str]:
    """The images of `train`, `val` or `test` of a YAML file: one or more folders, or lists of files."""
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    if not all(isinstance(entry, str) for entry in [*entries, content.get("path") or ""]):
        raise ValueError(f"{folder.root / file}: expected `path` and `{key}` as names of folders or files.")
    found: dict[str, None] = {}
    for entry in entries:
        place = _place_of_entry(folder, content.get("path"), entry)
        if place is None:
            raise ValueError(
                f"{folder.root / file}: `{key}: {entry}` is not in the dataset's folder {folder.root}. "
                "Pass the folder that holds everything, and write paths relative to it."
            )
        if folder.entries(place):
            found.update(dict.fromkeys(folder.images(place)))
            continue
        with open(folder.path(place), encoding="utf-8-sig", errors="replace") as opened:
            for line in filter(None, map(str.strip, opened)):
                name, reason = folder.locate([posixpath.join(posixpath.dirname(place), line), line])
                if name is None:
                    folder.report(line, "missing image", f"listed in {place}: {reason}")
                else:
                    found[name] = None
    return list(found)


def _place_of_entry(folder: DataFolder, base: Any, entry: str) -> str | None:
    """Where an entry is. What leads to it on the machine that wrote it (`path`, leading `..`) need not hold here."""
    stripped = entry.replace("\\", "/")
    while stripped.startswith(("../", "./")):
        stripped = stripped.split("/", 1)[1]
    for candidate in (posixpath.join(str(base or "."), entry), entry, stripped):
        place = folder.normal(candidate)
        if place and (folder.entries(place) or folder.locate([place])[0]):
            return place
    return None


def _label_parents(folder: DataFolder) -> list[str]:
    return [".", *split_folders(folder).values()]


def _image_folders(folder: DataFolder) -> dict[str, str]:
    """Where the images of each split are if no YAML file says it."""
    in_images = split_folders(folder, "images")
    in_splits = {split: f"{place}/images" for split, place in split_folders(folder).items()}
    return (
        in_images
        or {split: place for split, place in in_splits.items() if folder.entries(place)}
        or {"train": "images" if folder.entries("images") else "."}
    )


def _label_file(folder: DataFolder, image: str) -> str | None:
    """An image's label file: below the last folder `labels` for `images`, or beside it."""
    stem = posixpath.splitext(image)[0]
    before, found, after = f"/{stem}".rpartition("/images/")
    candidates = [f"{before}/labels/{after}"[1:] if found else f"labels/{stem}", stem]
    return folder.locate(f"{candidate.lstrip('/')}.txt" for candidate in candidates)[0]


def _read_labels(folder: DataFolder, name: str) -> Annotated | None:
    file = _label_file(folder, name)
    image = Annotated(name)
    if file is None:
        return image
    try:
        with open(folder.path(file), encoding="utf-8-sig") as opened:
            lines = [line.split() for line in opened if line.strip()]
    except (OSError, ValueError) as error:
        folder.report(file, "unreadable annotation", " ".join(str(error).split()))
        return None
    for words in lines:
        key, box = _read_line(words)
        image.keys.append(key)
        image.boxes.append(box)
    if not lines:
        folder.report(file, "empty label file", "no objects; the image is kept as background")
    return image


def _read_line(words: list[str]) -> tuple[int | None, tuple[float, ...]]:
    """The class and the normalized corners of a line; `NO_BOX` if it is neither a box nor a polygon."""
    try:
        number, *values = map(float, words)
        key = int(number) if number.is_integer() else None
    except (ValueError, OverflowError):
        return None, NO_BOX
    if len(values) == 4:
        x, y, width, height = values
        return key, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if len(values) >= 6 and len(values) % 2 == 0:
        return key, (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    return key, NO_BOX
