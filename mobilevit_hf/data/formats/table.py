"""Samples from the rows of a dataset of the `datasets` library, map-style or streamed.

`datasets` and its dependencies are imported in functions: the import takes a second, which other formats don't need.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
from huggingface_hub import constants

from ..images import DECODER_ERRORS
from ..sequences import LazySequence, Samples, Subset
from ..types import Problem, Sample
from .annotations import AnnotatedImage, validate_boxes
from .folder import read_size
from .metadata import CATEGORY_KEYS, add_box, name_classes, parse_objects

if TYPE_CHECKING:
    import datasets

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class RowSource:
    """Origin of rows, which limits the files and URLs that their images may refer to.

    Attributes:
        name: Name in messages.
        root: Folder of the dataset, None for the Hub.
        token: Hub token for images that are fetched on access.
    """

    name: str
    root: Path | None = None
    token: str | bool | None = field(default=None, repr=False)

    def resolve(self, value: Any) -> str | bytes:
        """Return the path or content of the image in a value {"bytes", "path"} of an image column.

        Raises:
            ValueError: If the value is empty, or its path is missing or not part of the dataset.
            OSError: If it can't be fetched.
        """
        data, path = ((value or {}).get(key) for key in ("bytes", "path"))
        if data is not None or path is None:
            if not data:
                raise ValueError("no image in this row")
            return data
        *archives, file = path.split("::")
        # Of the protocols of fsspec, others would open any file of this machine, or any URL.
        if file.startswith("hf://") and all(archive.startswith("zip://") for archive in archives):
            with fsspec.open(path, "rb", hf={"token": self.token}) as opened:
                return opened.read()
        from datasets import config

        caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
        allowed = [Path(folder).resolve() for folder in (*caches, self.root) if folder is not None]
        resolved = Path(self.root or "", path).resolve()
        if not any(resolved.is_relative_to(folder) for folder in allowed):
            raise ValueError(f"{path} is outside of the dataset")
        if not resolved.is_file():
            raise ValueError(f"no such file: {path}")
        return str(resolved)


@dataclass(frozen=True)
class ImageColumn(LazySequence):
    """Images of rows, read on access."""

    rows: "datasets.Dataset"
    column: str
    source: RowSource

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> str | bytes:
        """Return the path or content of an image."""
        return self.source.resolve(self.rows[index][self.column])


@dataclass(frozen=True)
class Columns:
    """Names and types of the columns of a dataset.

    Attributes:
        image: Column of the images.
        target: Column of the labels or objects.
        is_detection: Whether the targets are objects.
        classes: Class names, None if the column has none.
        size: Columns of width and height, if available.
    """

    image: str
    target: str
    is_detection: bool
    classes: tuple[str, ...] | None
    size: tuple[str, ...]

    def parse(self, name: str, row: Mapping[str, Any], load: Callable[[], str | bytes]) -> AnnotatedImage | Problem:
        """Parse the objects of a row; `load` returns its image, whose size is read if there are no columns for it."""
        width, height = (row[column] or 0 for column in self.size) if self.size else (0, 0)
        image = AnnotatedImage(name, (width, height) if min(width, height) > 0 else None)
        try:
            for entry in parse_objects(row[self.target]):
                add_box(image, *entry)
        except (TypeError, ValueError) as error:
            return Problem(name, "unreadable annotation", str(error))
        try:
            if image.boxes and image.size is None:
                stored, is_rotated = read_size(load())
                image.size = stored[::-1] if is_rotated else stored
        except DECODER_ERRORS as error:
            return Problem(name, "unreadable image", " ".join(str(error).split()))
        return image


def find_columns(name: str, features: Mapping[str, Any] | None) -> Columns:
    """Find the columns of images and of labels or objects.

    Args:
        name: Name of the dataset in messages.
        features: Features of the dataset by column.

    Raises:
        ValueError: If there are none, or several candidates.
    """
    import datasets

    features = features or {}
    columns = ", ".join(features) or "no columns"
    images = [key for key, feature in features.items() if _is_image(feature)]
    candidates = [key for key in IMAGE_COLUMNS if key in images] or images
    if not images or (len(images) > 1 and candidates == images and images[0] not in IMAGE_COLUMNS):
        raise ValueError(f"{name}: expected one column of images, got {columns}. Rename it to image.")
    size = ("width", "height") if {"width", "height"} <= features.keys() else ()
    if "objects" in features:
        fields = _object_features(features["objects"])
        categories = [fields[key] for key in CATEGORY_KEYS if key in fields]
        if "bbox" not in fields or not categories:
            raise ValueError(
                f"{name}: expected `bbox` and `category` in `objects`, got {', '.join(fields) or 'no fields'}."
            )
        return Columns(candidates[0], "objects", True, _class_names(categories[0]), size)
    class_columns = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = [key for key in LABEL_COLUMNS if isinstance(features.get(key), datasets.ClassLabel | datasets.Value)]
    if not labels and len(class_columns) != 1:
        raise ValueError(
            f"{name}: expected a column `label` or `objects`, got {columns}. Rename the column of the annotations."
        )
    target = (labels or class_columns)[0]
    return Columns(candidates[0], target, False, _class_names(features[target]), size)


def find_classes(
    name: str, rows: "datasets.Dataset | datasets.IterableDataset", columns: Columns
) -> tuple[tuple[str, ...], dict[Hashable, int]]:
    """Return the class names and the label of each key, from the rows if the column has no class names.

    Raises:
        ValueError: If that would require reading a whole stream.
    """
    import datasets

    if columns.classes is not None:
        return columns.classes, {label: label for label in range(len(columns.classes))}
    if not isinstance(rows, datasets.Dataset):
        raise ValueError(
            f"{name}: the column {columns.target} doesn't name the classes, which streaming requires. Load it without "
            "streaming."
        )
    keys = set()
    for value in rows.select_columns([columns.target])[:][columns.target]:
        try:
            keys |= {key for _, key, _, _ in parse_objects(value)} if columns.is_detection else {value}
        except (TypeError, ValueError):  # reported when the row is parsed
            continue
    return name_classes(keys - {None, -1})


def make_samples(
    rows: "datasets.Dataset",
    split: str,
    columns: Columns,
    labels: Mapping[Hashable, int],
    source: RowSource,
    problems: list[Problem],
) -> Samples:
    """Create the samples of a split, whose images are read on access.

    Args:
        rows: Rows of the split, with image decoding disabled.
        split: Name of the split.
        columns: Columns of images and targets.
        labels: Label of each class key.
        source: Origin of the rows.
        problems: List to which problems are appended.
    """
    names = [f"{split}[{index}]" for index in range(len(rows))]
    images = ImageColumn(rows.select_columns([columns.image]), columns.image, source)
    missing = dict(_find_missing_images(images))
    problems += [Problem(names[index], "missing image", reason) for index, reason in missing.items()]
    values = rows.select_columns([columns.target, *(columns.size if columns.is_detection else ())])[:]
    available = [index for index in range(len(rows)) if index not in missing]
    if columns.is_detection:
        annotated: dict[int, AnnotatedImage] = {}
        for index in available:
            row = {key: column[index] for key, column in values.items()}
            image = columns.parse(names[index], row, lambda index=index: images[index])
            if isinstance(image, Problem):
                problems.append(image)
            else:
                annotated[index] = image
        valid, objects = validate_boxes(list(annotated.values()), labels, problems)
        indices = list(annotated)
        kept = [indices[i] for i in valid]
        return Samples(Subset(names, kept), Subset(images, kept), objects)
    keys = values[columns.target]
    kept = [index for index in available if keys[index] in labels]
    if kept:  # a test split without labels is dropped as a whole, without a problem for each row
        unlabeled = [index for index in available if keys[index] not in labels]
        problems += [Problem(names[index], "unknown class", f"label {keys[index]!r}") for index in unlabeled]
    return Samples(Subset(names, kept), Subset(images, kept), [labels[keys[index]] for index in kept])


@dataclass(frozen=True)
class SampleStream:
    """Streamed samples of a split. Problems of rows are reported while iterating.

    Attributes:
        rows: Rows of the split, with image decoding disabled.
        split: Name of the split.
        columns: Columns of images and targets.
        labels: Label of each class key.
        source: Origin of the rows.
        problems: List to which problems are appended, each once.
        part: Part (start, end, seed) of the rows by a hash of their image, with 0 <= start < end <= 1.
    """

    rows: "datasets.IterableDataset"
    split: str
    columns: Columns
    labels: Mapping[Hashable, int]
    source: RowSource
    problems: list[Problem]
    part: tuple[float, float, int] = (0.0, 1.0, 0)

    def __iter__(self) -> Iterator[Sample]:
        for number, row in enumerate(self.rows):
            name = f"{self.split}[{number}]"
            try:
                image = self.source.resolve(row[self.columns.image])
            except (OSError, ValueError) as error:
                self._report([Problem(name, "missing image", str(error))])
                continue
            if self._is_in_part(image):
                make_sample = self._make_detection_sample if self.columns.is_detection else self._make_labeled_sample
                if (sample := make_sample(name, row, image)) is not None:
                    yield sample

    def split_off(self, fraction: float, seed: int) -> tuple["SampleStream", "SampleStream"]:
        """Return the remaining and the split-off rows; equal images are in the same part, in any order of the rows."""
        return replace(self, part=(fraction, 1.0, seed)), replace(self, part=(0.0, fraction, seed))

    def _is_in_part(self, image: str | bytes) -> bool:
        start, end, seed = self.part
        data = image if isinstance(image, bytes) else image.encode()
        digest = hashlib.blake2b(data, digest_size=8, key=str(seed).encode()).digest()
        return start <= int.from_bytes(digest) / 2**64 < end or (start, end) == (0.0, 1.0)

    def _make_labeled_sample(self, name: str, row: Mapping[str, Any], image: str | bytes) -> Sample | None:
        label = row[self.columns.target]
        if label in self.labels:
            return Sample(name, image, label=self.labels[label])
        self._report([Problem(name, "unknown class", f"label {label!r}")])
        return None

    def _make_detection_sample(self, name: str, row: Mapping[str, Any], image: str | bytes) -> Sample | None:
        annotated = self.columns.parse(name, row, lambda: image)
        if isinstance(annotated, Problem):
            self._report([annotated])
            return None
        problems: list[Problem] = []
        kept, objects = validate_boxes([annotated], self.labels, problems)
        self._report(problems)
        return Sample(name, image, objects=objects[0]) if kept else None

    def _report(self, problems: Sequence[Problem]) -> None:
        self.problems.extend(problem for problem in problems if problem not in self.problems)


def _find_missing_images(images: ImageColumn) -> Iterator[tuple[int, str]]:
    """Yield the index of each row without an accessible image, and the reason. Only rows with paths are resolved."""
    import pyarrow.compute

    column = images.rows.with_format("arrow")[:].column(images.column)
    has_bytes = pyarrow.compute.struct_field(column, "bytes").is_valid()  # ty: ignore[missing-attribute] (generated)
    for index in np.flatnonzero(~has_bytes.to_numpy()).tolist():
        try:
            images.item(index)
        except (OSError, ValueError) as error:
            yield index, str(error)


def _is_image(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})


def _object_features(feature: Any) -> dict[str, Any]:
    """Return the features of an object, of a list of dictionaries or a dictionary of lists."""
    inner = getattr(feature, "feature", feature)
    return {key: getattr(value, "feature", value) if inner is feature else value for key, value in dict(inner).items()}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    names = getattr(feature, "names", None)
    return tuple(names) if names else None
