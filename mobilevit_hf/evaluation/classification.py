"""Metrics of image classification, from counts of predicted and target classes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator

from ..data.types import Sample
from ..metrics.class_names import per_class_table
from .confidence_intervals import chunk_sizes, percentile_interval
from .inference import Prepared
from .results import Mistake, select_worst
from .task_metrics import Intervals, TaskMetrics

TOP = 5


@dataclass
class Counts:
    """Counts of predictions, and the worst mistakes."""

    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)  # images by (predicted class, target class)
    in_top: int = 0  # images with the target among the `TOP` highest logits
    mistakes: list[Mistake] = field(default_factory=list)


class ClassificationMetrics(TaskMetrics):
    """Accuracy, top-5 accuracy, macro F1, and precision, recall and F1 per class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state = Counts()

    def postprocess(self, outputs: Any, group: Sequence[Prepared]) -> np.ndarray:
        """Return the logits (B, K)."""
        return outputs.logits.float().cpu().numpy()

    def update(self, logits: np.ndarray, group: Sequence[Prepared]) -> None:
        """Count the logits (B, K) of a group of images."""
        targets = np.array([self._target(prepared.sample) for prepared in group])
        predicted = logits.argmax(axis=1)
        target_logits = np.take_along_axis(logits, targets[:, None], axis=1)
        # Of classes with equal logits, the one with the lower index comes first.
        is_before = np.arange(logits.shape[1]) < targets[:, None]
        ranks = ((logits > target_logits) | ((logits == target_logits) & is_before)).sum(axis=1)
        # Softmax of the predicted class.
        probabilities = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
        mistakes = [
            Mistake(prepared.index, prepared.sample.name, self.id2label[target], self.id2label[prediction], score)
            for prepared, target, prediction, score in zip(
                group, targets.tolist(), predicted.tolist(), probabilities.tolist(), strict=True
            )
            if target != prediction
        ]
        self.state.pairs.update(zip(predicted.tolist(), targets.tolist(), strict=True))
        self.state.in_top += int((ranks < TOP).sum())
        self.state.mistakes = select_worst([*self.state.mistakes, *mistakes])

    def _target(self, sample: Sample) -> int:
        if sample.label is None:
            raise ValueError(
                f"{sample.name}: got no label, expected a class. Use a classification dataset with a classifier."
            )
        return self.targets[sample.label]

    def merge(self, states: Iterable[Counts]) -> None:
        """Sum the counts of all processes."""
        self.state = Counts()
        for state in states:
            self.state.pairs.update(state.pairs)
            self.state.in_top += state.in_top
            self.state.mistakes = select_worst([*self.state.mistakes, *state.mistakes])

    def confusion_matrix(self) -> np.ndarray:
        """Return the number of images (K, K), int64, by target class (rows) and predicted class (columns)."""
        confusion = np.zeros((len(self.id2label),) * 2, dtype=np.int64)
        for (predicted, target), count in self.state.pairs.items():
            confusion[target, predicted] = count
        return confusion

    def compute(self) -> dict[str, Any]:
        """Compute the metrics of `TopKAccuracy`."""
        confusion, count = self.confusion_matrix(), self.state.pairs.total()
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
        top = {f"top_{TOP}_accuracy": self.state.in_top / count} if len(confusion) > TOP else {}
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
        count = self.state.pairs.total()
        pairs = np.array(sorted(self.state.pairs))
        counts = np.array([self.state.pairs[pair] for pair in sorted(self.state.pairs)])
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

    def worst_mistakes(self) -> list[Mistake]:
        """Return the wrong predictions with the highest probabilities."""
        return self.state.mistakes


def _macro_f1(pairs: np.ndarray, counts: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(predicted, target) pairs (P, 2), their counts (R, P) and correct counts (R, P) → mean F1 over classes (R,)."""
    _, indices = np.unique(pairs, return_inverse=True)
    predicted, target = indices.reshape(-1, 2).T
    hits, occurrences = (np.zeros((indices.max() + 1, len(counts))) for _ in range(2))
    np.add.at(hits, target, correct.T)
    np.add.at(occurrences, target, counts.T)
    np.add.at(occurrences, predicted, counts.T)
    return (2 * hits / np.maximum(occurrences, 1)).sum(axis=0) / (occurrences > 0).sum(axis=0)
