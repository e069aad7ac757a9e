"""Metrics of image classification, from counts of predicted and target classes."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.random import Generator

from ..data.types import Sample
from ..metrics.class_names import class_names, per_class_table
from ..tasks import MIN_TOP_5_CLASSES
from .calibration import reliability
from .confidence_intervals import bootstrap_interval, chunk_sizes, wilson_interval
from .inference import Prepared
from .predictions import ClassifiedImages
from .task_metrics import Intervals, TaskMetrics

TOP = 5

# One row per image: index of the sample, target and predicted class, their probabilities, cross-entropy of the target,
# and number of classes with a higher logit than the target's.
ROW = np.dtype(
    [
        ("index", np.int64),
        ("target", np.int32),
        ("prediction", np.int32),
        ("score", np.float32),
        ("target_score", np.float32),
        ("loss", np.float32),
        ("rank", np.int32),
    ]
)


class ClassificationMetrics(TaskMetrics):
    """Accuracy, top-5 accuracy, macro F1, and precision, recall and F1 per class."""

    state: list[tuple[list[str], np.ndarray]]  # names and rows (B,) of each group of images

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state = []

    def postprocess(self, outputs: Any, group: Sequence[Prepared]) -> np.ndarray:
        """Return the logits (B, K)."""
        return outputs.logits.float().cpu().numpy()

    def update(self, logits: np.ndarray, group: Sequence[Prepared]) -> None:
        """Add the logits (B, K) of a group of images."""
        targets = np.array([self._target(prepared.sample) for prepared in group])
        # Of classes with equal logits, the one with the lower index comes first.
        target_logits = np.take_along_axis(logits, targets[:, None], axis=1)
        is_before = np.arange(logits.shape[1]) < targets[:, None]
        ranks = ((logits > target_logits) | ((logits == target_logits) & is_before)).sum(axis=1)
        # Softmax of the predicted class, and log-softmax of the target.
        highest = logits.max(axis=1)
        scores = 1 / np.exp(logits - highest[:, None]).sum(axis=1)
        losses = highest - target_logits[:, 0] - np.log(scores)
        indices = np.array([prepared.index for prepared in group])
        columns = [indices, targets, logits.argmax(axis=1), scores, np.exp(-losses), losses, ranks]
        rows = np.rec.fromarrays(columns, dtype=ROW)
        self.state.append(([prepared.sample.name for prepared in group], rows))

    def _target(self, sample: Sample) -> int:
        if sample.label is None:
            raise ValueError(
                f"{sample.name}: got no label, expected a class. Use a classification dataset with a classifier."
            )
        return self.targets[sample.label]

    def merge(self, states: Iterable[list[tuple[list[str], np.ndarray]]]) -> None:
        """Concatenate the rows of all processes in the order of the samples."""
        groups = list(chain(*states))
        rows, names = np.concatenate([rows for _, rows in groups]), list(chain(*(names for names, _ in groups)))
        order = np.argsort(rows["index"])
        self.rows, self.names = rows[order], [names[index] for index in order]
        self.state = [(self.names, self.rows)]

    def confusion_matrix(self) -> np.ndarray:
        """Return the number of images (K, K), int64, by target class (rows) and predicted class (columns)."""
        confusion = np.zeros((len(self.id2label),) * 2, dtype=np.int64)
        np.add.at(confusion, (self.rows["target"], self.rows["prediction"]), 1)
        return confusion

    def compute(self) -> dict[str, Any]:
        """Compute the metrics of `TopKAccuracy`, and the expected calibration error."""
        confusion, count = self.confusion_matrix(), len(self.rows)
        predicted, support, correct = confusion.sum(axis=0), confusion.sum(axis=1), confusion.diagonal()
        classes = np.flatnonzero(predicted + support)
        columns = {
            "precision": correct / np.maximum(predicted, 1),
            "recall": correct / np.maximum(support, 1),
            "f1": 2 * correct / np.maximum(predicted + support, 1),
            "support": support,
        }
        columns = {name: column[classes] for name, column in columns.items()}
        top = {f"top_{TOP}_accuracy": float(self._is_in_top().mean())} if len(confusion) >= MIN_TOP_5_CLASSES else {}
        is_correct = self.rows["prediction"] == self.rows["target"]
        return {
            "accuracy": float(correct.sum() / count),
            **top,
            "macro_f1": float(columns["f1"].mean()),
            "ece": reliability(self.rows["score"], is_correct).ece,
            "per_class": per_class_table(columns, classes.tolist(), self.id2label),
        }

    def _is_in_top(self) -> np.ndarray:
        """Return whether the target of an image (N,) is among the `TOP` highest logits."""
        return self.rows["rank"] < TOP

    def confidence_intervals(self, metrics: Mapping[str, Any], resamples: int, generator: Generator) -> Intervals:
        """Compute the intervals of accuracy and top-5 accuracy, and of macro F1 by resampling.

        Resampling N images is sampling the counts of their (predicted, target) pairs from a multinomial distribution.
        """
        count = len(self.rows)
        pairs = np.stack([self.rows["prediction"], self.rows["target"]], axis=1)
        pairs, counts = np.unique(pairs, axis=0, return_counts=True)
        intervals = {"accuracy": wilson_interval(int(counts[pairs[:, 0] == pairs[:, 1]].sum()), count)}
        if "top_5_accuracy" in metrics:
            intervals["top_5_accuracy"] = wilson_interval(int(self._is_in_top().sum()), count)
        if not resamples:
            return intervals
        values = []
        for size in chunk_sizes(resamples, len(pairs)):
            samples = generator.multinomial(count, counts / count, size=size)
            values.append(_macro_f1(pairs, samples, samples * (pairs[:, 0] == pairs[:, 1])))
        macro_f1 = bootstrap_interval(np.concatenate(values), metrics["macro_f1"], count)
        return intervals | {"macro_f1": macro_f1}

    def class_intervals(self) -> dict[str, Intervals]:
        """Compute the intervals of precision and recall, of classes that have predictions or targets respectively."""
        confusion = self.confusion_matrix()
        totals = {"precision": confusion.sum(axis=0), "recall": confusion.sum(axis=1)}
        classes = np.flatnonzero(totals["precision"] + totals["recall"]).tolist()
        return {
            name: {
                metric: wilson_interval(int(confusion[index, index]), int(total[index]))
                for metric, total in totals.items()
                if total[index]
            }
            for name, index in zip(class_names(classes, self.id2label), classes, strict=True)
        }

    def predictions(self) -> ClassifiedImages:
        """Return the target and the prediction of each image, with their probabilities."""
        names = ("index", "target", "prediction")
        indices, targets, predictions = (self.rows[name].astype(np.int64) for name in names)
        scores, target_scores = (self.rows[name].copy() for name in ("score", "target_score"))
        return ClassifiedImages(indices, self.names, targets, predictions, scores, target_scores)

    def losses(self) -> dict[str, float]:
        """Return the mean cross-entropy of the targets."""
        return {"loss": float(self.rows["loss"].mean(dtype=np.float64))}


def _macro_f1(pairs: np.ndarray, counts: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(predicted, target) pairs (P, 2), their counts (R, P) and correct counts (R, P) → mean F1 over classes (R,)."""
    _, indices = np.unique(pairs, return_inverse=True)
    predicted, target = indices.reshape(-1, 2).T
    hits, occurrences = (np.zeros((indices.max() + 1, len(counts))) for _ in range(2))
    np.add.at(hits, target, correct.T)
    np.add.at(occurrences, target, counts.T)
    np.add.at(occurrences, predicted, counts.T)
    return (2 * hits / np.maximum(occurrences, 1)).sum(axis=0) / (occurrences > 0).sum(axis=0)
