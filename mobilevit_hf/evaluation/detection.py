"""Metrics of object detection, from the matches of detections and objects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from ..data.types import Sample
from .average_precision import average_precision, coco_statistics, group_by_class
from .confidence_intervals import bootstrap_interval, chunk_sizes
from .curves import threshold_curve, threshold_metrics
from .detection_errors import confusion_matrix
from .inference import Prepared
from .matcher import match
from .outcomes import count_by_class
from .predictions import DetectedImage
from .results import ThresholdMetrics
from .task_metrics import Intervals, TaskMetrics


@dataclass
class DetectionState:
    """Images with their detections, and the loss and its terms for each group: index of its first image, its number
    of objects, and the values by name.
    """

    images: list[DetectedImage] = field(default_factory=list)
    losses: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)


class DetectionMetrics(TaskMetrics):
    """COCO's mean average precision and recall, score thresholds, and metrics per class."""

    state: DetectionState

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.class_indices = torch.tensor(self.targets)
        self.lowest = getattr(self.processor, "score_threshold", 0.0)
        self.state = DetectionState()

    def label(self, group: Sequence[Prepared]) -> list[dict[str, Tensor]]:
        """Return the labels of the detector: boxes (cx, cy, w, h) inside the image, as fractions of it."""
        labels = []
        for prepared in group:
            targets, (height, width) = self._targets(prepared.sample), prepared.size
            boxes = box_convert(clip_boxes_to_image(targets["boxes"], prepared.size), "xyxy", "cxcywh")
            is_inside = (boxes[:, 2:] > 0).all(dim=1)
            labels.append(
                {
                    "class_labels": targets["labels"][is_inside],
                    "boxes": boxes[is_inside] / torch.tensor([width, height, width, height]),
                    "iscrowd": targets["iscrowd"][is_inside],
                }
            )
        return labels

    def postprocess(self, outputs: Any, group: Sequence[Prepared]) -> list[dict[str, Tensor]]:
        """Return the detections of each image, without classes that the dataset lacks."""
        if (terms := getattr(outputs, "loss_dict", None)) is not None:
            losses = {"loss": outputs.loss.item()} | {name: value.item() for name, value in terms.items()}
            self.state.losses.append((group[0].index, sum(map(_count_objects, group)), losses))
        sizes = torch.tensor([prepared.size for prepared in group], device=outputs.logits.device)
        post_process = self.processor.post_process_object_detection  # ty: ignore[missing-attribute], detectors only
        detections = []
        for result in post_process(outputs, self.lowest, sizes):
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
            self.state.images.append(image)

    def _targets(self, sample: Sample) -> dict[str, Tensor]:
        if (objects := sample.objects) is None:
            raise ValueError(
                f"{sample.name}: got no boxes, expected objects. Use a detection dataset with a detector."
            )
        labels = self.class_indices[objects.labels]
        return {"boxes": objects.boxes, "labels": labels, "iscrowd": objects.iscrowd, "area": objects.areas}

    def merge(self, states: Iterable[DetectionState]) -> None:
        """Concatenate the images of all processes in the order of the samples."""
        states = list(states)
        self.state = DetectionState(
            images=sorted(chain(*(state.images for state in states)), key=attrgetter("index")),
            losses=sorted(chain(*(state.losses for state in states)), key=itemgetter(0)),
        )
        self.images = self.state.images
        self.matches = group_by_class([image.matches for image in self.images])
        self.best = threshold_curve(self.matches, self.lowest).best()

    @property
    def _threshold(self) -> float:
        """Score threshold of counts: the recommended or else the best one; without either, all detections count."""
        chosen = self.best.value if self.recommended is None and self.best else self.recommended
        return -1.0 if chosen is None else chosen

    def compute(self) -> dict[str, Any]:
        """Compute the metrics of `CocoMap`, and those of each class in `per_class_metrics`."""
        metrics = coco_statistics(self.matches, len(self.images), self.id2label)
        counts = count_by_class(self.images, self._threshold, len(self.id2label))
        for group, row in zip(self.matches, metrics["per_class_metrics"].values(), strict=True):
            numbers = counts[group.label]
            row |= {"precision": numbers.precision, "recall": numbers.recall, "f1": numbers.f1}
            row |= {"count_bias": numbers.mean_error, "count_error": numbers.mean_absolute_error}
        return metrics

    def confidence_intervals(self, metrics: Mapping[str, Any], resamples: int, generator: Generator) -> Intervals:
        """Compute the intervals of mAP, mAP50 and mAP75 by resampling the images; none without objects."""
        if metrics["map"] < 0 or not resamples:
            return {}
        count, values = len(self.images), []
        longest = max(len(group.images) for group in self.matches)
        for size in chunk_sizes(resamples, max(longest, count)):
            weights = generator.multinomial(count, np.full(count, 1 / count), size=size).T.copy()
            values.append(average_precision(self.matches, weights))
        precision = np.concatenate(values, axis=-1)  # (classes, thresholds, resamples)
        precision = precision[..., ~np.isnan(precision).all(axis=(0, 1))]  # resamples with objects
        means = {
            "map": np.nanmean(precision, axis=(0, 1)),
            "map_50": np.nanmean(precision[:, 0], axis=0),
            "map_75": np.nanmean(precision[:, 5], axis=0),
        }
        return {name: bootstrap_interval(resampled, metrics[name], count) for name, resampled in means.items()}

    def predictions(self) -> list[DetectedImage]:
        """Return the detections and objects of each image."""
        return self.images

    def losses(self) -> dict[str, float]:
        """Return the mean of the loss and its terms over the groups, weighted by their numbers of objects."""
        total = sum(num_objects for _, num_objects, _ in self.state.losses)
        if not total:
            return {}
        return {
            name: sum(num_objects * values[name] for _, num_objects, values in self.state.losses) / total
            for name in self.state.losses[0][2]
        }

    def confusion_matrix(self) -> np.ndarray:
        """Return the confusion matrix with background at the recommended threshold, or else the best one."""
        return confusion_matrix(self.images, self._threshold, len(self.id2label))

    def best_threshold(self) -> ThresholdMetrics | None:
        """Return the threshold with the highest F1, None without objects or detections."""
        return self.best

    def recommended_threshold(self) -> ThresholdMetrics | None:
        """Return the metrics at the recommended threshold, None if the model has none."""
        if self.recommended is None:
            return None
        return threshold_metrics(self.matches, self.recommended)


def _count_objects(prepared: Prepared) -> int:
    """Return the number of objects on an image, without crowds."""
    objects = prepared.sample.objects
    return int((objects.iscrowd == 0).sum()) if objects else 0


def _check_boxes(boxes: Tensor, sample: Sample) -> None:
    if not (boxes.isfinite().all() and (boxes[:, :2] <= boxes[:, 2:]).all()):
        raise ValueError(
            f"{sample.name}: got boxes {boxes[:10].tolist()}, expected finite (x1, y1, x2, y2) with x1 ≤ x2 and "
            "y1 ≤ y2 from model and dataset. Convert other formats with torchvision.ops.box_convert."
        )
