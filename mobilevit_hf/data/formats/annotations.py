"""Validate annotated boxes and convert them to samples; invalid boxes become problems."""

import posixpath
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, combinations
from typing import Any, NamedTuple

import numpy as np
import torch

from ..images import DECODER_ERRORS
from ..sequences import ObjectTable, Samples
from ..types import Dataset, Objects, Problem, ProblemKind, Split
from .folder import DataFolder, has_exif, read_size
from .lookup import FileIndex

NAN = float("nan")
INVALID_BOX = (NAN,) * 4  # placeholder for a box that can't be parsed
CATEGORY_KEYS = ("category", "categories", "label", "labels")
MAX_CLASS_NUMBER = 100_000  # a larger one, perhaps from another column, would create names until memory is exhausted
MAX_AREA = 1e38  # larger ones, which exceed float32, are ignored
ROUNDING_PIXELS = 1.0  # boxes that exceed the image by less are clipped without a problem
CONVERSION_PIXELS = 2.0  # by which converters move boxes: VOC may count pixels from 1, and YOLO files are rounded


class Annotation(NamedTuple):
    """The class of an image or of an object in it, before validation."""

    key: Hashable  # class name or number, None if it can't be parsed
    box: Sequence[float] = INVALID_BOX  # (x1, y1, x2, y2) in pixels
    area: float = NAN  # in pixels²; NaN for the area of the box
    iscrowd: int = 0
    fault: str = ""  # why the box can't be parsed, to continue "box 1"
    shape: Any = None  # polygons or RLE of COCO, in segmentation


@dataclass
class AnnotatedImage:
    """An image and its annotations, before validation."""

    name: str  # path relative to the folder
    annotations: list[Annotation] = field(default_factory=list)  # objects, or the class in classification
    size: tuple[float, float] | None = None  # annotated (width, height), if available


def parse_object(bbox: Any, key: Any, area: Any = None, iscrowd: Any = None, segmentation: Any = None) -> Annotation:
    """Convert an object with a box [x, y, w, h], or without one with COCO polygons, whose extent is its box."""
    fault = ""
    try:
        if segmentation and not bbox:
            fault = " has no `bbox`, and a mask instead of polygons" if isinstance(segmentation, dict) else ""
            points = np.array(list(_flatten(segmentation)), dtype=np.float64).reshape(-1, 2)
            box = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
        else:
            x, y, width, height = map(float, bbox)
            box = (x, y, x + width, y + height)
    except (TypeError, ValueError, OverflowError, RecursionError):
        box = INVALID_BOX
    has_area = isinstance(area, int | float) and 0 < area < MAX_AREA
    is_crowd = bool(iscrowd) and iscrowd != "0"
    return Annotation(
        key if isinstance(key, str | int) else None, box, area if has_area else NAN, int(is_crowd), fault=fault
    )


def _flatten(values: Any) -> Iterator[float]:
    """Yield the numbers of nested lists: polygons are lists of coordinates, or of points."""
    for value in values:
        if isinstance(value, list):
            yield from _flatten(value)
        else:
            yield float(value)


def parse_objects(objects: Any) -> Iterator[Annotation]:
    """Yield the objects of an image, in a dictionary of lists of equal length or a list of dictionaries.

    Raises:
        ValueError: If it is neither.
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
        yield parse_object(entry.get("bbox"), key, entry.get("area"), entry.get("iscrowd"))


def find_classes(images: Mapping[str, Sequence[AnnotatedImage]]) -> tuple[tuple[str, ...], dict[Hashable, int]]:
    """Derive the classes from the training images, or without those from all. See `name_classes`."""
    chosen = images.get("train") or chain(*images.values())
    return name_classes(annotation.key for image in chosen for annotation in image.annotations)


def name_classes(keys: Iterable[Hashable]) -> tuple[tuple[str, ...], dict[Hashable, int]]:
    """Return the class names, sorted, or all numbers from 0 to the largest, and the label of each key."""
    keys = {key for key in keys if isinstance(key, str | int)}
    numbers = [key for key in keys if isinstance(key, int) and key >= 0]
    if keys and len(numbers) == len(keys):
        largest = max(numbers)
        if largest > MAX_CLASS_NUMBER:
            raise ValueError(
                f"got class {largest}, expected at most {MAX_CLASS_NUMBER}. Number the classes from 0, or use names."
            )
        return tuple(map(str, range(largest + 1))), {number: number for number in range(largest + 1)}
    classes = tuple(sorted({str(key) for key in keys}))
    return classes, {key: classes.index(str(key)) for key in keys}


def make_labeled_samples(
    folder: DataFolder, images: Iterable[tuple[str, Hashable]], labels: Mapping[Any, int]
) -> Samples:
    """Create samples from the names and class keys of images; those of unknown classes become problems."""
    names, targets = [], []
    for name, key in images:
        if key in labels:
            names.append(name)
            targets.append(labels[key])
        else:
            folder.report(name, "unknown class", f"class {key!r} is not in the training split")
    return Samples(names, [folder.path(name) for name in names], targets)


def note_unused(index: FileIndex, images: Mapping[str, Sequence[AnnotatedImage]], reason: str) -> None:
    """Note the images without an annotation that are in the folders of those with one."""
    used = {image.name for part in images.values() for image in part}
    directories = {posixpath.dirname(name) for name in used}
    unused = [name for name in index.names if posixpath.dirname(name) in directories and name not in used]
    if unused:
        index.folder.notes.append(f"Skipped {len(unused)} images {reason}, such as {unused[0]}.")


def make_splits(
    folder: DataFolder,
    images: Mapping[str, Sequence[AnnotatedImage]],
    labels: Mapping[Any, int],
    *,
    is_relative: bool = False,
    make: Callable[..., Samples] | None = None,
) -> dict[str, Split]:
    """Create the samples of each split by `make`, or those of detection by default. See `make_samples`.

    An image in two splits stays in the one for evaluation only, unless that repeats or contains the whole other split.
    """
    parts = {split: {image.name: image for image in part} for split, part in images.items()}
    for first, second in combinations([split for split in ("train", "validation", "test") if split in parts], 2):
        common = parts[first].keys() & parts[second].keys()
        reduced, other = (second, first) if len(common) == len(parts[first]) else (first, second)
        parts[reduced] = {name: image for name, image in parts[reduced].items() if name not in common}
        if common:
            effect = "left out of" if parts[reduced] else "nothing remains of"
            folder.notes.append(f"{len(common)} images of {reduced} are also in {other}: {effect} {reduced}.")
    make = make or partial(make_samples, is_relative=is_relative)
    return {split: make(folder, part.values(), labels) for split, part in parts.items() if part or not images[split]}


def make_dataset(
    folder: DataFolder,
    images: Mapping[str, Iterable[AnnotatedImage]],
    labels: Mapping[Any, int],
    classes: tuple[str, ...],
    data_format: str,
    *,
    is_detection: bool,
    is_relative: bool = False,
) -> Dataset:
    """Create a dataset from images by split, with boxes for detection (see `make_samples`) or else with one class."""
    splits: dict[str, Split] = {}
    for split, part in images.items():
        if is_detection:
            splits[split] = make_samples(folder, part, labels, is_relative=is_relative)
        else:
            splits[split] = make_labeled_samples(folder, ((i.name, i.annotations[0].key) for i in part), labels)
    return Dataset("object-detection" if is_detection else "image-classification", classes, splits, data_format)


def find_difference(dataset: Dataset, *others: Dataset) -> str | None:
    """Return an image whose split or objects differ between datasets in memory, None if all describe the same."""
    objects = _objects_by_image(dataset)
    for other in map(_objects_by_image, others):
        for key in sorted(objects.keys() | other.keys()):
            if not _are_same(objects.get(key, []), other.get(key, [])):
                return key[1]
    return None


def _objects_by_image(dataset: Dataset) -> dict[tuple[str, str], list[tuple[str, list[float]]]]:
    """Return the class and the box of each object, by split and image, without images that have none."""
    return {
        (split, sample.name): [
            (dataset.classes[label], box)
            for label, box in zip(sample.objects.labels.tolist(), sample.objects.boxes.tolist(), strict=True)
        ]
        for split, samples in dataset.splits.items()
        for sample in samples
        if sample.objects is not None and len(sample.objects.labels)
    }


def _are_same(objects: Iterable[tuple[str, list[float]]], others: Iterable[tuple[str, list[float]]]) -> bool:
    rest = list(others)
    for name, box in objects:
        same = (i for i, other in enumerate(rest) if other[0] == name and _are_close(box, other[1]))
        if (index := next(same, None)) is None:
            return False
        del rest[index]
    return not rest


def _are_close(box: Sequence[float], other: Sequence[float]) -> bool:
    return max(abs(a - b) for a, b in zip(box, other, strict=True)) <= CONVERSION_PIXELS


def make_samples(
    folder: DataFolder, images: Iterable[AnnotatedImage], labels: Mapping[Any, int], *, is_relative: bool = False
) -> Samples:
    """Create samples from annotated images, whose missing sizes are read from the files. See `validate_boxes`."""
    images = [image for image in images if fill_size(folder, image)]
    kept, objects = validate_boxes(images, labels, folder.problems, is_relative=is_relative)
    names = [images[index].name for index in kept]
    return Samples(names, [folder.path(name) for name in names], objects)


def fill_size(folder: DataFolder, image: AnnotatedImage) -> bool:
    """Fill in a missing size, and return whether the image is readable and the orientation of its boxes is known."""
    path = folder.path(image.name)
    try:
        if image.annotations and (image.size is None or has_exif(path)):
            upright, is_rotated = read_size(path)
            width, height = upright[::-1]
            if is_rotated and image.size == (width, height) != upright:
                reason = f"size {width}x{height} is that before EXIF rotation: save the image upright"
                folder.report(image.name, "unreadable annotation", reason)
                return False
            image.size = image.size or upright
    except DECODER_ERRORS as error:
        folder.report(image.name, "unreadable image", " ".join(str(error).split()))
        return False
    return True


def validate_boxes(
    images: Sequence[AnnotatedImage], labels: Mapping[Any, int], problems: list[Problem], *, is_relative: bool = False
) -> tuple[list[int], ObjectTable]:
    """Drop invalid boxes, clip the others to their image, and append both to the problems.

    Args:
        images: Annotated images; those with boxes need a size.
        labels: Label of each class key.
        problems: List of problems.
        is_relative: Whether boxes are relative to the image size (0..1) instead of in pixels.

    Returns:
        Indices of the images that have a valid box or no box at all, and the objects of these images.
    """
    annotations = [annotation for image in images for annotation in image.annotations]
    counts = np.array([len(image.annotations) for image in images], dtype=np.int64)
    owners = np.repeat(np.arange(len(images)), counts)
    boxes = np.array([annotation.box for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    box_labels = np.array([labels.get(annotation.key, -1) for annotation in annotations], dtype=np.int64)
    sizes = np.array([image.size or (0, 0) for image in images], dtype=np.float64).reshape(-1, 2)

    limits = np.tile(sizes, 2)[owners]
    boxes = boxes * limits if is_relative else boxes
    clipped = boxes.clip(0, limits).astype(np.float32)
    overhang = np.abs(boxes - boxes.clip(0, limits)).max(axis=1, initial=0)
    conditions: dict[ProblemKind, np.ndarray] = {
        "unreadable annotation": ~np.all(np.isfinite(boxes), axis=1),
        "unknown class": box_labels < 0,
        "box without area": ~_have_area(boxes),
        "box outside the image": ~_have_area(clipped) | (overhang > ROUNDING_PIXELS),
    }
    kinds = np.select(list(conditions.values()), list(conditions), default="")
    is_valid = (kinds == "") | ((kinds == "box outside the image") & _have_area(clipped))
    for row in np.flatnonzero(kinds != "").tolist():
        image, kind = images[owners[row]], kinds[row].item()
        index = row - int(np.searchsorted(owners, owners[row]))
        problems.append(Problem(image.name, kind, _explain(kind, image, index, boxes[row], is_valid[row])))

    valid_counts = np.bincount(owners[is_valid], minlength=len(images))
    kept = np.flatnonzero((valid_counts > 0) | (counts == 0))
    iscrowd = np.array([annotation.iscrowd for annotation in annotations], np.int64)
    areas = np.array([annotation.area for annotation in annotations], np.float32)
    areas = np.where(np.isfinite(areas), areas, (clipped[:, 2:] - clipped[:, :2]).prod(axis=1))
    columns = (clipped, box_labels, iscrowd, areas.astype(np.float32))
    objects = Objects(*(torch.from_numpy(column[is_valid]) for column in columns))
    return kept.tolist(), ObjectTable(objects, [0, *valid_counts[kept].cumsum().tolist()])


def _have_area(boxes: np.ndarray) -> np.ndarray:
    return np.all(boxes[:, 2:] > boxes[:, :2], axis=1)


def _explain(kind: ProblemKind, image: AnnotatedImage, index: int, box: np.ndarray, is_valid: bool) -> str:
    key, name = image.annotations[index].key, f"box {index + 1}"
    if kind == "unreadable annotation":
        return name + (image.annotations[index].fault or " can't be parsed as four numbers")
    if kind == "unknown class":
        return f"{name} has the class {key!r}, which is not a class of the dataset"
    reason = f"{name} ({key}) [{', '.join(f'{value:g}' for value in box)}]"
    if kind == "box outside the image":
        reason += f", image {'x'.join(f'{side:g}' for side in image.size or ())}"
    return f"{reason}: {'clipped' if is_valid else 'skipped'}"
