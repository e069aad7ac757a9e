"""Interface of the metrics of a task."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from transformers import BaseImageProcessor

from .inference import Prepared
from .predictions import ClassifiedImages, DetectedImage, SegmentedImage
from .results import ThresholdMetrics

Intervals = dict[str, tuple[float, float]]


class TaskMetrics(ABC):
    """Metrics of a task: updated with each batch, merged over processes, then computed.

    Args:
        processor: Image processor of the model.
        id2label: Class names of the model.
        targets: The model's class index of each dataset class.
        recommended: The model's recommended score threshold, None if it has none.
    """

    state: Any  # everything that the metrics are computed from; can be pickled

    def __init__(
        self,
        processor: BaseImageProcessor,
        id2label: Mapping[int, str],
        targets: Sequence[int],
        recommended: float | None = None,
    ) -> None:
        self.processor = processor
        self.id2label = id2label
        self.targets = targets
        self.recommended = recommended

    def label(self, group: Sequence[Prepared]) -> Any:
        """Return the labels with which the model computes its loss, None if the loss is computed from its outputs."""
        return None

    @abstractmethod
    def postprocess(self, outputs: Any, group: Sequence[Prepared]) -> Any:
        """Return the predictions for a group of images from the model's outputs."""

    @abstractmethod
    def update(self, predictions: Any, group: Sequence[Prepared], /) -> None:
        """Add the predictions for a group of images."""

    @abstractmethod
    def merge(self, states: Iterable[Any]) -> None:
        """Replace the state by those of all processes together."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """Return the metrics."""

    @abstractmethod
    def confidence_intervals(self, metrics: Mapping[str, Any], resamples: int, generator: Generator) -> Intervals:
        """Return the confidence intervals of some of the computed metrics; without resamples, those of proportions."""

    @abstractmethod
    def predictions(self) -> ClassifiedImages | list[DetectedImage] | list[SegmentedImage]:
        """Return the predictions of all images, in the order of the samples."""

    @abstractmethod
    def losses(self) -> dict[str, float]:
        """Return the loss and its terms, empty if the model has none."""

    @abstractmethod
    def confusion_matrix(self) -> np.ndarray:
        """Return the confusion matrix."""

    def class_intervals(self) -> dict[str, Intervals]:
        """Return the confidence intervals of proportions of each class, empty if the task has none."""
        return {}

    def best_threshold(self) -> ThresholdMetrics | None:
        """Return the best score threshold, None if the task has none."""
        return None

    def recommended_threshold(self) -> ThresholdMetrics | None:
        """Return the metrics at the model's recommended score threshold, None if it has none."""
        return None
