"""Results of an evaluation."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.types import Problem
from ..tasks import TaskName
from .matcher import Matches

MAX_MISTAKES = 24


@dataclass(frozen=True)
class BestThreshold:
    """Score threshold of a detector with the highest F1 at an IoU of 0.5, over all classes together."""

    value: float  # boxes with a higher score are detections
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Mistake:
    """An image with a wrong prediction.

    Attributes:
        index, name: Index and name of the sample.
        target: Target class of a classifier, by the model's class name; number of objects for a detector.
        prediction: Predicted class of a classifier; numbers of missed objects and wrong detections for a detector.
        score: Severity: probability of the predicted class, 0..1; number of errors for a detector.
    """

    index: int
    name: str
    target: str
    prediction: str
    score: float


@dataclass(frozen=True)
class ClassifiedImages:
    """Predictions of a classifier: one row per image, in the order of the samples.

    Attributes:
        indices: (N,) int64 index of the sample.
        names: Name of each sample.
        targets, predictions: (N,) int64 target and predicted class, as the model's class index.
        scores, target_scores: (N,) float32 probability of the predicted and of the target class, 0..1.
    """

    indices: np.ndarray
    names: list[str]
    targets: np.ndarray
    predictions: np.ndarray
    scores: np.ndarray
    target_scores: np.ndarray


@dataclass(frozen=True)
class DetectedImage:
    """Detections and objects of an image.

    Attributes:
        index, name: Index and name of the sample.
        size: Height and width in pixels.
        boxes: (n, 4) float32 (x1, y1, x2, y2) in pixels, in the order of `matches.scores`: by class and descending
            score.
        matches: Scores and classes of the detections, classes of the objects, and their matches.
        object_boxes: (m, 4) float32 in the same format, in the order of `matches.objects`.
        is_crowd: (m,) whether an object is a crowd.
    """

    index: int
    name: str
    size: tuple[int, int]
    boxes: np.ndarray
    matches: Matches
    object_boxes: np.ndarray
    is_crowd: np.ndarray


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        metrics: Metrics, as returned by `TopKAccuracy` or `CocoMap`, with the model's class names in `per_class`.
        intervals: Ends of the 95% bootstrap confidence interval over the images, by metric.
        best_threshold: Best score threshold of a detector; None for a classifier or without detections.
        images_per_second: Throughput from file to prediction: decoding, preprocessing, network and post-processing,
            without the metrics. For several processes, all images by the time of the slowest process.
        problems: Unreadable images, in the order of the samples.
        notes: Sentences for the user, such as how classes were matched.
        confusion: (K, K) int64 number of images by target class (rows) and predicted class (columns), in the order
            of the model's classes. None for a detector.
        mistakes: Worst mistakes, at most `MAX_MISTAKES`: for a classifier, wrong predictions by their probability;
            for a detector, images by missed objects plus wrong detections at the best threshold and an IoU of 0.5.
        predictions: Predictions of all readable images.
        losses: Mean loss over the images: `loss`, and the terms of a detector's loss.
        classes: Class names of the model, by index.
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
    predictions: ClassifiedImages | list[DetectedImage] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)


def select_worst(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """Return the `MAX_MISTAKES` mistakes with the highest scores, ties in the order of the samples."""
    return heapq.nsmallest(MAX_MISTAKES, mistakes, key=lambda mistake: (-mistake.score, mistake.index))
