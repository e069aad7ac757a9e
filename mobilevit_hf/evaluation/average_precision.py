"""COCO's average precision and recall from the matches of all images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics.class_names import class_names
from .matcher import AREAS, IOU_THRESHOLDS, MAX_DETECTIONS, Matches, ranks, unpack

# COCO averages the precision over these recalls, and reports the recall at these numbers of detections per image and
# class.
RECALLS = np.linspace(0, 1, 101)
DETECTION_LIMITS = (1, 10, MAX_DETECTIONS)


@dataclass(frozen=True)
class ClassMatches:
    """Matches of the n detections and m objects of one class on all images.

    Attributes:
        scores: (n,) score of each detection, descending.
        images: (n,) image index of each detection.
        ranks: (n,) number of detections of the class on the same image with a higher score.
        hits, ignored: (n, 5), see `Matches`.
        object_images: (m,) image index of each object.
        counted: (m, 4), see `Matches`.
    """

    label: int
    scores: np.ndarray
    images: np.ndarray
    ranks: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    object_images: np.ndarray
    counted: np.ndarray


def group_by_class(images: Sequence[Matches]) -> list[ClassMatches]:
    """Group the matches of all images by class; detections of equal score are in the order of the images."""
    detection_images, object_images = (
        np.repeat(np.arange(len(images)), [len(getattr(image, name)) for image in images])
        for name in ("scores", "objects")
    )
    scores, labels, hits, ignored, objects, counted = (
        np.concatenate([getattr(image, name) for image in images])
        for name in ("scores", "labels", "hits", "ignored", "objects", "counted")
    )
    ranks_on_image = np.concatenate([ranks(image.labels) for image in images])
    order = np.lexsort((-scores, labels))
    classes = np.union1d(labels, objects)
    starts, ends = (np.searchsorted(labels[order], classes, side=side) for side in ("left", "right"))
    groups = []
    for label, start, end in zip(classes.tolist(), starts, ends, strict=True):
        detected, of_class = order[start:end], objects == label
        detections = (array[detected] for array in (scores, detection_images, ranks_on_image, hits, ignored))
        groups.append(ClassMatches(label, *detections, object_images[of_class], counted[of_class]))
    return groups


def coco_statistics(matches: Sequence[ClassMatches], num_images: int, id2label: Mapping[int, str]) -> dict[str, Any]:
    """Compute the metrics of `CocoMap`, and those of each class in `per_class_metrics`; -1 without objects.

    The row of a class has `map`, `map_50`, `map_75`, `map_small`, `map_medium`, `map_large`, `mar_100` and `support`,
    the number of its objects.
    """
    weights = np.ones((num_images, 1), dtype=np.int64)
    precision = [average_precision(matches, weights, area)[..., 0] for area in range(len(AREAS))]
    recall = {limit: _recall(matches, limit=limit) for limit in DETECTION_LIMITS}
    sizes = list(enumerate(AREAS))[1:]
    names = class_names([group.label for group in matches], id2label)
    average = {
        "map": precision[0],
        "map_50": precision[0][:, :1],
        "map_75": precision[0][:, 5:6],
        **{f"map_{name}": precision[area] for area, name in sizes},
    }
    of_class = average | {f"mar_{MAX_DETECTIONS}": recall[MAX_DETECTIONS]}
    return {
        **{name: _mean(values) for name, values in average.items()},
        **{f"mar_{limit}": _mean(values) for limit, values in recall.items()},
        **{f"mar_{name}": _mean(_recall(matches, area)) for area, name in sizes},
        "per_class": dict(zip(names, map(_mean, precision[0]), strict=True)),
        "per_class_metrics": {
            name: {key: _mean(values[index]) for key, values in of_class.items()}
            | {"support": int(matches[index].counted[:, 0].sum())}
            for index, name in enumerate(names)
        },
    }


def _mean(values: np.ndarray) -> float:
    """Return the mean without NaN, -1 if all values are NaN."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else -1.0


def _recall(matches: Sequence[ClassMatches], area: int = 0, limit: int = MAX_DETECTIONS) -> np.ndarray:
    """Return the recall (classes, thresholds) at a limit of detections per image and class, NaN without objects."""
    recall = np.full((len(matches), len(IOU_THRESHOLDS)), np.nan)
    for group, of_class in zip(matches, recall, strict=True):
        if num_objects := group.counted[:, area].sum():
            of_class[:] = unpack(group.hits)[group.ranks < limit, area].sum(axis=0) / num_objects
    return recall


def average_precision(matches: Sequence[ClassMatches], weights: np.ndarray, area: int = 0) -> np.ndarray:
    """Compute COCO's average precision on R resamples of the images.

    An image that is resampled twice contributes each of its detections twice in a row, so one pass over the
    detections, weighted by the counts, equals COCO's evaluation of the resampled images (up to the order of equal
    scores).

    Args:
        matches: Matches by class.
        weights: (N, R) number of times that each image is in each resample.
        area: Index of the objects' size in `AREAS`.

    Returns:
        (classes, thresholds, R) average precision, NaN for a class without objects.
    """
    precision = np.full((len(matches), len(IOU_THRESHOLDS), weights.shape[1]), np.nan)
    for group, of_class in zip(matches, precision, strict=True):
        object_images = group.object_images[group.counted[:, area]]
        if not len(object_images):
            continue
        num_objects = np.bincount(object_images, minlength=len(weights)) @ weights
        is_hit, is_ignored = unpack(group.hits)[:, area], unpack(group.ignored)[:, area]
        detection_weights = weights[group.images]
        detected = detection_weights.cumsum(axis=0)
        for threshold, of_threshold in enumerate(of_class):
            hits, ignored = np.flatnonzero(is_hit[:, threshold]), np.flatnonzero(is_ignored[:, threshold])
            excluded = np.concatenate([np.zeros_like(detected[:1]), detection_weights[ignored].cumsum(axis=0)])
            num_detections = detected[hits] - excluded[np.searchsorted(ignored, hits)]
            true_positives = detection_weights[hits].cumsum(axis=0)
            # The precision at a recall is the highest at that or any higher recall.
            ratio = true_positives / np.maximum(num_detections, 1)
            interpolated = np.maximum.accumulate(ratio[::-1], axis=0)[::-1]
            recalls = np.searchsorted(RECALLS, true_positives / np.maximum(num_objects, 1), side="right")
            steps = np.diff(recalls, axis=0, prepend=0)
            mean = (interpolated * steps).sum(axis=0) / len(RECALLS)
            of_threshold[:] = np.where(num_objects > 0, mean, np.nan)
    return precision
