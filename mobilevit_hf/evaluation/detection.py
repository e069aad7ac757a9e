"""Metrics of object detection, from the matches of detections and objects."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from ..data.types import Sample
from .average_precision import average_precision, coco_statistics, group_by_class
from .confidence_intervals import chunk_sizes, percentile_interval
from .inference import Prepared
from .matcher import match, unpack
from .results import BestThreshold, DetectedImage, Mistake, select_worst
from .task_metrics import Intervals, TaskMetrics


class DetectionMetrics(TaskMetrics):
    """COCO's mean average precision and recall, and the best score threshold."""

    state: list[DetectedImage]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.class_indices = torch.tensor(self.targets)
        self.threshold = getattr(self.processor, "score_threshold", 0.0)
        self.state = []

    def postprocess(self, outputs: Any, group: Sequence[Prepared]) -> list[dict[str, Tensor]]:
        """Return the detections of each image, without classes that the dataset lacks."""
        sizes = torch.tensor([prepared.size for prepared in group], device=outputs.logits.device)
        post_process = self.processor.post_process_object_detection  # ty: ignore[missing-attribute], detectors only
        detections = []
        for result in post_process(outputs, self.threshold, sizes):
            result = {name: result[name].float().cpu() for name in ("boxes", "scores", "labels")}
            keep = torch.isin(result["labels"], self.class_indices.float())
            detections.append({name: value[keep] for name, value in result.items()})
        return detections

    def update(self, predictions: Sequence[Mapping[str, Tensor]], group: Sequence[Prepared]) -> None:
        """Match the detections on a group of images with their objects."""
        for detections, prepared in zip(predictions, group, strict=True):
            targets = self._targets(prepared.sample)
            for boxes in (detections["boxes"], targets["boxes"]):
                _check_boxes(boxes, prepared.sample)
            matches, order = match(detections, targets)
            image = DetectedImage(
                index=prepared.index,
                name=prepared.sample.name,
                size=prepared.size,
                boxes=detections["boxes"].numpy().astype(np.float32)[order],
                matches=matches,
                object_boxes=targets["boxes"].numpy(),
                is_crowd=targets["iscrowd"].numpy().astype(bool),
            )
            self.state.append(image)

    def _targets(self, sample: Sample) -> dict[str, Tensor]:
        if (objects := sample.objects) is None:
            raise ValueError(
                f"{sample.name}: got no boxes, expected objects. Use a detection dataset with a detector."
            )
        labels = self.class_indices[objects.labels]
        return {"boxes": objects.boxes, "labels": labels, "iscrowd": objects.iscrowd, "area": objects.areas}

    def merge(self, states: Iterable[Sequence[DetectedImage]]) -> None:
        """Concatenate the images of all processes in the order of the samples."""
        self.state = sorted(chain(*states), key=attrgetter("index"))
        self.images = [image.matches for image in self.state]
        self.matches = group_by_class(self.images)

    def compute(self) -> dict[str, Any]:
        """Compute the metrics of `CocoMap`."""
        return coco_statistics(self.matches, len(self.images), self.id2label)

    def confidence_intervals(self, metrics: Mapping[str, Any], resamples: int, generator: Generator) -> Intervals:
        """Compute the intervals of mAP and mAP50 by resampling the images; none without objects."""
        if metrics["map"] < 0:
            return {}
        count, values = len(self.images), []
        longest = max(len(group.images) for group in self.matches)
        for size in chunk_sizes(resamples, max(longest, count)):
            weights = generator.multinomial(count, np.full(count, 1 / count), size=size).T.copy()
            values.append(average_precision(self.matches, weights))
        precision = np.concatenate(values, axis=-1)  # (classes, thresholds, resamples)
        precision = precision[..., ~np.isnan(precision).all(axis=(0, 1))]  # resamples with objects
        return {
            "map": percentile_interval(np.nanmean(precision, axis=(0, 1))),
            "map_50": percentile_interval(np.nanmean(precision[:, 0], axis=0)),
        }

    def best_threshold(self) -> BestThreshold | None:
        """Return the threshold with the highest F1, None without objects or detections."""
        scores = np.concatenate([image.scores for image in self.images]).astype(np.float64)
        hits, ignored = (
            np.concatenate([_at_iou_50(getattr(image, name)) for image in self.images]) for name in ("hits", "ignored")
        )
        num_objects = sum(int(image.counted[:, 0].sum()) for image in self.images)
        order = np.argsort(-scores[~ignored])
        scores, true_positives = scores[~ignored][order], np.cumsum(hits[~ignored][order])
        if not len(scores) or not num_objects:
            return None
        num_detections = np.arange(1, len(scores) + 1)
        f1 = 2 * true_positives / (num_detections + num_objects)
        # A threshold lies between two different scores: equal ones are all above or all below.
        last = np.flatnonzero(np.diff(scores, append=-1))
        best = last[f1[last].argmax()]
        below = scores[best + 1] if best + 1 < len(scores) else self.threshold
        return BestThreshold(
            value=float((scores[best] + below) / 2),
            f1=float(f1[best]),
            precision=float(true_positives[best] / num_detections[best]),
            recall=float(true_positives[best] / num_objects),
        )

    def predictions(self) -> list[DetectedImage]:
        """Return the detections and objects of each image."""
        return self.state

    def losses(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def worst_mistakes(self) -> list[Mistake]:
        """Return the images with the most errors at the best threshold; without one, all detections count."""
        best = self.best_threshold()
        mistakes = (_count_errors(image, best.value if best else self.threshold) for image in self.state)
        return select_worst(mistake for mistake in mistakes if mistake.score)


def _count_errors(image: DetectedImage, threshold: float) -> Mistake:
    """Count the missed objects and wrong detections on an image at a score threshold and an IoU of 0.5."""
    matches = image.matches
    detected = matches.scores > threshold
    hits, ignored = _at_iou_50(matches.hits), _at_iou_50(matches.ignored)
    num_objects = int(matches.counted[:, 0].sum())
    missed, wrong = num_objects - int(hits[detected].sum()), int((~hits & ~ignored)[detected].sum())
    target = f"{num_objects} object{'' if num_objects == 1 else 's'}"
    return Mistake(image.index, image.name, target, f"{missed} missed, {wrong} wrong", float(missed + wrong))


def _at_iou_50(packed: np.ndarray) -> np.ndarray:
    """Packed hits or ignored (n, 5) → (n,) for objects of all areas at an IoU of 0.5."""
    return unpack(packed)[:, 0, 0]


def _check_boxes(boxes: Tensor, sample: Sample) -> None:
    if not (boxes.isfinite().all() and (boxes[:, :2] <= boxes[:, 2:]).all()):
        raise ValueError(
            f"{sample.name}: got boxes {boxes[:10].tolist()}, expected finite (x1, y1, x2, y2) with x1 ≤ x2 and "
            "y1 ≤ y2 from model and dataset. Convert other formats with torchvision.ops.box_convert."
        )
