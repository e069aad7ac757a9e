"""Outcomes of a detector's boxes at one score threshold: true positives, false positives and missed objects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .matcher import unpack
from .predictions import DetectedImage


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of the n detections and m objects on an image, at an IoU of 0.5.

    Attributes:
        kept: (n,) whether the score of a detection is above the threshold.
        hits, ignored: (n,) whether a detection is correct, or neither correct nor wrong because it overlaps a crowd.
        objects: (n,) index of the object that a correct detection matches, -1 for the others.
        counted: (m,) whether an object counts as ground truth: crowds don't.
        found: (m,) whether a kept detection matches an object.
    """

    kept: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray
    counted: np.ndarray
    found: np.ndarray

    @property
    def true_positives(self) -> np.ndarray:
        """(n,) kept and correct."""
        return self.kept & self.hits

    @property
    def false_positives(self) -> np.ndarray:
        """(n,) kept and wrong."""
        return self.kept & ~self.hits & ~self.ignored

    @property
    def missed(self) -> np.ndarray:
        """(m,) ground truth that no kept detection matches."""
        return self.counted & ~self.found


@dataclass(frozen=True)
class ClassCounts:
    """Numbers of a class over N images.

    Attributes:
        objects: Objects that count as ground truth.
        true_positives, false_positives: Kept detections.
        mean_error, mean_absolute_error: Mean over the images of the difference between the numbers of kept detections
            and of objects.
    """

    objects: int
    true_positives: int
    false_positives: int
    mean_error: float
    mean_absolute_error: float

    @property
    def precision(self) -> float:
        """Fraction of the detections that are correct, 0 without any."""
        return self.true_positives / max(self.true_positives + self.false_positives, 1)

    @property
    def recall(self) -> float:
        """Fraction of the objects that are detected, 0 without any."""
        return self.true_positives / max(self.objects, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.true_positives / max(self.true_positives + self.false_positives + self.objects, 1)


def find_outcomes(image: DetectedImage, threshold: float) -> Outcomes:
    """Return the outcomes of an image's detections and objects at a score threshold."""
    matches = image.matches
    hits, ignored = unpack(matches.hits)[:, 0, 0], unpack(matches.ignored)[:, 0, 0]
    counted, kept = matches.counted[:, 0], matches.scores > threshold
    objects = np.where(hits, matches.matched, -1)
    found = np.zeros(len(matches.objects), dtype=bool)
    found[objects[kept & hits]] = True
    return Outcomes(kept, hits, ignored, objects, counted, found)


def count_by_class(images: Sequence[DetectedImage], threshold: float, num_classes: int) -> list[ClassCounts]:
    """Count the objects and detections of each class at a score threshold."""
    numbers = np.zeros((len(images), 4, num_classes), dtype=np.int64)
    for image, counts in zip(images, numbers, strict=True):
        outcomes, labels = find_outcomes(image, threshold), image.matches.labels
        chosen = (
            image.matches.objects[outcomes.counted],
            labels[outcomes.true_positives],
            labels[outcomes.false_positives],
            labels[outcomes.kept & ~outcomes.ignored],
        )
        counts[:] = [np.bincount(values, minlength=num_classes) for values in chosen]
    objects, correct, wrong, detected = numbers.transpose(1, 0, 2)
    errors = detected - objects
    return [
        ClassCounts(
            int(objects[:, label].sum()),
            int(correct[:, label].sum()),
            int(wrong[:, label].sum()),
            float(errors[:, label].mean()) if len(images) else 0.0,
            float(np.abs(errors[:, label]).mean()) if len(images) else 0.0,
        )
        for label in range(num_classes)
    ]
