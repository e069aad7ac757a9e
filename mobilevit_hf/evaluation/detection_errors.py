"""Errors of a detector: confusion matrix with background, and what each type of error costs (TIDE)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .curves import precision_recall_curve
from .matcher import IOU_THRESHOLDS, box_ious
from .outcomes import find_outcomes
from .predictions import DetectedImage

MATCH_IOU = IOU_THRESHOLDS[0]
BACKGROUND_IOU = 0.1  # up to which a detection is on the background

# False positives in the order in which the definitions apply, then objects.
LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND, BOTH = range(5)
ERROR_TYPES = ("localization", "classification", "duplicate", "background", "both", "missed")


class ErrorStatistics(NamedTuple):
    """Number of errors of a type at a score threshold, and the mAP50 that is gained without them, 0..1."""

    count: int
    gain: float


def confusion_matrix(images: Sequence[DetectedImage], threshold: float, num_classes: int) -> np.ndarray:
    """Return the confusion matrix of a detector at a score threshold and an IoU of 0.5.

    The diagonal has the true positives of the metrics. Then, by descending score, a false positive is matched with
    the missed object of another class with the highest IoU.

    Returns:
        (K + 1, K + 1) int64 number of objects by target class (rows) and predicted class (columns). The last column
        has the objects without a detection, the last row the detections without an object: background.
    """
    confusion = np.zeros((num_classes + 1,) * 2, dtype=np.int64)
    for image in images:
        outcomes, labels, classes = find_outcomes(image, threshold), image.matches.labels, image.matches.objects
        wrong, missed = np.flatnonzero(outcomes.false_positives), np.flatnonzero(outcomes.missed)
        wrong = wrong[np.argsort(-image.matches.scores[wrong], kind="stable")]
        ious = _ious(image, wrong, missed)
        for label in labels[outcomes.true_positives]:
            confusion[label, label] += 1
        for index, label in enumerate(labels[wrong]):
            if len(missed) and ious[index].max() >= MATCH_IOU:
                best = ious[index].argmax()
                confusion[classes[missed[best]], label] += 1
                ious[:, best] = -1
            else:
                confusion[-1, label] += 1
        for label in classes[missed[(ious >= 0).all(axis=0)]]:
            confusion[label, -1] += 1
    return confusion


@dataclass(frozen=True)
class _ImageErrors:
    """Type of each detection's error (n,), -1 for none, and index of the object that it nearly detects (n,), or -1."""

    types: np.ndarray
    objects: np.ndarray


def detection_errors(images: Sequence[DetectedImage], threshold: float) -> dict[str, ErrorStatistics]:
    """Return the errors of a detector by type, as defined by TIDE (Bolya et al., arXiv 2008.08115, section 2.2).

    - localization: IoU of 0.1 to 0.5 with an object of the predicted class
    - classification: IoU of at least 0.5 with an object of another class
    - duplicate: IoU of at least 0.5 with an object that a detection of higher score matches
    - background: IoU of at most 0.1 with all objects
    - both: IoU of 0.1 to 0.5 with an object of another class
    - missed: object without a detection, that is not the object of a localization or classification error

    Args:
        images: Detections and objects of all images.
        threshold: Score threshold at which errors are counted. The gain is computed from all detections: it is the
            difference in mAP50 if the best wrong detection of each object is corrected (localization,
            classification), the detections are removed (duplicate, background, both) or the objects are (missed).

    Returns:
        Statistics by type, in the order of `ERROR_TYPES`.
    """
    errors = [_find_errors(image) for image in images]
    counts = [0] * len(ERROR_TYPES)
    for image, of_image in zip(images, errors, strict=True):
        detected = image.matches.scores > threshold
        for error_type in range(len(counts) - 1):
            counts[error_type] += int((of_image.types[detected] == error_type).sum())
        counts[-1] += int(_missed(image, of_image, threshold).sum())
    ranking = _Ranking(images, errors)
    base = ranking.mean_average_precision()
    gains = [ranking.mean_average_precision(error_type) - base for error_type in range(len(ERROR_TYPES))]
    return dict(zip(ERROR_TYPES, map(ErrorStatistics, counts, gains), strict=True))


def _ious(image: DetectedImage, detections: Any = slice(None), objects: Any = slice(None)) -> np.ndarray:
    """Return the IoU of all pairs of some detections and objects on an image."""
    boxes, object_boxes = image.boxes[detections], image.object_boxes[objects]
    return box_ious(boxes.astype(np.float64), object_boxes.astype(np.float64), image.is_crowd[objects])


def _find_errors(image: DetectedImage) -> _ImageErrors:
    """Return the errors among all detections on an image."""
    matches, outcomes = image.matches, find_outcomes(image, -np.inf)
    ious = np.where(image.is_crowd, -1.0, _ious(image))
    is_same = matches.labels[:, None] == matches.objects
    same, other = np.where(is_same, ious, -1.0), np.where(is_same, -1.0, ious)
    highest_same, highest_other = (values.max(axis=1, initial=-1) for values in (same, other))
    types = np.select(
        [
            (highest_same >= BACKGROUND_IOU) & (highest_same < MATCH_IOU),
            highest_other >= MATCH_IOU,
            highest_same >= MATCH_IOU,
            np.maximum(highest_same, highest_other) <= BACKGROUND_IOU,
        ],
        [LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )
    types[~outcomes.false_positives] = -1
    objects = np.full(len(types), -1)
    for error_type, values in ((LOCALIZATION, same), (CLASSIFICATION, other)):
        chosen = types == error_type
        if chosen.any():
            objects[chosen] = values[chosen].argmax(axis=1)
    return _ImageErrors(types, objects)


def _missed(image: DetectedImage, errors: _ImageErrors, threshold: float) -> np.ndarray:
    """Return whether an object (m,) has no detection above a score threshold, not even a nearly correct one."""
    missed = find_outcomes(image, threshold).missed
    nearly = errors.objects[image.matches.scores > threshold]
    missed[nearly[nearly >= 0]] = False
    return missed


class _Ranking:
    """Detections of all images with their errors, from which the mAP50 without one type of error is computed."""

    def __init__(self, images: Sequence[DetectedImage], errors: Sequence[_ImageErrors]) -> None:
        # Rows of score, label, whether it is correct, and type of error; and label of the object if it is corrected.
        columns = defaultdict(list)
        self.num_objects: dict[int, int] = defaultdict(int)
        self.num_missed: dict[int, int] = defaultdict(int)
        for image, of_image in zip(images, errors, strict=True):
            outcomes = find_outcomes(image, -np.inf)
            kept = outcomes.true_positives | outcomes.false_positives
            columns["scores"].append(image.matches.scores[kept])
            columns["labels"].append(image.matches.labels[kept])
            columns["hits"].append(outcomes.true_positives[kept])
            columns["types"].append(of_image.types[kept])
            columns["fixed"].append(_correct(image, of_image, outcomes.missed)[kept])
            for counts, chosen in (
                (self.num_objects, outcomes.counted),
                (self.num_missed, _missed(image, of_image, -np.inf)),
            ):
                for label in image.matches.objects[chosen].tolist():
                    counts[label] += 1
        joined = {name: np.concatenate(values) for name, values in columns.items()}
        order = np.argsort(-joined["scores"], kind="stable")
        self.labels, self.hits, self.types, self.fixed = (
            joined[name][order] for name in ("labels", "hits", "types", "fixed")
        )

    def mean_average_precision(self, without: int | None = None) -> float:
        """Return the mAP50 over the classes with objects, without one type of error; 0 without objects."""
        is_error = self.types == without
        is_fixed = is_error & (self.fixed >= 0)
        keep, hits = ~is_error | is_fixed, self.hits | is_fixed
        labels = np.where(is_fixed, self.fixed, self.labels)
        values = []
        for label, count in self.num_objects.items():
            if without == len(ERROR_TYPES) - 1:
                count -= self.num_missed[label]
            of_class = hits[keep & (labels == label)]
            values.append(precision_recall_curve(of_class, count).average_precision if count else 0.0)
        return float(np.mean(values)) if values else 0.0


def _correct(image: DetectedImage, errors: _ImageErrors, missed: np.ndarray) -> np.ndarray:
    """Return the class (n,) that an error is corrected to, -1 for all but the best error of each missed object."""
    fixed = np.full(len(errors.types), -1)
    order = np.argsort(-image.matches.scores, kind="stable")
    order = order[errors.objects[order] >= 0]
    objects, first = np.unique(errors.objects[order], return_index=True)
    fixed[order[first]] = np.where(missed[objects], image.matches.objects[objects], -1)
    return fixed
