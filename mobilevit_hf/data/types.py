"""What a dataset is here, whatever format it came in: samples in splits, the classes' names, what was wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..tasks import TaskName

# What can be wrong with a file; each word is also the heading under which it is counted.
ProblemKind = Literal[
    "unreadable image",
    "missing image",
    "unreadable annotation",
    "empty label file",
    "box without area",
    "box outside the image",
    "unknown class",
    "same image in two splits",
]


@dataclass(frozen=True)
class Objects:
    """What is on one image.

    Attributes:
        boxes: (N, 4) float32 (x1, y1, x2, y2) in pixels of the upright image.
        labels: (N,) int64, 0..K-1.
        iscrowd: (N,) int64, 1 for a box around many objects, which training leaves out and COCO's metric ignores.
        areas: (N,) float32 in pixels²: of the annotated shape where the format says it, else of the box.
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
        """From lists of equal length; no list of `iscrowd` means none, of `areas` those of the boxes."""
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        sides = corners[:, 2:] - corners[:, :2]
        return cls(
            boxes=corners,
            labels=torch.tensor(labels, dtype=torch.int64),
            iscrowd=torch.tensor([0] * len(corners) if iscrowd is None else iscrowd, dtype=torch.int64),
            areas=sides.prod(dim=1) if areas is None else torch.tensor(areas, dtype=torch.float32),
        )


@dataclass(frozen=True)
class Sample:
    """An image and what is known about it.

    Attributes:
        name: How the user knows it: the file's path below the dataset's folder, or `train[17]`.
        image: What `LazyImage` reads: a path, a URL, the bytes of a file, or a decoded image.
        label: Its class 0..K-1 in classification, else None.
        objects: What is on it in detection, else None.
    """

    name: str
    image: Any
    label: int | None = None
    objects: Objects | None = None


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file (or row) of a dataset.

    Attributes:
        name: As in `Sample`, or the annotation file's path.
        kind: What sort of problem.
        reason: One line that says more.
    """

    name: str
    kind: ProblemKind
    reason: str

    @property
    def is_bad(self) -> bool:
        """Whether anything was left out for it; an image with an empty label file is kept as background."""
        return self.kind != "empty label file"


@dataclass
class Dataset:
    """A dataset that was read.

    Attributes:
        task: What it is for.
        classes: The classes' names; a label is a place in it.
        splits: The samples of `"train"`, `"validation"` and `"test"`, as far as there are any. A sequence, which
            may make a sample only when it is asked for, or for a stream an iterable without a length.
        data_format: The name of its format.
        root: Its folder, None if it came from the Hub.
        notes: Plain sentences about decisions to tell the user, such as a validation split that was cut off.
        problems: What was found wrong while reading. What has a problem is not in the splits: a sample, or of a
            image with some good boxes the bad ones.
    """

    task: TaskName
    classes: tuple[str, ...]
    splits: dict[str, Sequence[Sample] | Iterable[Sample]]
    data_format: str
    root: Path | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
