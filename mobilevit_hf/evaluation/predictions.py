"""Predictions of the evaluated images."""

from dataclasses import dataclass

import numpy as np

from .matcher import Matches


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
