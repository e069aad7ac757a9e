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

from ...tasks import TaskName
from ..images import DECODER_ERRORS
from ..masks import Mask, MaskEncoding
from ..sequences import LazySequence, Samples, Subset
from ..types import Problem, Sample
from .annotations import CATEGORY_KEYS, AnnotatedImage, name_classes, parse_objects, validate_boxes
from .folder import read_size

if TYPE_CHECKING:
    import datasets

READ_ROWS = 16  # of a stream, at a time
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
MASK_COLUMNS = (
    *("mask", "masks", "segmentation", "segmentation_mask", "semantic_segmentation", "semantic_mask", "seg", "label"),
    *("labels", "annotation", "annotations", "label_image", "gt", "ground_truth", "semantic", "sem_seg"),
)


@dataclass(frozen=True)
class RowSource:
    """Origin of rows, which limits the files and URLs that their images may refer to."""

    name: str  # in messages
    root: Path | None = None  # None for the Hub
    token: str | bool | None = field(default=None, repr=False)  # for images that are fetched on access

    def resolve(self, value: Any) -> str | bytes:
        """Return the path or content of the image in a value {"bytes", "path"} of an image column.

        Raises:
            ValueError or OSError: If there is no such image, or it is not part of the dataset.
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

    def _item(self, index: int) -> str | bytes:
        return self.source.resolve(self.rows[index][self.column])


@dataclass(frozen=True)
class MaskColumn(LazySequence):
    """Masks of rows, read on access."""

    sources: Sequence[str | bytes]
    encoding: MaskEncoding

    def __len__(self) -> int:
        return len(self.sources)

    def _item(self, index: int) -> Mask:
        return Mask(self.sources[index], self.encoding)


@dataclass(frozen=True)
class Columns:
    """Names and types of the columns of a dataset."""

    image: str
    target: str  # labels, objects or masks
    task: TaskName
    classes: tuple[str, ...] | None  # None if the column doesn't name them
    size: tuple[str, ...]  # width and height, if available
    unused_masks: str = ""  # column of masks of a dataset for another task

    @property
    def is_detection(self) -> bool:
        """Whether the targets are objects."""
        return self.task == "object-detection"

    @property
    def is_segmentation(self) -> bool:
        """Whether the targets are masks."""
        return self.task == "image-segmentation"

    def parse(
        self, name: str, row: Mapping[str, Any], load: Callable[[], str | bytes], problems: list[Problem]
    ) -> AnnotatedImage | None:
        """Parse the objects of a row; `load` returns its image, whose size is read if there are no columns for it."""
        try:
            image = AnnotatedImage(name, list(parse_objects(row[self.target])))
        except (TypeError, ValueError) as error:
            problems.append(Problem(name, "unreadable annotation", str(error)))
            return None
        width, height = (row[column] or 0 for column in self.size) if self.size else (0, 0)
        try:
            if min(width, height) > 0:
                image.size = (width, height)
            elif image.annotations:
                image.size, _ = read_size(load())
        except DECODER_ERRORS as error:
            problems.append(Problem(name, "unreadable image", " ".join(str(error).split())))
            return None
        return image


def find_columns(name: str, features: Mapping[str, Any] | None, task: TaskName | None = None) -> Columns:
    """Find the columns of images and of labels, objects or masks. Several candidates are an error.

    Objects and labels come before masks, unless `task` is segmentation.
    """
    import datasets

    features = features or {}
    columns = ", ".join(features) or "no columns"
    images = [
        key
        for key, feature in features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})
    ]
    masks = next((key for key in MASK_COLUMNS if key in images and len(images) > 1), "")
    images = [key for key in images if key != masks]
    candidates = [key for key in IMAGE_COLUMNS if key in images] or images
    if not images or (len(images) > 1 and candidates == images and images[0] not in IMAGE_COLUMNS):
        raise ValueError(f"{name}: expected one column of images, got {columns}. Rename it to image.")
    size = ("width", "height") if {"width", "height"} <= features.keys() else ()
    class_columns = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = [key for key in LABEL_COLUMNS if isinstance(features.get(key), datasets.ClassLabel | datasets.Value)]
    if masks and (task == "image-segmentation" or not (task or labels or "objects" in features)):
        return Columns(candidates[0], masks, "image-segmentation", None, size)
    if task == "image-segmentation":
        raise ValueError(f"{name}: expected a column of masks, got {columns}. Rename the column of the masks to mask.")
    if "objects" in features:
        objects = features["objects"]
        inner = getattr(objects, "feature", objects)  # of a list of dictionaries; without it a dictionary of lists
        fields = {k: getattr(v, "feature", v) if inner is objects else v for k, v in dict(inner).items()}
        categories = [fields[key] for key in CATEGORY_KEYS if key in fields]
        if "bbox" not in fields or not categories:
            raise ValueError(
                f"{name}: expected `bbox` and `category` in `objects`, got {', '.join(fields) or 'no fields'}."
            )
        return Columns(candidates[0], "objects", "object-detection", _class_names(categories[0]), size, masks)
    if not labels and len(class_columns) != 1:
        raise ValueError(
            f"{name}: expected a column `label` or `objects`, got {columns}. Rename the column of the annotations."
        )
    target = (labels or class_columns)[0]
    return Columns(candidates[0], target, "image-classification", _class_names(features[target]), size, masks)


def find_classes(
    name: str, rows: "datasets.Dataset | datasets.IterableDataset", columns: Columns
) -> tuple[tuple[str, ...], dict[Hashable, int]]:
    """Return the class names and the label of each key, from the rows if the column has no class names."""
    import datasets

    if columns.classes is not None:
        return columns.classes, {label: label for label in range(len(columns.classes))}
    if not isinstance(rows, datasets.Dataset):
        raise ValueError(
            f"{name}: the column {columns.target} doesn't name the classes, which streaming requires. Add "
            "classes.txt with a name per line, in the order of the numbers, or load it without streaming."
        )
    keys = set()
    for value in rows.select_columns([columns.target])[:][columns.target]:
        try:
            keys |= {entry.key for entry in parse_objects(value)} if columns.is_detection else {value}
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
    encoding: MaskEncoding | None = None,
) -> Samples:
    """Create the samples of a split from rows with disabled decoding; images and masks are read on access."""
    names = [f"{split}[{index}]" for index in range(len(rows))]
    images = ImageColumn(rows.select_columns([columns.image]), columns.image, source)
    missing = dict(_find_missing_images(images))
    problems += [Problem(names[index], "missing image", reason) for index, reason in missing.items()]
    if encoding:
        masks = ImageColumn(rows.select_columns([columns.target]), columns.target, source)
        without = dict(_find_missing_images(masks))
        problems += [Problem(names[index], "missing mask", reason) for index, reason in without.items()]
        kept = [index for index in range(len(rows)) if index not in missing and index not in without]
        return Samples(Subset(names, kept), Subset(images, kept), MaskColumn(Subset(masks, kept), encoding))
    values = rows.select_columns([columns.target, *(columns.size if columns.is_detection else ())])[:]
    available = [index for index in range(len(rows)) if index not in missing]
    if columns.is_detection:
        annotated: dict[int, AnnotatedImage] = {}
        for index in available:
            row = {key: column[index] for key, column in values.items()}
            if image := columns.parse(names[index], row, lambda index=index: images[index], problems):
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
    """Streamed samples of a split, see `make_samples`. Problems are appended while iterating, each once."""

    rows: "datasets.IterableDataset"
    split: str
    columns: Columns
    labels: Mapping[Hashable, int]
    source: RowSource
    problems: list[Problem]
    encoding: MaskEncoding | None = None  # of masks
    part: tuple[float, float, int] = (0.0, 1.0, 0)  # (start, end, seed) of a hash of the images, 0..1

    @property
    def num_shards(self) -> int:
        """Number of files, or other parts, that can be read independently of each other."""
        return self.rows.num_shards

    def __iter__(self) -> Iterator[Sample]:
        for shard in range(self.num_shards):
            yield from filter(None, self.read_shard(shard))

    def read_shard(self, shard: int, start: int = 0) -> Iterator[Sample | None]:
        """Yield the samples of a shard from row `start` on, None for a row that is invalid or not in this part."""
        rows = self.rows.shard(self.num_shards, shard)
        rows = rows.skip(start) if start else rows
        # Not `iter(rows)`, which yields only some rows in a worker process of a `DataLoader`.
        batches = rows.iter(READ_ROWS)
        values = (dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True))
        for number, row in enumerate(values, start=start):
            name = f"{self.split}[{number}]" if self.num_shards == 1 else f"{self.split}[{shard}, {number}]"
            problems: list[Problem] = []
            sample = self._read(name, row, problems)
            self.problems.extend(problem for problem in problems if problem not in self.problems)
            yield sample

    def split_off(self, fraction: float, seed: int) -> tuple["SampleStream", "SampleStream"]:
        """Return the remaining and the split-off rows; equal images are in the same part, in any order of the rows."""
        return replace(self, part=(fraction, 1.0, seed)), replace(self, part=(0.0, fraction, seed))

    def _is_in_part(self, image: str | bytes) -> bool:
        start, end, seed = self.part
        data = image if isinstance(image, bytes) else image.encode()
        digest = hashlib.blake2b(data, digest_size=8, key=str(seed).encode()).digest()
        return start <= int.from_bytes(digest) / 2**64 < end or (start, end) == (0.0, 1.0)

    def _read(self, name: str, row: Mapping[str, Any], problems: list[Problem]) -> Sample | None:
        try:
            image = self.source.resolve(row[self.columns.image])
        except (OSError, ValueError) as error:
            problems.append(Problem(name, "missing image", str(error)))
            return None
        if not self._is_in_part(image):
            return None
        if self.columns.is_detection:
            annotated = self.columns.parse(name, row, lambda: image, problems)
            kept, objects = validate_boxes([annotated] if annotated else [], self.labels, problems)
            return Sample(name, image, objects=objects[0]) if kept else None
        if self.encoding:
            try:
                return Sample(name, image, mask=Mask(self.source.resolve(row[self.columns.target]), self.encoding))
            except (OSError, ValueError) as error:
                problems.append(Problem(name, "missing mask", str(error)))
                return None
        label = row[self.columns.target]
        if label in self.labels:
            return Sample(name, image, label=self.labels[label])
        problems.append(Problem(name, "unknown class", f"label {label!r}"))
        return None


def _find_missing_images(images: ImageColumn) -> Iterator[tuple[int, str]]:
    """Yield the index of each row without an accessible image, and the reason. Only rows with paths are resolved."""
    import pyarrow.compute

    column = images.rows.with_format("arrow")[:].column(images.column)
    has_bytes = pyarrow.compute.struct_field(column, "bytes").is_valid()  # ty: ignore[missing-attribute] (generated)
    for index in np.flatnonzero(~has_bytes.to_numpy()).tolist():
        try:
            images[index]
        except (OSError, ValueError) as error:
            yield index, str(error)


def _class_names(feature: Any) -> tuple[str, ...] | None:
    names = getattr(feature, "names", None)
    return tuple(names) if names else None
