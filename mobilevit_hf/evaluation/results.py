"""Results of an evaluation."""

import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.types import Problem
from ..io import count_noun
from ..records import EvaluationRecord
from ..tasks import TaskName
from .outcomes import find_outcomes
from .predictions import ClassifiedImages, DetectedImage, SegmentedImage

MAX_MISTAKES = 24


@dataclass(frozen=True)
class ThresholdMetrics:
    """Metrics of a detector at a score threshold and an IoU of 0.5, over all classes together."""

    value: float  # boxes with a higher score are detections
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Mistake:
    """An image with a wrong prediction.

    Attributes:
        index, name: Index and name of the sample.
        target: Target class of a classifier, by the model's class name; number of objects for a detector; number of
            classes in the mask.
        prediction: Predicted class of a classifier; numbers of missed objects and wrong detections for a detector;
            mean IoU of a label map and its most frequent confusion.
        score: Severity: probability of the predicted class, 0..1; number of errors for a detector; 1 - mean IoU of a
            label map.
    """

    index: int
    name: str
    target: str
    prediction: str
    score: float


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        metrics: Metrics, as returned by `TopKAccuracy` or `CocoMap`, with the model's class names in `per_class`; for
            segmentation those of `SegmentationMetrics.compute`.
            Top-5 accuracy is left out below ten classes. A classifier also has `ece`, the expected calibration error,
            and a detector `per_class_metrics`: for each class those of `coco_statistics`, precision, recall and F1 at
            `threshold`, and the number of detections minus that of objects per image, as `count_bias` (mean) and
            `count_error` (mean of the absolute values).
        intervals: Ends of the 95% confidence interval, by metric: Wilson's for proportions, bootstrap over the images
            for others, see `bootstrap_interval`.
        best_threshold: Score threshold of a detector with the highest F1; None for a classifier or without detections.
        images_per_second: Throughput from file to prediction: decoding, preprocessing, network and post-processing,
            without the metrics. For several processes, all images by the time of the slowest process.
        problems: Unreadable images, in the order of the samples.
        notes: Sentences for the user, such as how classes were matched.
        confusion: (K, K) int64 number of images by target class (rows) and predicted class (columns), in the order
            of the model's classes. (K + 1, K + 1) for a detector, see `confusion_matrix`. Number of pixels for
            segmentation.
        predictions: Predictions of all readable images.
        losses: Mean loss over the images: `loss`, and the terms of a detector's loss; empty if the model has none.
        classes: Class names of the model, by index.
        class_intervals: Wilson intervals of a classifier's precision and recall, by class and metric.
        recommended_threshold: Metrics of a detector at the threshold that is saved with the model, the default of its
            predictions; None if it has none.
    """

    task: TaskName
    metrics: dict[str, Any]
    intervals: dict[str, tuple[float, float]]
    best_threshold: ThresholdMetrics | None
    images_per_second: float
    num_images: int
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    confusion: np.ndarray | None = None
    predictions: ClassifiedImages | list[DetectedImage] | list[SegmentedImage] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    class_intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    recommended_threshold: ThresholdMetrics | None = None

    @property
    def threshold(self) -> float | None:
        """Score threshold of counts, confusion matrix and mistakes: the recommended one, or else the best one."""
        chosen = self.recommended_threshold or self.best_threshold
        return chosen.value if chosen else None

    @property
    def mistakes(self) -> list[Mistake]:
        """Worst mistakes, at most `MAX_MISTAKES`.

        For a classifier, wrong predictions by their probability; for a detector, images by missed objects plus wrong
        detections at `threshold` and an IoU of 0.5, or of all detections without a threshold; for segmentation, images
        with a wrong pixel by their mean IoU.
        """
        if isinstance(self.predictions, ClassifiedImages):
            mistakes = _misclassified(self.predictions, self.classes)
        else:
            threshold = -1.0 if self.threshold is None else self.threshold
            mistakes = (
                _describe_label_map(image, self.classes)
                if isinstance(image, SegmentedImage)
                else _count_errors(image, threshold)
                for image in self.predictions
            )
        worst = heapq.nsmallest(MAX_MISTAKES, mistakes, key=lambda mistake: (-mistake.score, mistake.index))
        return [mistake for mistake in worst if mistake.score]

    def to_record(self, *, data: str | None = None, split: str | None = None) -> EvaluationRecord:
        """Return the figures for a JSON file, with the dataset's name and the split."""
        figures = {name: getattr(self, name) for name in ("metrics", "intervals", "class_intervals", "losses")}
        for name in ("best_threshold", "recommended_threshold"):
            threshold = getattr(self, name)
            figures[name] = dataclasses.asdict(threshold) if threshold else None
        return EvaluationRecord(
            data=data,
            split=split,
            num_images=self.num_images,
            images_per_second=round(self.images_per_second, 1),
            **figures,
        )


def _misclassified(images: ClassifiedImages, classes: Sequence[str]) -> Iterator[Mistake]:
    for row in np.flatnonzero(images.predictions != images.targets).tolist():
        target, prediction = classes[images.targets[row]], classes[images.predictions[row]]
        yield Mistake(int(images.indices[row]), images.names[row], target, prediction, float(images.scores[row]))


def _count_errors(image: DetectedImage, threshold: float) -> Mistake:
    """Count the missed objects and wrong detections on an image at a score threshold and an IoU of 0.5."""
    outcomes = find_outcomes(image, threshold)
    missed, wrong = int(outcomes.missed.sum()), int(outcomes.false_positives.sum())
    num_objects = int(outcomes.counted.sum())
    target = count_noun(num_objects, "object")
    return Mistake(image.index, image.name, target, f"{missed} missed, {wrong} wrong", float(missed + wrong))


def _describe_label_map(image: SegmentedImage, classes: Sequence[str]) -> Mistake:
    """Return the mean IoU of an image and its most frequent confusion; score 0 without a wrong or labeled pixel."""
    count = int((image.class_pixels[2] > 0).sum())
    text = f"{count} class{'' if count == 1 else 'es'}"
    if image.most_frequent_confusion is None:
        return Mistake(image.index, image.name, text, "no wrong pixel", 0.0)
    target, predicted, fraction = image.most_frequent_confusion
    confusion = f"{classes[target]} as {classes[predicted]} ({fraction:.1%} of the pixels)"
    prediction = f"mean IoU {image.mean_iou:.1%}, mostly {confusion}"
    return Mistake(image.index, image.name, text, prediction, 1 - image.mean_iou)
