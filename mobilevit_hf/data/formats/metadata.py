"""`metadata.jsonl` or `metadata.csv` beside images, as `datasets` reads them: boxes in `objects`, or labels."""

import csv
import json
import posixpath
from collections.abc import Hashable, Iterable, Iterator
from itertools import chain
from typing import Any

from ..types import Dataset
from .boxes import NO_BOX, Annotated, make_samples
from .folder import SPLIT_NAMES, DataFolder, split_folders
from .samples import Samples

FILE_NAMES = ("metadata.jsonl", "metadata.csv")
CATEGORY_KEYS = ("category", "categories", "label", "labels")
LABEL_COLUMNS = ("label", "labels")
MAX_NUMBER = 100_000  # of a class: one far too large, of another column say, would make names until memory is full


def find_files(folder: DataFolder) -> list[str]:
    """The metadata files in the folder and in those of its splits."""
    directories = [".", *split_folders(folder).values()]
    names = [posixpath.normpath(f"{directory}/{base}") for directory in directories for base in FILE_NAMES]
    return [name for name in names if folder.locate([name])[0]]


def names_classes(folder: DataFolder) -> bool:
    """Whether there are metadata files that do more than caption images."""
    first = next((row for name in find_files(folder) for row in _rows(folder, name)), {})
    return any(column in first for column in ("objects", *LABEL_COLUMNS))


def read(folder: DataFolder) -> Dataset:
    """Read metadata files: a row an image, with its path beside the file in `file_name`.

    A column `objects` holds `{"bbox": [[x, y, w, h], ...], "categories": [...]}` in pixels, or a list of
    `{"bbox": [x, y, w, h], "category": ...}`; a column `label` the class. Classes are the names in alphabetical order,
    or the numbers up to the largest.

    Raises:
        ValueError: If a file can't be read or has neither column.
    """
    rows = [(name, row) for name in find_files(folder) for row in _rows(folder, name)]
    is_detection = any("objects" in row for _, row in rows)
    splits: dict[str, list[Annotated]] = {}
    for metadata_name, row in rows:
        directory = posixpath.dirname(metadata_name)
        name, reason = None, "a row has no `file_name`"
        if file_name := row.get("file_name"):
            name, reason = folder.locate([posixpath.join(directory, str(file_name))])
        if name is None:
            folder.report(metadata_name, "missing image", reason)
            continue
        image = _with_objects(folder, name, row) if is_detection else _with_label(folder, name, row)
        if image:
            split = SPLIT_NAMES.get(name.split("/")[0].lower(), "train")
            splits.setdefault(split, []).append(image)
    keys = {key for image in splits.get("train") or chain(*splits.values()) for key in image.keys}
    classes, places = name_classes(keys)
    if not classes:
        raise ValueError(
            f"{folder.root / find_files(folder)[0]}: no image with a class. Expected a column `objects` with "
            "`bbox` and `categories`, or a column `label`."
        )
    samples = {split: _samples(folder, images, places, is_detection) for split, images in splits.items()}
    task = "object-detection" if is_detection else "image-classification"
    return Dataset(task, classes, samples, "imagefolder")


def name_classes(keys: Iterable[Hashable]) -> tuple[tuple[str, ...], dict[Hashable, int]]:
    """Classes from what boxes or rows name them by: names in alphabetical order, or numbers.

    Returns:
        The classes' names and the label of each key.

    Raises:
        ValueError: If a number is beyond `MAX_NUMBER`.
    """
    keys = {key for key in keys if isinstance(key, str | int)}
    if keys and all(isinstance(key, int) and key >= 0 for key in keys):
        if max(keys) > MAX_NUMBER:
            raise ValueError(
                f"got class {max(keys)}, expected at most {MAX_NUMBER}. Number the classes from 0, or name them."
            )
        classes = tuple(str(number) for number in range(max(keys) + 1))
        return classes, {number: number for number in range(len(classes))}
    classes = tuple(sorted({str(key) for key in keys}))
    return classes, {key: classes.index(str(key)) for key in keys}


def read_objects(objects: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """The (bbox, class, area, iscrowd) of each object, of a dictionary of lists or a list of dictionaries.

    Raises:
        ValueError: If it is neither, or the lists differ in length.
    """
    if isinstance(objects, dict):
        lists = {key: list(values) for key, values in objects.items() if isinstance(values, list | tuple)}
        count = len(lists.get("bbox", []))
        named = [key for key in (*CATEGORY_KEYS, "area", "iscrowd") if key in lists]
        if "bbox" not in lists or any(len(lists[key]) != count for key in named):
            raise ValueError("`objects` needs `bbox` and `categories`, as lists of equal length")
        objects = [{key: lists[key][place] for key in ("bbox", *named)} for place in range(count)]
    if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
        raise ValueError("`objects` is no dictionary of lists and no list of dictionaries")
    for entry in objects:
        key = next((entry[key] for key in CATEGORY_KEYS if key in entry), None)
        yield entry.get("bbox"), key, entry.get("area"), entry.get("iscrowd")


def add_box(image: Annotated, bbox: Any, key: Any, area: Any = None, iscrowd: Any = None) -> None:
    """Add an object with a box [x, y, w, h] to an image; what can't be read becomes `NO_BOX`."""
    try:
        x, y, width, height = map(float, bbox)
        image.boxes.append((x, y, x + width, y + height))
    except (TypeError, ValueError, OverflowError):
        image.boxes.append(NO_BOX)
    image.keys.append(key if isinstance(key, str | int) else None)
    try:
        image.areas.append(float(area) if isinstance(area, int | float) else float("nan"))
    except OverflowError:
        image.areas.append(float("nan"))
    image.iscrowd.append(int(bool(iscrowd)))


def _rows(folder: DataFolder, name: str) -> Iterator[dict[str, Any]]:
    try:
        with open(folder.path(name), encoding="utf-8-sig", newline="") as file:
            if name.endswith(".csv"):
                yield from csv.DictReader(file)
                return
            for number, line in enumerate(file, start=1):
                row = json.loads(line) if line.strip() else {}
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is no JSON object")
                if row:
                    yield row
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"{folder.root / name} can't be read: {error}") from error


def _with_objects(folder: DataFolder, name: str, row: dict[str, Any]) -> Annotated | None:
    image = Annotated(name)
    try:
        objects = row.get("objects")
        objects = json.loads(objects) if isinstance(objects, str) else objects
        for entry in read_objects(objects):
            add_box(image, *entry)
    except (ValueError, RecursionError) as error:
        folder.report(name, "unreadable annotation", str(error))
        return None
    return image


def _with_label(folder: DataFolder, name: str, row: dict[str, Any]) -> Annotated | None:
    label = next((row[column] for column in LABEL_COLUMNS if column in row), None)
    if not isinstance(label, str | int) or label == "":
        folder.report(name, "unreadable annotation", "no label: its row has none in a column `label`")
        return None
    return Annotated(name, keys=[label])


def _samples(folder: DataFolder, images: list[Annotated], places: dict[Hashable, int], is_detection: bool) -> Samples:
    if is_detection:
        return make_samples(folder, images, places)
    for image in images:
        if image.keys[0] not in places:
            reason = f"the training split has no class {image.keys[0]!r}"
            folder.report(image.name, "unknown class", reason)
    names = [image.name for image in images if image.keys[0] in places]
    labels = [places[image.keys[0]] for image in images if image.keys[0] in places]
    return Samples(names, [folder.path(name) for name in names], labels)
