"""Metadata files of `datasets`' image folders (`metadata.jsonl` or `metadata.csv`), with boxes or labels."""

import csv
import json
import posixpath
from collections.abc import Hashable, Iterable, Iterator
from itertools import chain
from typing import Any

from ..sequences import Samples
from ..types import Dataset, Split
from .annotations import INVALID_BOX, AnnotatedImage, make_samples
from .folder import SPLIT_NAMES, DataFolder, split_folders

FILE_NAMES = ("metadata.jsonl", "metadata.csv")
CATEGORY_KEYS = ("category", "categories", "label", "labels")
LABEL_COLUMNS = ("label", "labels")
MAX_CLASS_NUMBER = 100_000  # a larger one, perhaps from another column, would create names until memory is exhausted


def find_files(folder: DataFolder) -> list[str]:
    """Return the metadata files in the folder and in its splits."""
    directories = [".", *split_folders(folder).values()]
    names = [posixpath.normpath(f"{directory}/{base}") for directory in directories for base in FILE_NAMES]
    return [name for name in names if folder.locate([name])[0]]


def has_annotations(folder: DataFolder) -> bool:
    """Return whether there are metadata files with boxes or labels (and not captions, for example)."""
    first = next((row for name in find_files(folder) for row in _read_rows(folder, name)), {})
    return any(column in first for column in ("objects", *LABEL_COLUMNS))


def read(folder: DataFolder) -> Dataset:
    """Read metadata files with one row per image, whose path relative to the file is in `file_name`.

    The column `objects` is `{"bbox": [[x, y, w, h], ...], "categories": [...]}` in pixels, or a list of
    `{"bbox": [x, y, w, h], "category": ...}`; the column `label` is a class. Classes are the names in alphabetical
    order, or the numbers from 0 to the largest.

    Raises:
        ValueError: If a file can't be read or has neither column.
    """
    rows = [(file, row) for file in find_files(folder) for row in _read_rows(folder, file)]
    is_detection = any("objects" in row for _, row in rows)
    images: dict[str, list[AnnotatedImage]] = {}
    for file, row in rows:
        name, reason = None, "a row without `file_name`"
        if file_name := row.get("file_name"):
            name, reason = folder.locate([posixpath.join(posixpath.dirname(file), str(file_name))])
        if name is None:
            folder.report(file, "missing image", reason)
            continue
        image = _read_objects(folder, name, row) if is_detection else _read_label(folder, name, row)
        if image:
            split = SPLIT_NAMES.get(name.split("/")[0].lower(), "train")
            images.setdefault(split, []).append(image)
    keys = {key for image in images.get("train") or chain(*images.values()) for key in image.keys}
    classes, labels = name_classes(keys)
    if not classes:
        raise ValueError(
            f"{folder.root / find_files(folder)[0]}: got no image with a class, expected a column `objects` with "
            "`bbox` and `categories`, or a column `label`."
        )
    splits: dict[str, Split] = {}
    if is_detection:
        splits = {split: make_samples(folder, part, labels) for split, part in images.items()}
        return Dataset("object-detection", classes, splits, "imagefolder")
    splits = {split: _make_labeled_samples(folder, part, labels) for split, part in images.items()}
    return Dataset("image-classification", classes, splits, "imagefolder")


def name_classes(keys: Iterable[Hashable]) -> tuple[tuple[str, ...], dict[Hashable, int]]:
    """Derive the classes from the names or numbers in annotations.

    Returns:
        The class names (in alphabetical order, or all numbers from 0 to the largest), and the label of each key.

    Raises:
        ValueError: If a number is larger than `MAX_CLASS_NUMBER`.
    """
    keys = {key for key in keys if isinstance(key, str | int)}
    numbers = [key for key in keys if isinstance(key, int) and key >= 0]
    if keys and len(numbers) == len(keys):
        if max(numbers) > MAX_CLASS_NUMBER:
            raise ValueError(
                f"got class {max(numbers)}, expected at most {MAX_CLASS_NUMBER}. Number the classes from 0, or use "
                "names."
            )
        classes = tuple(str(number) for number in range(max(numbers) + 1))
        return classes, {number: number for number in range(len(classes))}
    classes = tuple(sorted({str(key) for key in keys}))
    return classes, {key: classes.index(str(key)) for key in keys}


def parse_objects(objects: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Yield (bbox, class, area, iscrowd) of each object in a dictionary of lists or a list of dictionaries.

    Raises:
        ValueError: If it is neither, or the lists differ in length.
    """
    if isinstance(objects, dict):
        lists = {key: list(values) for key, values in objects.items() if isinstance(values, list | tuple)}
        count = len(lists.get("bbox", []))
        available = [key for key in (*CATEGORY_KEYS, "area", "iscrowd") if key in lists]
        if "bbox" not in lists or any(len(lists[key]) != count for key in available):
            raise ValueError("expected `bbox` and `categories` in `objects`, as lists of equal length")
        objects = [{key: lists[key][index] for key in ("bbox", *available)} for index in range(count)]
    if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
        raise ValueError("expected a dictionary of lists or a list of dictionaries in `objects`")
    for entry in objects:
        key = next((entry[key] for key in CATEGORY_KEYS if key in entry), None)
        yield entry.get("bbox"), key, entry.get("area"), entry.get("iscrowd")


def add_box(image: AnnotatedImage, bbox: Any, key: Any, area: Any = None, iscrowd: Any = None) -> None:
    """Add an object with a box [x, y, w, h] to an image, with `INVALID_BOX` if the box can't be parsed."""
    try:
        x, y, width, height = map(float, bbox)
        image.boxes.append((x, y, x + width, y + height))
    except (TypeError, ValueError, OverflowError):
        image.boxes.append(INVALID_BOX)
    image.keys.append(key if isinstance(key, str | int) else None)
    try:
        image.areas.append(float(area) if isinstance(area, int | float) else float("nan"))
    except OverflowError:
        image.areas.append(float("nan"))
    image.iscrowd.append(int(bool(iscrowd)))


def _read_rows(folder: DataFolder, name: str) -> Iterator[dict[str, Any]]:
    try:
        with open(folder.path(name), encoding="utf-8-sig", newline="") as file:
            if name.endswith(".csv"):
                yield from csv.DictReader(file)
                return
            for number, line in enumerate(file, start=1):
                row = json.loads(line) if line.strip() else {}
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is not a JSON object")
                if row:
                    yield row
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"{folder.root / name} can't be read: {error}") from error


def _read_objects(folder: DataFolder, name: str, row: dict[str, Any]) -> AnnotatedImage | None:
    image = AnnotatedImage(name)
    try:
        objects = row.get("objects")
        objects = json.loads(objects) if isinstance(objects, str) else objects
        for entry in parse_objects(objects):
            add_box(image, *entry)
    except (ValueError, RecursionError) as error:
        folder.report(name, "unreadable annotation", str(error))
        return None
    return image


def _read_label(folder: DataFolder, name: str, row: dict[str, Any]) -> AnnotatedImage | None:
    label = next((row[column] for column in LABEL_COLUMNS if column in row), None)
    if not isinstance(label, str | int) or label == "":
        folder.report(name, "unreadable annotation", "no value in the column `label`")
        return None
    return AnnotatedImage(name, keys=[label])


def _make_labeled_samples(folder: DataFolder, images: list[AnnotatedImage], labels: dict[Hashable, int]) -> Samples:
    for image in images:
        if image.keys[0] not in labels:
            folder.report(image.name, "unknown class", f"class {image.keys[0]!r} is not in the training split")
    kept = [image for image in images if image.keys[0] in labels]
    names = [image.name for image in kept]
    return Samples(names, [folder.path(name) for name in names], [labels[image.keys[0]] for image in kept])
