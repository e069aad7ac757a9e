"""COCO's figures from the matches of all images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics.class_names import class_names
from .matcher import AREAS, IOU_THRESHOLDS, MAX_DETECTIONS, Matches, ranks, unpack

# COCO averages precision over such recalls, and counts what is found with so many detections of a class on an image.
RECALLS = np.linspace(0, 1, 101)
NUMBERS = (1, 10, MAX_DETECTIONS)


@dataclass(frozen=True)
class ClassMatches:
    """The n detections and m objects of one class on all images.

    Attributes:
        label: The class.
        images: (n,) which image each detection is on, from the best.
        ranks: (n,) how many better ones of the class are on the same image.
        hits, ignored: (n, 5), see `Matches`.
        object_images: (m,) which image each object is on.
        wanted: (m, 4), see `Matches`.
    """

    label: int
    images: np.ndarray
    ranks: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    object_images: np.ndarray
    wanted: np.ndarray


def by_class(images: Sequence[Matches]) -> list[ClassMatches]:
    """For each class that is found or there; of equal scores those of the first image come first."""
    numbers, objects_on = (
        np.repeat(np.arange(len(images)), [len(getattr(image, name)) for image in images])
        for name in ("scores", "objects")
    )
    scores, labels, hits, ignored, objects, wanted = (
        np.concatenate([getattr(image, name) for image in images])
        for name in ("scores", "labels", "hits", "ignored", "objects", "wanted")
    )
    better = np.concatenate([ranks(image.labels) for image in images])
    order = np.lexsort((-scores, labels))
    classes = np.union1d(labels, objects)
    starts, ends = (np.searchsorted(labels[order], classes, side=side) for side in ("left", "right"))
    found = []
    for label, start, end in zip(classes.tolist(), starts, ends, strict=True):
        places, there = order[start:end], objects == label
        found.append(
            ClassMatches(
                label,
                numbers[places],
                better[places],
                hits[places],
                ignored[places],
                objects_on[there],
                wanted[there],
            )
        )
    return found


def coco_statistics(matches: Sequence[ClassMatches], num_images: int, id2label: Mapping[int, str]) -> dict[str, Any]:
    """The figures of `CocoMap`: -1 where there is nothing to find."""
    once = np.ones((num_images, 1), dtype=np.int64)
    precision = [average_precision(matches, once, area)[..., 0] for area in range(len(AREAS))]
    sizes = list(enumerate(AREAS))[1:]
    names = class_names([found.label for found in matches], id2label)
    return {
        "map": _mean(precision[0]),
        "map_50": _mean(precision[0][:, 0]),
        "map_75": _mean(precision[0][:, 5]),
        **{f"map_{name}": _mean(precision[area]) for area, name in sizes},
        **{f"mar_{number}": _mean(_recall(matches, number=number)) for number in NUMBERS},
        **{f"mar_{name}": _mean(_recall(matches, area)) for area, name in sizes},
        "per_class": dict(zip(names, map(_mean, precision[0]), strict=True)),
    }


def _mean(values: np.ndarray) -> float:
    """Of what is there to find; -1 if nothing is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else -1.0


def _recall(matches: Sequence[ClassMatches], area: int = 0, number: int = MAX_DETECTIONS) -> np.ndarray:
    """(classes, thresholds) how much is found by so many detections on an image, NaN where nothing is to be found."""
    recall = np.full((len(matches), len(IOU_THRESHOLDS)), np.nan)
    for found, of_class in zip(matches, recall, strict=True):
        if present := found.wanted[:, area].sum():
            of_class[:] = unpack(found.hits)[found.ranks < number, area].sum(axis=0) / present
    return recall


def average_precision(matches: Sequence[ClassMatches], draws: np.ndarray, area: int = 0) -> np.ndarray:
    """COCO's average precision on images drawn anew.

    An image drawn twice brings each of its detections twice in a row, so one pass over the detections with the draws
    as weights gives what COCO's evaluation of the drawn images would (up to the order of equal scores).

    Args:
        matches: By class.
        draws: (N, R) how often each image is drawn.
        area: Which of `AREAS` objects are to have.

    Returns:
        (classes, thresholds, R), NaN where none of a class is there to find.
    """
    precision = np.full((len(matches), len(IOU_THRESHOLDS), draws.shape[1]), np.nan)
    for found, of_class in zip(matches, precision, strict=True):
        objects_on = found.object_images[found.wanted[:, area]]
        if not len(objects_on):
            continue
        present = np.bincount(objects_on, minlength=len(draws)) @ draws
        is_hit, is_ignored = unpack(found.hits)[:, area], unpack(found.ignored)[:, area]
        weights = draws[found.images]
        detected = weights.cumsum(axis=0)
        for threshold, of_threshold in enumerate(of_class):
            hits, ignored = np.flatnonzero(is_hit[:, threshold]), np.flatnonzero(is_ignored[:, threshold])
            left_out = np.concatenate([np.zeros_like(detected[:1]), weights[ignored].cumsum(axis=0)])
            counted = detected[hits] - left_out[np.searchsorted(ignored, hits)] if len(ignored) else detected[hits]
            right = weights[hits].cumsum(axis=0)
            # At a recall the precision is the best at that or a higher one.
            reached = np.maximum.accumulate((right / np.maximum(counted, 1))[::-1], axis=0)[::-1]
            recalls = np.searchsorted(RECALLS, right / np.maximum(present, 1), side="right")
            steps = np.diff(recalls, axis=0, prepend=0)
            of_threshold[:] = np.where(present > 0, (reached * steps).sum(axis=0) / len(RECALLS), np.nan)
    return precision
