"""From what an annotation says to objects that can be trained on, and a problem for all that can't be."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..images import DECODER_ERRORS
from ..types import Objects, Problem
from .folder import DataFolder, may_be_turned, read_size
from .samples import ObjectTable, Samples

NO_BOX = (float("nan"),) * 4  # stands for a box that could not be read
ROUNDING_PIXELS = 1.0  # boxes may stick out this far without a word


@dataclass
class Annotated:
    """An image and its boxes as the annotation states them.

    Attributes:
        name: The image's path below the folder.
        size: Its width and height if the annotation states them.
        boxes: (x1, y1, x2, y2) in pixels; `NO_BOX` for one that could not be read.
        keys: The class of each, by name or number.
        iscrowd: 1 for a crowd; as long as `boxes`, or empty if there is none.
        areas: In pixels²; as long as `boxes` or empty, NaN for that of the box.
    """

    name: str
    size: tuple[float, float] | None = None
    boxes: list[Sequence[float]] = field(default_factory=list)
    keys: list[Hashable] = field(default_factory=list)
    iscrowd: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)


def measure(folder: DataFolder, images: list[Annotated]) -> list[Annotated]:
    """Put in the sizes that are missing, of the upright images, from the files' headers.

    Returns:
        The images without those that can't be read, and those whose annotation states the size before EXIF turns
        them: which way its boxes lie can't be told.
    """
    kept = []
    for image in images:
        path = folder.path(image.name)
        try:
            if image.boxes and (image.size is None or may_be_turned(path)):
                stored, is_turned = read_size(path)
                if is_turned and image.size == stored != stored[::-1]:
                    reason = f"states {stored[0]}x{stored[1]}, the size before EXIF turns the image: save it upright"
                    folder.report(image.name, "unreadable annotation", reason)
                    continue
                image.size = image.size or (stored[::-1] if is_turned else stored)
        except DECODER_ERRORS as error:
            folder.report(image.name, "unreadable image", " ".join(str(error).split()))
            continue
        kept.append(image)
    return kept


def make_samples(
    folder: DataFolder, images: list[Annotated], places: Mapping[Hashable, int], *, is_relative: bool = False
) -> Samples:
    """Samples of the images of a folder, whose sizes may be missing; see `check_boxes`.

    Args:
        folder: Where they are.
        images: What their annotations state.
        places: The label of each class by the key that the boxes have.
        is_relative: Whether the boxes are in 0..1 of the image instead of in pixels.
    """
    images = measure(folder, images)
    for image in images if is_relative else []:
        image.boxes = [tuple(np.multiply(box, image.size * 2)) for box in image.boxes]
    kept, table = check_boxes(images, places, folder.problems)
    names = [images[place].name for place in kept]
    return Samples(names, [folder.path(name) for name in names], table)


def check_boxes(
    images: Sequence[Annotated], places: Mapping[Hashable, int], problems: list[Problem]
) -> tuple[list[int], ObjectTable]:
    """Report and leave out boxes that can't be trained on, and clip those that stick out of the image.

    Args:
        images: With their sizes, where they have boxes.
        places: The label of each class by the key that the boxes have.
        problems: Takes what is wrong with boxes.

    Returns:
        Which images to keep, which are those with a good box and those without any box, and their objects.
    """
    counts = np.array([len(image.boxes) for image in images], dtype=np.int64)
    owners = np.repeat(np.arange(len(images)), counts)
    boxes = np.array([box for image in images for box in image.boxes], dtype=np.float64).reshape(-1, 4)
    labels = np.array([places.get(key, -1) for image in images for key in image.keys], dtype=np.int64)
    sizes = np.array([image.size or (0, 0) for image in images], dtype=np.float64).reshape(-1, 2)

    limits = np.tile(sizes, 2)[owners]
    clipped = boxes.clip(0, limits).astype(np.float32)
    sticks_out = np.abs(boxes - boxes.clip(0, limits)).max(axis=1, initial=0)
    faults = {
        "unreadable annotation": ~np.isfinite(boxes).all(axis=1),
        "unknown class": labels < 0,
        "box without area": ~_have_area(boxes),
        "box outside the image": ~_have_area(clipped) | (sticks_out > ROUNDING_PIXELS),
    }
    kinds = np.select(list(faults.values()), list(faults), default="")
    is_good = (kinds == "") | ((kinds == "box outside the image") & _have_area(clipped))
    problems += _box_problems(images, owners, boxes, kinds.tolist(), is_good)

    good_counts = np.bincount(owners[is_good], minlength=len(images))
    kept = np.flatnonzero((good_counts > 0) | (counts == 0))
    iscrowd = np.array([flag for image in images for flag in image.iscrowd or [0] * len(image.boxes)], np.int64)
    nan = float("nan")
    areas = np.array([area for image in images for area in image.areas or [nan] * len(image.boxes)], np.float32)
    areas = np.where(np.isfinite(areas), areas, (clipped[:, 2:] - clipped[:, :2]).prod(axis=1))
    columns = (clipped, labels, iscrowd, areas.astype(np.float32))
    objects = Objects(*(torch.from_numpy(column[is_good]) for column in columns))
    return kept.tolist(), ObjectTable(objects, [0, *good_counts[kept].cumsum().tolist()])


def _have_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


def _box_problems(
    images: Sequence[Annotated], owners: np.ndarray, boxes: np.ndarray, kinds: Sequence[str], is_good: np.ndarray
) -> Iterator[Problem]:
    for row in [row for row, kind in enumerate(kinds) if kind]:
        image = images[owners[row]]
        place = row - int(np.searchsorted(owners, owners[row]))
        what = f"box {place + 1} ({image.keys[place]}) [{', '.join(f'{value:g}' for value in boxes[row])}]"
        if kinds[row] == "unreadable annotation":
            reason = f"box {place + 1} can't be read as four numbers"
        elif kinds[row] == "unknown class":
            reason = f"box {place + 1} is of the class {image.keys[place]!r}, which is none of the dataset's"
        elif kinds[row] == "box without area":
            reason = f"{what}: left out"
        else:
            size = "x".join(f"{side:g}" for side in image.size)
            reason = f"{what} in {size} pixels: {'clipped' if is_good[row] else 'left out'}"
        yield Problem(image.name, kinds[row], reason)
