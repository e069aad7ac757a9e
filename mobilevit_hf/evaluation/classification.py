"""How good a classifier's answers are, by counts of what it named and what was right."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.types import Sample
from ..metrics.class_names import class_names
from .confidence_intervals import chunks, interval
from .inference import Prepared
from .results import Mistake, find_worst

TOP = 5


@dataclass
class Counts:
    """What there is to know of answers.

    Attributes:
        pairs: How often each pair of the class named first and the right one came.
        in_top: How often the right class was among the first `TOP`.
        mistakes: The worst, as `find_worst` has them.
    """

    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    in_top: int = 0
    mistakes: list[Mistake] = field(default_factory=list)


class Classification:
    """What a classifier answers, and what that is worth.

    Args:
        id2label: The model's names of its classes.
        targets: The model's class for each of the dataset's.
    """

    def __init__(self, id2label: Mapping[int, str], targets: Sequence[int]) -> None:
        self.id2label = id2label
        self.targets = targets
        self.known = Counts()

    def answer(self, outputs: Any, group: Sequence[Prepared]) -> np.ndarray:
        """(B, K) logits."""
        return outputs.logits.float().cpu().numpy()

    def add(self, logits: np.ndarray, group: Sequence[Prepared]) -> None:
        """Count the answers (B, K) to a group of images."""
        if not np.isfinite(logits).all():
            raise ValueError("The model's logits are not all finite numbers: it is broken, or was trained so.")
        right = np.array([self._right_class(prepared.sample) for prepared in group])
        named = logits.argmax(axis=1)
        of_right = np.take_along_axis(logits, right[:, None], axis=1)
        # Of classes with equal scores the lower index comes first.
        before = (logits > of_right) | ((logits == of_right) & (np.arange(logits.shape[1]) < right[:, None]))
        chances = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)  # of the class named: softmax
        wrong = [
            Mistake(prepared.place, prepared.sample.name, self.id2label[is_right], self.id2label[is_named], chance)
            for prepared, is_right, is_named, chance in zip(
                group, right.tolist(), named.tolist(), chances.tolist(), strict=True
            )
            if is_right != is_named
        ]
        self.known.pairs.update(zip(named.tolist(), right.tolist(), strict=True))
        self.known.in_top += int((before.sum(axis=1) < TOP).sum())
        self.known.mistakes = find_worst([*self.known.mistakes, *wrong])

    def _right_class(self, sample: Sample) -> int:
        if sample.label is None:
            raise ValueError(
                f"{sample.name} has no label: the model is a classifier, and this dataset is not for one."
            )
        return self.targets[sample.label]

    def join(self, parts: Iterable[Counts]) -> None:
        """Take what all processes know for what is known."""
        self.known = Counts()
        for part in parts:
            self.known.pairs.update(part.pairs)
            self.known.in_top += part.in_top
            self.known.mistakes = find_worst([*self.known.mistakes, *part.mistakes])

    def confusion(self) -> np.ndarray:
        """(K, K) int64: how many images of the row's class are called the column's."""
        confusion = np.zeros((len(self.id2label),) * 2, dtype=np.int64)
        for (named, right), uses in self.known.pairs.items():
            confusion[right, named] = uses
        return confusion

    def compute(self) -> dict[str, Any]:
        """The figures of `TopKAccuracy`."""
        confusion, count = self.confusion(), self.known.pairs.total()
        predicted, support, right = confusion.sum(axis=0), confusion.sum(axis=1), confusion.diagonal()
        classes = np.flatnonzero(predicted + support)
        columns = {
            "precision": right / np.maximum(predicted, 1),
            "recall": right / np.maximum(support, 1),
            "f1": 2 * right / np.maximum(predicted + support, 1),
            "support": support,
        }
        columns = {name: column[classes] for name, column in columns.items()}
        names = class_names(classes.tolist(), self.id2label)
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        # With no more than five classes the right one is always among the first five.
        top = {f"top_{TOP}_accuracy": self.known.in_top / count} if len(confusion) > TOP else {}
        return {
            "accuracy": float(right.sum() / count),
            **top,
            "macro_f1": float(columns["f1"].mean()),
            "per_class": {name: dict(zip(columns, row, strict=True)) for name, row in zip(names, rows, strict=True)},
        }

    def intervals(
        self, metrics: Mapping[str, Any], resamples: int, generator: np.random.Generator
    ) -> dict[str, tuple[float, float]]:
        """Drawing N images anew is drawing how many of them have each pair of answers: a multinomial number."""
        count = self.known.pairs.total()
        pairs = np.array(sorted(self.known.pairs))
        uses = np.array([self.known.pairs[pair] for pair in sorted(self.known.pairs)])
        found: dict[str, list[np.ndarray]] = {"accuracy": [], "macro_f1": []}
        for size in chunks(resamples, len(pairs)):
            draws = generator.multinomial(count, uses / count, size=size)
            right = draws * (pairs[:, 0] == pairs[:, 1])
            found["accuracy"].append(right.sum(axis=1) / count)
            found["macro_f1"].append(_macro_f1(pairs, draws, right))
        values = {name: np.concatenate(parts) for name, parts in found.items()}
        if "top_5_accuracy" in metrics:
            values["top_5_accuracy"] = generator.binomial(count, metrics["top_5_accuracy"], resamples) / count
        return {name: interval(numbers) for name, numbers in values.items()}

    def best_threshold(self) -> None:
        """A classifier has none."""
        return None

    def mistakes(self) -> list[Mistake]:
        """The worst first."""
        return self.known.mistakes


def _macro_f1(pairs: np.ndarray, draws: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) of a named and a right class, how many there are (R, P) and are right → (R,) mean F1 of classes."""
    _, places = np.unique(pairs, return_inverse=True)
    named, present = places.reshape(-1, 2).T
    hits, occurrences = (np.zeros((places.max() + 1, len(draws))) for _ in range(2))
    np.add.at(hits, present, right.T)
    np.add.at(occurrences, present, draws.T)
    np.add.at(occurrences, named, draws.T)
    return (2 * hits / np.maximum(occurrences, 1)).sum(axis=0) / (occurrences > 0).sum(axis=0)
