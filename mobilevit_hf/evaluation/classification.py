"""Metrics of image classification, from counts of predicted and target classes."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, compress
from typing import Any

import numpy as np
from numpy.random import Generator

from ..data.types import Sample
from ..metrics.class_names import per_class_table
from .confidence_intervals import chunk_sizes, percentile_interval
from .inference import Prepared
from .results import ClassifiedImages, Mistake, select_worst
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
        """Compute the metrics of `TopKAccuracy`."""
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
        # With at most five classes, the target is always among the top five.
        top = {f"top_{TOP}_accuracy": float((self.rows["rank"] < TOP).mean())} if len(confusion) > TOP else {}
        return {
            "accuracy": float(correct.sum() / count),
            **top,
            "macro_f1": float(columns["f1"].mean()),
            "per_class": per_class_table(columns, classes.tolist(), self.id2label),
        }

    def confidence_intervals(self, metrics: Mapping[str, Any], resamples: int, generator: Generator) -> Intervals:
        """Compute the intervals of accuracy, macro F1 and top-5 accuracy.

        Resampling N images is sampling the counts of their (predicted, target) pairs from a multinomial distribution.
        """
        count = len(self.rows)
        pairs = np.stack([self.rows["prediction"], self.rows["target"]], axis=1)
        pairs, counts = np.unique(pairs, axis=0, return_counts=True)
        accuracies, macro_f1s = [], []
        for size in chunk_sizes(resamples, len(pairs)):
            samples = generator.multinomial(count, counts / count, size=size)
            correct = samples * (pairs[:, 0] == pairs[:, 1])
            accuracies.append(correct.sum(axis=1) / count)
            macro_f1s.append(_macro_f1(pairs, samples, correct))
        values = {"accuracy": np.concatenate(accuracies), "macro_f1": np.concatenate(macro_f1s)}
        if "top_5_accuracy" in metrics:
            values["top_5_accuracy"] = generator.binomial(count, metrics["top_5_accuracy"], resamples) / count
        return {name: percentile_interval(resampled) for name, resampled in values.items()}

    def predictions(self) -> ClassifiedImages:
        """Return the target and the prediction of each image, with their probabilities."""
        names = ("index", "target", "prediction")
        indices, targets, predictions = (self.rows[name].astype(np.int64) for name in names)
        scores, target_scores = (self.rows[name].copy() for name in ("score", "target_score"))
        return ClassifiedImages(indices, self.names, targets, predictions, scores, target_scores)

    def losses(self) -> dict[str, float]:
        """Return the mean cross-entropy of the targets."""
        return {"loss": float(self.rows["loss"].mean(dtype=np.float64))}

    def worst_mistakes(self) -> list[Mistake]:
        """Return the wrong predictions with the highest probabilities."""
        wrong = self.rows["prediction"] != self.rows["target"]
        return select_worst(
            Mistake(
                int(row["index"]),
                name,
                self.id2label[int(row["target"])],
                self.id2label[int(row["prediction"])],
                float(row["score"]),
            )
            for name, row in zip(compress(self.names, wrong), self.rows[wrong], strict=True)
        )


def _macro_f1(pairs: np.ndarray, counts: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(predicted, target) pairs (P, 2), their counts (R, P) and correct counts (R, P) → mean F1 over classes (R,)."""
    _, indices = np.unique(pairs, return_inverse=True)
    predicted, target = indices.reshape(-1, 2).T
    hits, occurrences = (np.zeros((indices.max() + 1, len(counts))) for _ in range(2))
    np.add.at(hits, target, correct.T)
    np.add.at(occurrences, target, counts.T)
    np.add.at(occurrences, predicted, counts.T)
    return (2 * hits / np.maximum(occurrences, 1)).sum(axis=0) / (occurrences > 0).sum(axis=0)
