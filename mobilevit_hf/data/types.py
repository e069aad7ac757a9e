"""Datasets in memory, independent of their format: samples by split, class names, and problems found while reading."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..tasks import TaskName

if TYPE_CHECKING:
    from .masks import Mask

IGNORE_INDEX = 255  # label of the pixels of a mask that neither a loss nor a metric counts

# Also the headings under which problems are counted.
ProblemKind = Literal[
    "unreadable image",
    "missing image",
    "unreadable annotation",
    "empty label file",
    "box without area",
    "box outside the image",
    "missing mask",
    "unreadable mask",
    "mask of another size",
    "color mask without a palette",
    "value outside the classes",
    "mask of ignored pixels",
    "empty mask",
    "unknown class",
    "same image in two splits",
    "same image in two classes",
]

LEAKAGE: ProblemKind = "same image in two splits"  # whose samples are valid, but left out of the earlier split
# Kinds whose samples are used: images with an empty label file or mask are background, pixels without a class are
# ignored, and which of two classes is right is unknown.
WARNINGS: tuple[ProblemKind, ...] = (
    "empty label file",
    "empty mask",
    "value outside the classes",
    "same image in two classes",
)


@dataclass(frozen=True)
class Objects:
    """Objects of an image.

    Attributes:
        boxes: (N, 4) float32 (x1, y1, x2, y2) in pixels of the upright image.
        labels: (N,) int64, 0..K-1.
        iscrowd: (N,) int64, 1 for a box around a group of objects, which training skips and COCO's metric ignores.
        areas: (N,) float32 in pixels²: annotated area of the shape if available, else area of the box.
    """

    boxes: Tensor
    labels: Tensor
    iscrowd: Tensor
    areas: Tensor

    @classmethod
    def from_lists(
        cls,
        boxes: Sequence[Sequence[float]],
        labels: Sequence[int],
        iscrowd: Sequence[int] | None = None,
        areas: Sequence[float] | None = None,
    ) -> "Objects":
        """Create objects from lists of equal length; `iscrowd` defaults to 0 and `areas` to the areas of the boxes."""
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        sides = corners[:, 2:] - corners[:, :2]
        return cls(
            boxes=corners,
            labels=torch.tensor(labels, dtype=torch.int64),
            iscrowd=torch.tensor([0] * len(corners) if iscrowd is None else iscrowd, dtype=torch.int64),
            areas=sides.prod(dim=1) if areas is None else torch.tensor(areas, dtype=torch.float32),
        )

    def select(self, mask: Tensor) -> "Objects":
        """Return the objects for which a mask (N,) is true."""
        return Objects(self.boxes[mask], self.labels[mask], self.iscrowd[mask], self.areas[mask])


@dataclass(frozen=True)
class Sample:
    """An image and its annotation.

    Attributes:
        name: Path of the file relative to the dataset's folder, or `train[17]` for a row.
        image: Source that `LazyImage` accepts: a path, a URL, the content of an image file, or a decoded image.
        label: Class 0..K-1; classification only.
        objects: Objects of the image; detection only.
        mask: Class of each pixel; segmentation only.
    """

    name: str
    image: Any
    label: int | None = None
    objects: Objects | None = None
    mask: "Mask | None" = None


@dataclass(frozen=True)
class Problem:
    """An invalid file or row of a dataset.

    Attributes:
        name: Name of the sample, or path of the annotation file.
        kind: Kind of problem.
        reason: Details, in one line.
    """

    name: str
    kind: ProblemKind
    reason: str

    @property
    def is_error(self) -> bool:
        """Whether the sample or some of its boxes are skipped."""
        return self.kind not in WARNINGS


# A sequence, which may create samples on access, or an iterable without a length for a stream.
Split: TypeAlias = Sequence[Sample] | Iterable[Sample]


class UnlabeledImagesError(ValueError):
    """A folder of images without annotations where a dataset is expected."""


@dataclass
class Dataset:
    """A dataset.

    Attributes:
        task: Task of its annotations.
        classes: Class names; a label is an index into them.
        splits: Valid samples, by `"train"`, `"validation"` and `"test"`, as available.
        data_format: Key of `DATA_FORMATS`.
        root: Folder of the dataset, None for a dataset of the Hub.
        notes: Decisions made while reading that the user should know about, as sentences.
        problems: Problems found while reading. The affected samples, or the affected boxes of images that also have
            valid boxes, are not in `splits`.
        validation_cut_off: Whether the validation split was split off the training split.
    """

    task: TaskName
    classes: tuple[str, ...]
    splits: dict[str, Split]
    data_format: str
    root: Path | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    validation_cut_off: bool = False
