"""Which detections on an image are right, by COCO's rules."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

# COCO's: a found box is right above such an overlap (IoU), objects are also counted by area in pixels², both ends
# included, and of each class on an image so many detections count.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Matches:
    """What there is to know of the n detections on an image that count and the m objects on it, in a few bytes each.

    Attributes:
        scores, labels: (n,) of the detections, by class and from the best.
        hits: (n, 5) bytes, which `unpack` makes (n, 4, 10): whether one is right, for each of `AREAS` and
            `IOU_THRESHOLDS`.
        ignored: As `hits`: whether it is neither right nor wrong, as it lies in a crowd or is of another area.
        objects: (m,) the classes of the objects.
        wanted: (m, 4) whether one is to be found, for each of `AREAS`: crowds never are.
    """

    scores: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray
    wanted: np.ndarray


def match(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Matches:
    """Give each detection, from the best, the object it overlaps most of those that no better one has.

    Args:
        found: `boxes` (n, 4), (x1, y1, x2, y2) in pixels, `scores` (n,) and `labels` (n,).
        reference: `boxes` (m, 4) in the same pixels, `labels`, `iscrowd` and `area` (m,).
    """
    boxes, scores, labels = (found[name].numpy() for name in ("boxes", "scores", "labels"))
    order = np.lexsort((-scores, labels))
    order = order[ranks(labels[order]) < MAX_DETECTIONS]
    boxes, scores, labels = boxes[order].astype(np.float64), scores[order], labels[order].astype(np.int32)
    objects, classes = reference["boxes"].double().numpy(), reference["labels"].numpy().astype(np.int32)
    crowd = reference["iscrowd"].numpy().astype(bool)
    wanted = ~crowd[:, None] & _in_areas(reference["area"].double().numpy())
    hits, ignored = (np.zeros((len(scores), len(AREAS), len(IOU_THRESHOLDS)), dtype=bool) for _ in range(2))
    for label in np.intersect1d(labels, classes):
        of_class = np.flatnonzero(classes == label)
        is_crowd, is_wanted = crowd[of_class], wanted[of_class].T[:, None]  # (objects,) and (areas, 1, objects)
        places = np.flatnonzero(labels == label)
        overlaps = _overlaps(boxes[places], objects[of_class], is_crowd)
        taken = np.zeros((len(AREAS), len(IOU_THRESHOLDS), len(of_class)), dtype=bool)
        for place, overlap in zip(places, overlaps, strict=True):
            if overlap.max() < IOU_THRESHOLDS[0]:
                continue
            possible = (overlap >= IOU_THRESHOLDS[:, None]) & ~(taken & ~is_crowd)
            # What is not wanted only takes what fits nothing else; of equal overlaps the last counts.
            rank = np.where(possible, overlap + 2 * is_wanted, -1)
            best = rank.shape[-1] - 1 - rank[..., ::-1].argmax(axis=-1)  # (areas, thresholds)
            matched = possible.any(axis=-1)
            taken[matched, best[matched]] = True
            right = np.take_along_axis(is_wanted[:, 0], best, axis=-1)
            hits[place], ignored[place] = matched & right, matched & ~right
    # A detection of another area is no error.
    ignored |= ~_in_areas((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))[..., None] & ~hits
    return Matches(scores, labels, _pack(hits), _pack(ignored), classes, wanted)


def ranks(labels: np.ndarray) -> np.ndarray:
    """Sorted labels (n,) → how many equal ones come before each."""
    return np.arange(len(labels)) - np.searchsorted(labels, labels)


def _pack(bits: np.ndarray) -> np.ndarray:
    """(n, 4, 10) bool → (n, 5) bytes."""
    return np.packbits(bits.reshape(-1, len(AREAS) * len(IOU_THRESHOLDS)), axis=1)


def unpack(packed: np.ndarray) -> np.ndarray:
    """(n, 5) bytes → (n, 4, 10) bool, for each of `AREAS` and `IOU_THRESHOLDS`."""
    bits = np.unpackbits(packed, axis=1, count=len(AREAS) * len(IOU_THRESHOLDS))
    return bits.reshape(-1, len(AREAS), len(IOU_THRESHOLDS)).astype(bool)


def _in_areas(areas: np.ndarray) -> np.ndarray:
    """(n,) in pixels² → (n, 4) whether one is in each of `AREAS`."""
    low, high = np.array(list(AREAS.values())).T
    return (areas[:, None] >= low) & (areas[:, None] <= high)


def _overlaps(boxes: np.ndarray, objects: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """(n, 4) and (m, 4) (x1, y1, x2, y2) → (n, m) IoU; with a crowd the share of the box that lies in it."""
    corners = np.minimum(boxes[:, None, 2:], objects[:, 2:]) - np.maximum(boxes[:, None, :2], objects[:, :2])
    common = np.where((corners > 0).all(axis=-1), corners.prod(axis=-1), 0)
    areas, object_areas = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, objects))
    union = np.where(is_crowd, areas[:, None], areas[:, None] + object_areas - common)
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)
