"""Paint the polygons and RLE of annotated objects to masks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..images import DECODER_ERRORS
from ..masks import Mask, Shapes
from ..sequences import Samples
from ..types import Dataset
from .annotations import AnnotatedImage, Annotation, fill_size, make_splits
from .folder import DataFolder, read_size

BACKGROUND, BACKGROUND_NAMES = "background", ("background", "_background_", "__background__", "bg")
MIN_VALUES = 6  # of a polygon: x and y of three points; tools write shorter ones for single pixels
MAX_COORDINATE = 2**20  # in pixels; the outline of a polygon that is far larger than images would fill the memory


def make_painted_dataset(
    folder: DataFolder,
    images: Mapping[str, Sequence[AnnotatedImage]],
    classes: Sequence[str],
    data_format: str,
    *,
    labels: Mapping[Any, int] | None = None,
    is_relative: bool = False,
) -> Dataset:
    """Create a dataset with masks from images whose annotations have shapes.

    Pixels without an object are the class background, the first one unless the dataset has a class of this name.
    Smaller objects cover larger ones.

    Args:
        folder: Folder of the images.
        images: Annotated images by split.
        classes: Class names.
        data_format: Name of the format.
        labels: Index into `classes` of each key of an annotation. None: the keys are the names.
        is_relative: Whether polygons are relative to the image size (0..1) instead of in pixels.
    """
    labels = labels or {name: label for label, name in enumerate(classes)}
    background = next((label for label, name in enumerate(classes) if name.lower() in BACKGROUND_NAMES), None)
    if background is None:
        classes, background = [BACKGROUND, *classes], 0
        labels = {key: label + 1 for key, label in labels.items()}
        folder.notes.append(f"Pixels without an object are the class {BACKGROUND}.")
    make = partial(_make_samples, background=background, is_relative=is_relative)
    splits = make_splits(folder, images, labels, make=make)
    return Dataset("image-segmentation", tuple(classes), splits, data_format)


def _make_samples(
    folder: DataFolder,
    images: Iterable[AnnotatedImage],
    labels: Mapping[Any, int],
    background: int,
    *,
    is_relative: bool,
) -> Samples:
    names, masks = [], []
    for image in images:
        if not fill_size(folder, image) or not _read_missing_size(folder, image):
            continue
        width, height = (round(side) for side in image.size or (0, 0))
        scale = (width, height) if is_relative else (1, 1)
        shapes = []
        for number, annotation in enumerate(image.annotations, 1):
            if annotation.shape is None and annotation.fault:
                folder.report(image.name, "unreadable annotation", f"object {number}{annotation.fault}")
            elif annotation.key not in labels:
                reason = f"object {number} has the class {annotation.key!r}, which is not a class of the dataset"
                folder.report(image.name, "unknown class", reason)
            elif (shape := _parse_shape(annotation.shape, (height, width), scale)) is None:
                reason = f"object {number} has no polygon of three points and no RLE of the image's size: skipped"
                folder.report(image.name, "unreadable annotation", reason)
            else:
                shapes.append((_area(annotation, shape), labels[annotation.key], shape))
        if shapes or not image.annotations:
            shapes.sort(key=lambda entry: -entry[0])
            names.append(image.name)
            masks.append(Mask(Shapes((width, height), [entry[1:] for entry in shapes], background)))
    return Samples(names, [folder.path(name) for name in names], masks)


def _read_missing_size(folder: DataFolder, image: AnnotatedImage) -> bool:
    """Read the size of an image without objects, and return whether it is readable."""
    try:
        image.size = image.size or read_size(folder.path(image.name))[0]
    except DECODER_ERRORS as error:
        folder.report(image.name, "unreadable image", " ".join(str(error).split()))
    return image.size is not None


def _area(annotation: Annotation, shape: list[np.ndarray] | dict[str, Any]) -> float:
    """Return the annotated area, or else that of the polygons, or of the box of RLE."""
    if not math.isnan(annotation.area):
        return annotation.area
    if isinstance(shape, list):
        return sum(map(_polygon_area, shape))
    x1, y1, x2, y2 = annotation.box
    return max(0.0, (x2 - x1) * (y2 - y1))  # 0 for NaN


def _polygon_area(polygon: np.ndarray) -> float:
    """Return the area in pixels², by the shoelace formula."""
    x, y = polygon.reshape(-1, 2).T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _parse_shape(
    shape: Any, size: tuple[int, int], scale: tuple[int, int]
) -> list[np.ndarray] | dict[str, Any] | None:
    """Return polygons as arrays, which take a fraction of the memory of lists, or RLE; None if it is neither.

    Args:
        shape: Shape of an annotation.
        size: (height, width) of the image.
        scale: Factors of x and y of polygons.
    """
    if isinstance(shape, dict):
        return shape if list(shape.get("size") or ()) == list(size) and shape.get("counts") else None
    if not isinstance(shape, list) or not shape:
        return None
    parts = [shape] if isinstance(shape[0], int | float) else shape
    try:
        polygons = [np.array(part, dtype=np.float64).ravel() for part in parts]  # of numbers, or of points
    except (TypeError, ValueError):
        return None
    polygons = [part for part in polygons if len(part) >= MIN_VALUES and len(part) % 2 == 0]
    scaled = [(part.reshape(-1, 2) * scale).ravel() for part in polygons]
    return [part for part in scaled if np.abs(part).max() < MAX_COORDINATE] or None  # not those with NaN
