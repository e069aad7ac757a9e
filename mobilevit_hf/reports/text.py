"""Texts of a report: numbers, intervals, and the table of metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.results import EvaluationResult
from ..records import CROSS_VALIDATION
from ..tasks import METRICS
from ..visualization.curves import LOSS_TITLES
from .page import Table

INTERVAL_COLUMN = "95% confidence interval"


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    Attributes:
        split: Evaluated split.
        num_images: Number of its images.
        classes: Class names of the model.
    """

    split: str
    num_images: int
    classes: Sequence[str]

    @property
    def images(self) -> str:
        """Such as "validation, 360 images"."""
        return f"{self.split}, {count(self.num_images, 'image')}"


def describe_other_images(subject: Subject) -> tuple[str, str]:
    """Return how to find wrong labels on the other images: a sentence, and a command or ""."""
    if subject.split == CROSS_VALIDATION:
        return "Every image is predicted by a model that was not trained on it.", ""
    return "To check the other splits:", "mobilevit evaluate MODEL DATA --split all --save DIR"


def count(number: int, noun: str) -> str:
    """Return a number with a noun in singular or plural."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith(("s", "x")) else "s")


def percent(value: float) -> str:
    """Return a fraction as percentage; COCO's -1 stands for a metric without objects."""
    return "-" if value < 0 else f"{value:.1%}"


def interval(ends: Sequence[float] | None) -> str:
    """Return an interval of fractions as text, empty without one."""
    return f"{percent(ends[0])} to {percent(ends[1])}" if ends else ""


def metrics_table(result: EvaluationResult, caption: str) -> Table:
    """Return a table of all metrics of an evaluation, with intervals where they are known, and the losses."""
    rows = [
        (metric.title, percent(result.metrics[name]), interval(result.intervals.get(name)))
        for name, metric in METRICS.items()
        if name in result.metrics
    ]
    rows += [(LOSS_TITLES.get(name, name), f"{value:.3f}", "") for name, value in result.losses.items()]
    return Table(("Metric", "Value", INTERVAL_COLUMN), rows, caption)


def spread(length: int, number: int) -> np.ndarray:
    """Return evenly spaced indices: folders are sorted by class."""
    number = min(number, length)
    return np.arange(number) * length // max(number, 1)
