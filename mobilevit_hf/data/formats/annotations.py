"""Validate annotated boxes and convert them to samples; invalid boxes become problems."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..images import DECODER_ERRORS
from ..sequences import ObjectTable, Samples
from ..types import Objects, Problem, ProblemKind
from .folder import DataFolder, has_exif, read_size

INVALID_BOX = (float("nan"),) * 4  # placeholder for a box that can't be parsed
ROUNDING_PIXELS = 1.0  # boxes that exceed the image by less are clipped without a problem


@dataclass
class AnnotatedImage:
    """An image and its annotation, before validation.

    Attributes:
        name: Path of the image relative to the folder.
        size: Annotated (width, height), if available.
        boxes: (x1, y1, x2, y2) in pixels; `INVALID_BOX` if a box can't be parsed.
        keys: Class of each box, by name or number.
        iscrowd: 1 for a crowd; one per box, or empty if there are none.
        areas: Area of each box in pixels²; NaN or an empty list for the area of the box.
    """

    name: str
    size: tuple[float, float] | None = None
    boxes: list[Sequence[float]] = field(default_factory=list)
    keys: list[Hashable] = field(default_factory=list)
    iscrowd: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)


def make_samples(
    folder: DataFolder, images: list[AnnotatedImage], labels: Mapping[Hashable, int], *, is_relative: bool = False
) -> Samples:
    """Create samples from the annotated images of a folder. See `validate_boxes`.

    Args:
        folder: Folder of the images.
        images: Annotated images; missing sizes are read from the files.
        labels: Label of each class key.
        is_relative: Whether boxes are relative to the image size (0..1) instead of in pixels.
    """
    images = _fill_sizes(folder, images)
    if is_relative:
        for image in images:
            image.boxes = [tuple(np.multiply(box, (image.size or (0, 0)) * 2)) for box in image.boxes]
    kept, objects = validate_boxes(images, labels, folder.problems)
    names = [images[index].name for index in kept]
    return Samples(names, [folder.path(name) for name in names], objects)


def _fill_sizes(folder: DataFolder, images: list[AnnotatedImage]) -> list[AnnotatedImage]:
    """Fill in missing sizes of the upright images, from the headers of the files.

    Returns:
        The images without unreadable ones, and without those annotated with the size before EXIF rotation, for which
        the orientation of the boxes is ambiguous.
    """
    kept = []
    for image in images:
        path = folder.path(image.name)
        try:
            if image.boxes and (image.size is None or has_exif(path)):
                stored, is_rotated = read_size(path)
                if is_rotated and image.size == stored != stored[::-1]:
                    reason = f"size {stored[0]}x{stored[1]} is that before EXIF rotation: save the image upright"
                    folder.report(image.name, "unreadable annotation", reason)
                    continue
                image.size = image.size or (stored[::-1] if is_rotated else stored)
        except DECODER_ERRORS as error:
            folder.report(image.name, "unreadable image", " ".join(str(error).split()))
            continue
        kept.append(image)
    return kept


def validate_boxes(
    images: Sequence[AnnotatedImage], labels: Mapping[Hashable, int], problems: list[Problem]
) -> tuple[list[int], ObjectTable]:
    """Drop invalid boxes, clip the others to their image, and report both.

    Args:
        images: Annotated images; those with boxes need a size.
        labels: Label of each class key.
        problems: List to which problems are appended.

    Returns:
        Indices of the images that have a valid box or no box at all, and the objects of these images.
    """
    counts = np.array([len(image.boxes) for image in images], dtype=np.int64)
    owners = np.repeat(np.arange(len(images)), counts)
    boxes = np.array([box for image in images for box in image.boxes], dtype=np.float64).reshape(-1, 4)
    box_labels = np.array([labels.get(key, -1) for image in images for key in image.keys], dtype=np.int64)
    sizes = np.array([image.size or (0, 0) for image in images], dtype=np.float64).reshape(-1, 2)

    limits = np.tile(sizes, 2)[owners]
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
    problems += _box_problems(images, owners, boxes, kinds.tolist(), is_valid)

    valid_counts = np.bincount(owners[is_valid], minlength=len(images))
    kept = np.flatnonzero((valid_counts > 0) | (counts == 0))
    iscrowd = np.array([flag for image in images for flag in image.iscrowd or [0] * len(image.boxes)], np.int64)
    nan = float("nan")
    areas = np.array([area for image in images for area in image.areas or [nan] * len(image.boxes)], np.float32)
    areas = np.where(np.isfinite(areas), areas, (clipped[:, 2:] - clipped[:, :2]).prod(axis=1))
    columns = (clipped, box_labels, iscrowd, areas.astype(np.float32))
    objects = Objects(*(torch.from_numpy(column[is_valid]) for column in columns))
    return kept.tolist(), ObjectTable(objects, [0, *valid_counts[kept].cumsum().tolist()])


def _have_area(boxes: np.ndarray) -> np.ndarray:
    return np.all(boxes[:, 2:] > boxes[:, :2], axis=1)


def _box_problems(
    images: Sequence[AnnotatedImage],
    owners: np.ndarray,
    boxes: np.ndarray,
    kinds: Sequence[Any],
    is_valid: np.ndarray,
) -> Iterator[Problem]:
    for row in [row for row, kind in enumerate(kinds) if kind]:
        image = images[owners[row]]
        index = row - int(np.searchsorted(owners, owners[row]))
        box = f"box {index + 1} ({image.keys[index]}) [{', '.join(f'{value:g}' for value in boxes[row])}]"
        if kinds[row] == "unreadable annotation":
            reason = f"box {index + 1} can't be parsed as four numbers"
        elif kinds[row] == "unknown class":
            reason = f"box {index + 1} has the class {image.keys[index]!r}, which is not a class of the dataset"
        elif kinds[row] == "box without area":
            reason = f"{box}: skipped"
        else:
            size = "x".join(f"{side:g}" for side in image.size or ())
            reason = f"{box}, image {size}: {'clipped' if is_valid[row] else 'skipped'}"
        yield Problem(image.name, kinds[row], reason)
