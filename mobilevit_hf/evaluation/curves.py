"""Curves of a detector at an IoU of 0.5: precision over recall by class, and figures over the score threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .average_precision import RECALLS, ClassMatches
from .matcher import unpack
from .results import ThresholdMetrics


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """Precision over recall of a class at an IoU of 0.5.

    Attributes:
        recall: (n,) ascending, from 0 to the recall of all detections.
        precision: (n,) highest precision at this or any higher recall, as COCO's average precision interpolates it.
        average_precision: COCO's AP50, the mean of the precision over 101 recalls.
    """

    recall: np.ndarray
    precision: np.ndarray
    average_precision: float


@dataclass(frozen=True)
class ThresholdCurve:
    """Precision, recall and F1 of all classes together over the score threshold, at an IoU of 0.5.

    Attributes:
        thresholds: (n,) ascending, one between each two neighboring scores and one below the lowest.
        precision, recall, f1: (n,) values of the detections with a score above the threshold.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> ThresholdMetrics | None:
        """Return the threshold with the highest F1, of equal ones the highest; None without detections."""
        if not len(self.thresholds):
            return None
        index = len(self.f1) - 1 - int(self.f1[::-1].argmax())
        columns = (self.thresholds, self.f1, self.precision, self.recall)
        return ThresholdMetrics(*(float(column[index]) for column in columns))


def precision_recall_curves(matches: Sequence[ClassMatches]) -> dict[int, PrecisionRecallCurve]:
    """Return the curve of each class that has objects, by class index."""
    return {
        group.label: precision_recall_curve(hits, num_objects)
        for group in matches
        for _, hits, num_objects in [_at_iou_50(group)]
        if num_objects
    }


def precision_recall_curve(hits: np.ndarray, num_objects: int) -> PrecisionRecallCurve:
    """Return the curve of detections by descending score, whether each is correct (n,), and the number of objects."""
    true_positives = np.cumsum(hits)[hits]
    precision = true_positives / (np.flatnonzero(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = true_positives / num_objects
    steps = np.diff(np.searchsorted(RECALLS, recall, side="right"), prepend=0)
    average = float((precision * steps).sum() / len(RECALLS))
    first = precision[:1] if len(precision) else np.zeros(1)
    return PrecisionRecallCurve(np.append(0.0, recall), np.append(first, precision), average)


def threshold_curve(matches: Sequence[ClassMatches], lowest: float = 0.0) -> ThresholdCurve:
    """Return the curve over the score threshold, empty without objects or detections.

    Args:
        matches: Matches by class.
        lowest: Score above which all detections are.
    """
    scores, hits, num_objects = _pool(matches)
    if not len(scores) or not num_objects:
        return ThresholdCurve(*(np.zeros(0) for _ in range(4)))
    true_positives = np.cumsum(hits)
    # A threshold lies between two different scores: equal ones are all above or all below.
    last = np.flatnonzero(np.diff(scores, append=-1))[::-1]
    thresholds = (scores[last] + np.append(scores, lowest)[last + 1]) / 2
    num_detections, true_positives = last + 1, true_positives[last]
    return ThresholdCurve(
        thresholds=thresholds,
        precision=true_positives / num_detections,
        recall=true_positives / num_objects,
        f1=2 * true_positives / (num_detections + num_objects),
    )


def threshold_metrics(matches: Sequence[ClassMatches], threshold: float) -> ThresholdMetrics:
    """Return the metrics of all classes together at a score threshold; 0 without objects or detections."""
    scores, hits, num_objects = _pool(matches)
    num_detections, correct = int((scores > threshold).sum()), int(hits[scores > threshold].sum())
    return ThresholdMetrics(
        value=threshold,
        f1=2 * correct / max(num_detections + num_objects, 1),
        precision=correct / max(num_detections, 1),
        recall=correct / max(num_objects, 1),
    )


def _pool(matches: Sequence[ClassMatches]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return descending scores and hits (n,) of all classes, see `_at_iou_50`, and the number of objects."""
    groups = [_at_iou_50(group) for group in matches]
    scores, hits = (np.concatenate([group[i] for group in groups] or [np.zeros(0)]) for i in (0, 1))
    order = np.argsort(-scores, kind="stable")
    return scores[order], hits[order].astype(bool), sum(count for _, _, count in groups)


def _at_iou_50(group: ClassMatches) -> tuple[np.ndarray, np.ndarray, int]:
    """Return scores and hits (n,) of a class for objects of all areas, without ignored detections, and its objects."""
    hits, ignored = (unpack(bits)[:, 0, 0] for bits in (group.hits, group.ignored))
    return group.scores[~ignored].astype(np.float64), hits[~ignored], int(group.counted[:, 0].sum())
