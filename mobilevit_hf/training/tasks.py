"""What differs between training a classifier and a detector; the engine is one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..data.checks import DatasetReport
from ..data.transforms import Mix, make_mix
from ..data.types import Dataset
from ..evaluation import EvaluationResult
from .arguments import TrainArguments
from .initialization import Start, start_classifier, start_detector

LossFunction: TypeAlias = Callable[[nn.Module, dict[str, Any]], Tensor]


class TrainingTask(ABC):
    """A task, for a dataset.

    Args:
        arguments: Those of the training, complete for the task.
        dataset: What to train on.
    """

    def __init__(self, arguments: TrainArguments, dataset: Dataset) -> None:
        self.arguments, self.dataset = arguments, dataset

    @abstractmethod
    def start(self, report: DatasetReport) -> Start:
        """The model to train, and its image processor."""

    @abstractmethod
    def augmentation(self) -> dict[str, Any]:
        """Options of `make_transform` in training."""

    def mix(self) -> Mix | None:
        """What is done to whole batches."""
        return None

    @abstractmethod
    def loss_function(self, report: DatasetReport, device: torch.device) -> LossFunction:
        """A function of the model and a batch that returns the loss, a scalar."""

    def finish(self, model: PreTrainedModel, result: EvaluationResult) -> None:
        """Write into the model's configuration what was found out about it."""
        return

    def _augmentation_of_both(self) -> dict[str, float]:
        return {name: getattr(self.arguments, name) for name in ("horizontal_flip", "vertical_flip", "color_jitter")}


class ClassificationTask(TrainingTask):
    """One of K classes for each image: cross-entropy."""

    def start(self, report: DatasetReport) -> Start:
        """A classifier of the data's classes that sees images no larger than they are."""
        side = min(report.widths.median, report.heights.median) if report.widths else None
        return start_classifier(self.arguments, self.dataset.classes, side)

    def augmentation(self) -> dict[str, Any]:
        """Crops, flips, and what was asked for beside."""
        a = self.arguments
        return self._augmentation_of_both() | {
            "crop_scale": (a.crop_scale, 1.0),
            "rand_augment": a.rand_augment,
            "random_erasing": a.random_erasing,
        }

    def mix(self) -> Mix | None:
        """Mixup and cutmix, if asked for."""
        return make_mix(len(self.dataset.classes), self.arguments.mixup, self.arguments.cutmix)

    def loss_function(self, report: DatasetReport, device: torch.device) -> LossFunction:
        """Cross-entropy, with smoothed labels and weighted classes where asked for."""
        weights = None
        if self.arguments.class_weights == "balanced":
            weights = balanced_weights([report.counts["train"][name] for name in self.dataset.classes]).to(device)
        smoothing = self.arguments.label_smoothing_factor

        def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
            logits = model(pixel_values=batch["pixel_values"]).logits.float()
            return F.cross_entropy(logits, batch["labels"], weight=weights, label_smoothing=smoothing)

        return loss


class DetectionTask(TrainingTask):
    """Objects of K classes and their boxes: SSD's loss."""

    def start(self, report: DatasetReport) -> Start:
        """A detector of the data's classes, with anchors for its boxes."""
        train = self.dataset.splits["train"]
        return start_detector(self.arguments, self.dataset.classes, train if isinstance(train, Sequence) else None)

    def augmentation(self) -> dict[str, Any]:
        """SSD's."""
        return self._augmentation_of_both() | {name: getattr(self.arguments, name) for name in ("zoom_out", "crop")}

    def loss_function(self, report: DatasetReport, device: torch.device) -> LossFunction:
        """The model's own."""
        return lambda model, batch: model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss

    def finish(self, model: PreTrainedModel, result: EvaluationResult) -> None:
        """The threshold of the best F1 becomes the recommended one."""
        if result.best_threshold:
            model.config.recommended_threshold = round(result.best_threshold.value, 3)


TASKS: dict[str, type[TrainingTask]] = {
    "image-classification": ClassificationTask,
    "object-detection": DetectionTask,
}


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Weights that make each class count the same, 1 on average over the samples.

    Args:
        counts: (K,) how many samples each class has; one without any gets the weight 0.
    """
    numbers = torch.tensor(counts, dtype=torch.float32)
    present = numbers > 0
    return torch.where(present, numbers.sum() / (present.sum() * numbers.clamp(min=1)), 0.0)
