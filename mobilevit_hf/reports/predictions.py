"""`predictions.csv`: the predictions of an evaluation, a row per image, or per box of a detector."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from ..evaluation.outcomes import find_outcomes
from ..evaluation.predictions import ClassifiedImages, DetectedImage, SegmentedImage
from ..evaluation.results import EvaluationResult

CLASSIFICATION_COLUMNS = ("file", "target", "prediction", "score", "target_score", "correct")
SEGMENTATION_COLUMNS = ("file", "mean_iou", "pixel_accuracy")  # and one per class
DETECTION_COLUMNS = ("file", "kind", "label", "score", "x1", "y1", "x2", "y2", "outcome")


def write_predictions(path: Path, result: EvaluationResult) -> None:
    """Write the predictions of an evaluation as CSV, with all digits.

    A classifier has a row per image. A detector has a row per detection (`kind` is `prediction`), of all scores that
    enter its mAP, with the `outcome` `true positive`, `false positive` or `ignored` (on a crowd) at an IoU of 0.5 if
    its score is above the threshold, else `below threshold`; and a row per object (`kind` is `object`), with the
    outcome `detected`, `missed` or `ignored` (a crowd). Boxes are (x1, y1, x2, y2) in pixels. Segmentation has a row
    per image, with the IoU of each class, empty for a class that is neither in the mask nor predicted.
    """
    # A name may contain bytes that are not UTF-8.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if isinstance(result.predictions, ClassifiedImages):
            writer.writerow(CLASSIFICATION_COLUMNS)
            writer.writerows(_classification_rows(result.predictions, result.classes))
        elif result.task == "image-segmentation":
            writer.writerow([*SEGMENTATION_COLUMNS, *(f"iou {name}" for name in result.classes)])
            writer.writerows(map(_segmentation_row, cast(list[SegmentedImage], result.predictions)))
        else:
            threshold = -1.0 if result.threshold is None else result.threshold
            writer.writerow(DETECTION_COLUMNS)
            for image in cast(list[DetectedImage], result.predictions):
                writer.writerows(_detection_rows(image, result.classes, threshold))


def _classification_rows(images: ClassifiedImages, classes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    columns = (images.targets, images.predictions, images.scores, images.target_scores)
    for name, target, prediction, score, target_score in zip(images.names, *columns, strict=True):
        is_correct = "true" if target == prediction else "false"
        yield name, classes[target], classes[prediction], score, target_score, is_correct


def _segmentation_row(image: SegmentedImage) -> list[Any]:
    values = (image.mean_iou, image.pixel_accuracy, *image.ious.tolist())
    return [image.name, *("" if math.isnan(value) else value for value in values)]


def _detection_rows(image: DetectedImage, classes: Sequence[str], threshold: float) -> Iterator[tuple[Any, ...]]:
    matches, outcomes = image.matches, find_outcomes(image, threshold)
    for index, (label, score, box) in enumerate(zip(matches.labels, matches.scores, image.boxes, strict=True)):
        if not outcomes.kept[index]:
            outcome = "below threshold"
        elif outcomes.ignored[index]:
            outcome = "ignored"
        else:
            outcome = "true positive" if outcomes.hits[index] else "false positive"
        yield image.name, "prediction", classes[label], score, *box, outcome
    for index, (label, box) in enumerate(zip(matches.objects, image.object_boxes, strict=True)):
        outcome = "missed" if outcomes.missed[index] else "detected" if outcomes.counted[index] else "ignored"
        yield image.name, "object", classes[label], "", *box, outcome
