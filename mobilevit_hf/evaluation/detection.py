"""How good a detector's answers are, by which of its detections match the objects."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BaseImageProcessor

from ..data.types import Objects, Sample
from .average_precision import average_precision, by_class, coco_statistics
from .confidence_intervals import chunks, interval
from .inference import Prepared
from .matcher import Matches, match, unpack
from .results import BestThreshold, Mistake, find_worst


class Detection:
    """What a detector answers, and what that is worth.

    Args:
        processor: What makes detections of the model's outputs.
        id2label: The model's names of its classes.
        targets: The model's class for each of the dataset's.

    Attributes:
        known: Of each image its place in the samples, its name and what there is to know of its detections.
    """

    def __init__(self, processor: BaseImageProcessor, id2label: Mapping[int, str], targets: Sequence[int]) -> None:
        self.processor = processor
        self.id2label = id2label
        self.targets = torch.tensor(targets)
        self.threshold = getattr(processor, "score_threshold", 0.0)
        self.known: list[tuple[int, str, Matches]] = []

    def answer(self, outputs: Any, group: Sequence[Prepared]) -> list[dict[str, Tensor]]:
        """The detections of each image, of the classes that the dataset has: of others it says nothing."""
        sizes = torch.tensor([prepared.size for prepared in group], device=outputs.logits.device)
        answers = self.processor.post_process_object_detection(outputs, self.threshold, sizes)
        found = [{name: value.float().cpu() for name, value in answer.items()} for answer in answers]
        known = [torch.isin(answer["labels"], self.targets.float()) for answer in found]
        return [
            {name: answer[name][keep] for name in ("boxes", "scores", "labels")}
            for answer, keep in zip(found, known, strict=True)
        ]

    def add(self, answers: Sequence[Mapping[str, Tensor]], group: Sequence[Prepared]) -> None:
        """Match the answers to a group of images."""
        for answer, prepared in zip(answers, group, strict=True):
            reference = self._reference(prepared.sample)
            for boxes in (answer["boxes"], reference["boxes"]):
                _check_boxes(boxes, prepared.sample)
            self.known.append((prepared.place, prepared.sample.name, match(answer, reference)))

    def _reference(self, sample: Sample) -> dict[str, Tensor]:
        objects: Objects | None = sample.objects
        if objects is None:
            raise ValueError(f"{sample.name} has no boxes: the model is a detector, and this dataset is not for one.")
        labels = self.targets[objects.labels]
        return {"boxes": objects.boxes, "labels": labels, "iscrowd": objects.iscrowd, "area": objects.areas}

    def join(self, parts: Iterable[Sequence[tuple[int, str, Matches]]]) -> None:
        """Take what all processes know, in the order of the samples, for what is known."""
        self.known = sorted(chain(*parts), key=itemgetter(0))
        self.images = [matches for _, _, matches in self.known]
        self.matches = by_class(self.images)

    def confusion(self) -> None:
        """A detector has none."""
        return None

    def compute(self) -> dict[str, Any]:
        """The figures of `CocoMap`."""
        return coco_statistics(self.matches, len(self.images), self.id2label)

    def intervals(
        self, metrics: Mapping[str, Any], resamples: int, generator: np.random.Generator
    ) -> dict[str, tuple[float, float]]:
        """By drawing the images anew."""
        if metrics["map"] < 0:  # nothing to find
            return {}
        count, values = len(self.images), []
        longest = max(len(found.images) for found in self.matches)
        for size in chunks(resamples, max(longest, count)):
            draws = generator.multinomial(count, np.full(count, 1 / count), size=size).T.copy()
            values.append(average_precision(self.matches, draws))
        precision = np.concatenate(values, axis=-1)  # (classes, thresholds, resamples)
        precision = precision[..., ~np.isnan(precision).all(axis=(0, 1))]  # of draws with something to find
        return {
            "map": interval(np.nanmean(precision, axis=(0, 1))),
            "map_50": interval(np.nanmean(precision[:, 0], axis=0)),
        }

    def best_threshold(self) -> BestThreshold | None:
        """None if there is nothing to find, or nothing is found."""
        scores = np.concatenate([image.scores for image in self.images]).astype(np.float64)
        hits, ignored = (
            np.concatenate([_at_half(getattr(image, name)) for image in self.images]) for name in ("hits", "ignored")
        )
        present = sum(int(image.wanted[:, 0].sum()) for image in self.images)
        order = np.argsort(-scores[~ignored])
        scores, right = scores[~ignored][order], np.cumsum(hits[~ignored][order])
        if not len(scores) or not present:
            return None
        detected = np.arange(1, len(scores) + 1)
        f1 = 2 * right / (detected + present)
        # A threshold lies between two scores: of equal ones all are detections or none.
        last = np.flatnonzero(np.diff(scores, append=-1))
        best = last[f1[last].argmax()]
        below = scores[best + 1] if best + 1 < len(scores) else self.threshold
        return BestThreshold(
            value=float((scores[best] + below) / 2),
            f1=float(f1[best]),
            precision=float(right[best] / detected[best]),
            recall=float(right[best] / present),
        )

    def mistakes(self) -> list[Mistake]:
        """The images with the most errors at the best threshold; without one all detections count."""
        best = self.best_threshold()
        mistakes = (_find_errors(*image, best.value if best else self.threshold) for image in self.known)
        return find_worst(mistake for mistake in mistakes if mistake.score)


def _find_errors(place: int, name: str, matches: Matches, threshold: float) -> Mistake:
    """What is wrong on an image with the detections above a threshold."""
    sure = matches.scores > threshold
    hits = int(_at_half(matches.hits)[sure].sum())
    wrong = int((~_at_half(matches.hits) & ~_at_half(matches.ignored))[sure].sum())
    present = int(matches.wanted[:, 0].sum())
    return Mistake(
        place=place,
        name=name,
        right=f"{present} object{'' if present == 1 else 's'}",
        named=f"{present - hits} missed, {wrong} wrong",
        score=float(present - hits + wrong),
    )


def _at_half(packed: np.ndarray) -> np.ndarray:
    """Hits or ignored (n, 5) → (n,) those of all areas at an IoU of 0.5."""
    return unpack(packed)[:, 0, 0]


def _check_boxes(boxes: Tensor, sample: Sample) -> None:
    if not (boxes.isfinite().all() and (boxes[:, :2] <= boxes[:, 2:]).all()):
        raise ValueError(
            f"{sample.name}: got boxes {boxes[:10].tolist()}, expected finite (x1, y1, x2, y2) with x1 ≤ x2 and "
            "y1 ≤ y2, of the model as of the dataset. Other formats are converted by torchvision.ops.box_convert."
        )
