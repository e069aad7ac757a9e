"""Match the detections on an image with its objects by the rules of COCO."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

# COCO's IoU thresholds, object areas in pixels² (both bounds included), and limit of detections per image and class.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Matches:
    """Matches of the n detections and m objects on one image, in a few bytes each.

    Attributes:
        scores, labels: (n,) scores and classes of the detections, sorted by class and descending score.
        hits: (n, 5) packed bits, `unpack` returns (n, 4, 10): whether a detection is correct, by `AREAS` and
            `IOU_THRESHOLDS`.
        ignored: (n, 5) packed bits as in `hits`: whether a detection is neither correct nor wrong, because it
            overlaps a crowd or has another area.
        matched: (n,) index of the object that a detection is matched with at an IoU of 0.5, in `objects`; -1 if none.
        objects: (m,) classes of the objects.
        counted: (m, 4) whether an object counts as ground truth, by `AREAS`: crowds never do.
    """

    scores: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    matched: np.ndarray
    objects: np.ndarray
    counted: np.ndarray


def match(detections: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> tuple[Matches, np.ndarray]:
    """Match each detection, by descending score, with the object of highest IoU that is not matched yet.

    Args:
        detections: `boxes` (n, 4), (x1, y1, x2, y2) in pixels, `scores` (n,) and `labels` (n,).
        targets: `boxes` (m, 4) in the same format, `labels`, `iscrowd` and `area` (m,).

    Returns:
        The matches, and the index of each of their detections: at most `MAX_DETECTIONS` per class are matched.
    """
    boxes, scores, labels = (detections[name].numpy() for name in ("boxes", "scores", "labels"))
    order = np.lexsort((-scores, labels))
    order = order[ranks(labels[order]) < MAX_DETECTIONS]
    boxes, scores, labels = boxes[order].astype(np.float64), scores[order], labels[order].astype(np.int32)
    objects, classes = targets["boxes"].double().numpy(), targets["labels"].numpy().astype(np.int32)
    crowd = targets["iscrowd"].numpy().astype(bool)
    counted = ~crowd[:, None] & _in_areas(targets["area"].double().numpy())
    hits, ignored = (np.zeros((len(scores), len(AREAS), len(IOU_THRESHOLDS)), dtype=bool) for _ in range(2))
    matched = np.full(len(scores), -1, dtype=np.int32)
    for label in np.intersect1d(labels, classes):
        of_class, detected = np.flatnonzero(classes == label), np.flatnonzero(labels == label)
        ious = box_ious(boxes[detected], objects[of_class], crowd[of_class])
        hits[detected], ignored[detected], indices = _match_class(ious, crowd[of_class], counted[of_class])
        matched[detected] = np.where(indices < 0, -1, of_class[indices])
    # A detection of another area is not an error.
    ignored |= ~_in_areas((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))[..., None] & ~hits
    return Matches(scores, labels, _pack(hits), _pack(ignored), matched, classes, counted), order


def _match_class(
    ious: np.ndarray, is_crowd: np.ndarray, counted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the detections of one class with its objects.

    IoUs (n, m), by descending score, crowds (m,), counted (m, 4) → hits and ignored (n, 4, 10), and the index of the
    matched object (n,) at an IoU of 0.5 for objects of all areas, -1 without.
    """
    is_counted = counted.T[:, None]  # (areas, 1, objects)
    taken = np.zeros((len(AREAS), len(IOU_THRESHOLDS), len(is_crowd)), dtype=bool)
    hits, ignored = (np.zeros((len(ious), *taken.shape[:2]), dtype=bool) for _ in range(2))
    indices = np.full(len(ious), -1)
    for index, iou in enumerate(ious):
        if iou.max() < IOU_THRESHOLDS[0]:
            continue
        candidates = (iou >= IOU_THRESHOLDS[:, None]) & ~(taken & ~is_crowd)
        # Objects that do not count are matched only if no other fits; of equal IoUs the last one is matched.
        rank = np.where(candidates, iou + 2 * is_counted, -1)
        best = rank.shape[-1] - 1 - rank[..., ::-1].argmax(axis=-1)  # (areas, thresholds)
        matched = candidates.any(axis=-1)
        taken[matched, best[matched]] = True
        correct = np.take_along_axis(is_counted[:, 0], best, axis=-1)
        hits[index], ignored[index] = matched & correct, matched & ~correct
        if matched[0, 0]:
            indices[index] = best[0, 0]
    return hits, ignored, indices


def ranks(labels: np.ndarray) -> np.ndarray:
    """Sorted labels (n,) → number of equal labels before each."""
    return np.arange(len(labels)) - np.searchsorted(labels, labels)


def _pack(bits: np.ndarray) -> np.ndarray:
    """(n, 4, 10) bool → (n, 5) bytes."""
    return np.packbits(bits.reshape(-1, len(AREAS) * len(IOU_THRESHOLDS)), axis=1)


def unpack(packed: np.ndarray) -> np.ndarray:
    """(n, 5) bytes → (n, 4, 10) bool, by `AREAS` and `IOU_THRESHOLDS`."""
    bits = np.unpackbits(packed, axis=1, count=len(AREAS) * len(IOU_THRESHOLDS))
    return bits.reshape(-1, len(AREAS), len(IOU_THRESHOLDS)).astype(bool)


def _in_areas(areas: np.ndarray) -> np.ndarray:
    """Areas (n,) in pixels² → (n, 4) whether each is within each of `AREAS`."""
    low, high = np.array(list(AREAS.values())).T
    return (areas[:, None] >= low) & (areas[:, None] <= high)


def box_ious(boxes: np.ndarray, objects: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """(n, 4) and (m, 4) (x1, y1, x2, y2) → (n, m) IoU; for a crowd, the fraction of the box inside it."""
    sides = np.minimum(boxes[:, None, 2:], objects[:, 2:]) - np.maximum(boxes[:, None, :2], objects[:, :2])
    intersection = np.where((sides > 0).all(axis=-1), sides.prod(axis=-1), 0)
    areas, object_areas = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, objects))
    union = np.where(is_crowd, areas[:, None], areas[:, None] + object_areas - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=intersection > 0)
