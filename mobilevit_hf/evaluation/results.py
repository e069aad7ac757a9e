"""What is said about a model that was measured."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.types import Problem
from ..tasks import TaskName

MAX_MISTAKES = 24


@dataclass(frozen=True)
class BestThreshold:
    """The threshold of a detector that gives the highest F1 at an IoU of 0.5, all classes counted together.

    Attributes:
        value: Scores above it are detections.
        f1, precision, recall: What that gives, 0..1.
    """

    value: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Mistake:
    """An image that a model gets wrong.

    Attributes:
        place: In the samples.
        name: Of the sample.
        right: A classifier's right class, by the model's name of it; for a detector how many objects there are.
        named: The class named instead; for a detector how many objects are missed and how many detections wrong.
        score: How bad it is: the probability given to the wrong class, 0..1; for a detector the number of errors.
    """

    place: int
    name: str
    right: str
    named: str
    score: float


@dataclass(frozen=True)
class EvaluationResult:
    """How good a model is.

    Attributes:
        task: What it does.
        metrics: What `TopKAccuracy` or `CocoMap` returns, with `per_class` by the model's names of the classes.
        intervals: By metric the ends of its 95 % confidence interval: a bootstrap over the images.
        best_threshold: Of a detector that found anything, else None.
        images_per_second: From the file to the answer: decoding, processing, the network and what makes detections
            of its outputs; without the metrics. Of several processes the images of all by the time of the slowest.
        num_images: How many were measured.
        problems: The images that could not be read, in the samples' order.
        notes: Plain sentences about decisions to tell the user.
        confusion: (K, K) int64 of a classifier, by the model's classes: how many images of the row's class it calls
            the column's. None for a detector.
        mistakes: The worst first, at most `MAX_MISTAKES`: a classifier's wrong answers by the probability that it
            gave them; a detector's images by the objects missed and the detections that are wrong, at the best
            threshold and an IoU of 0.5.
    """

    task: TaskName
    metrics: dict[str, Any]
    intervals: dict[str, tuple[float, float]]
    best_threshold: BestThreshold | None
    images_per_second: float
    num_images: int
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    confusion: np.ndarray | None = None
    mistakes: list[Mistake] = field(default_factory=list)


def find_worst(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """At most `MAX_MISTAKES`, the worst first; of equally bad ones those that come first in the samples."""
    return heapq.nsmallest(MAX_MISTAKES, mistakes, key=lambda mistake: (-mistake.score, mistake.place))
