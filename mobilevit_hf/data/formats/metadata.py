"""Metadata files of `datasets`' image folders (`metadata.jsonl` or `metadata.csv`), with boxes or labels."""

import csv
import json
import posixpath
from collections.abc import Iterator
from typing import Any

from ..types import Dataset
from .annotations import AnnotatedImage, Annotation, find_classes, make_dataset, parse_objects
from .folder import DataFolder, text_encoding
from .lookup import split_of

FILE_NAMES = ("metadata.jsonl", "metadata.csv")
LABEL_COLUMNS = ("label", "labels")


def find_files(folder: DataFolder) -> list[str]:
    """Return the metadata files at any level of the folder."""
    files = folder.files_by_suffix()
    names = [name for suffix in (".jsonl", ".csv") for name in files.get(suffix, ())]
    return sorted(name for name in names if posixpath.basename(name) in FILE_NAMES)


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
            images.setdefault(split_of(posixpath.dirname(name)) or "train", []).append(image)
    classes, labels = find_classes(images)
    if not classes:
        raise ValueError(
            f"{folder.root / find_files(folder)[0]}: got no image with a class, expected a column `objects` with "
            "`bbox` and `categories`, or a column `label`."
        )
    return make_dataset(folder, images, labels, classes, "imagefolder", is_detection=is_detection)


def _read_rows(folder: DataFolder, name: str) -> Iterator[dict[str, Any]]:
    try:
        path = folder.path(name)
        with open(path, encoding=text_encoding(path), newline="") as file:
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
    objects = row.get("objects")
    try:
        return AnnotatedImage(name, list(parse_objects(json.loads(objects) if isinstance(objects, str) else objects)))
    except (ValueError, RecursionError) as error:
        folder.report(name, "unreadable annotation", str(error))
        return None


def _read_label(folder: DataFolder, name: str, row: dict[str, Any]) -> AnnotatedImage | None:
    label = next((row[column] for column in LABEL_COLUMNS if column in row), None)
    if not isinstance(label, str | int) or label == "":
        folder.report(name, "unreadable annotation", "no value in the column `label`")
        return None
    return AnnotatedImage(name, [Annotation(label)])
