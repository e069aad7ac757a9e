"""Parts of training that differ by task: initial model, augmentation and loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..data.checks import DatasetReport
from ..data.transforms import Mix, make_mix
from ..data.types import Dataset
from ..evaluation import EvaluationResult
from ..tasks import TaskName
from .arguments import TaskArguments
from .initialization import (
    CLASSIFIER_TYPES,
    DETECTOR_TYPES,
    InitialModel,
    create_classifier,
    create_detector,
    create_segmenter,
)
from .segmentation_loss import SegmentationLoss

# Model and batch → scalar loss, or the `loss` and the parts that it is the sum of, by name.
LossFunction: TypeAlias = Callable[[nn.Module, dict[str, Any]], Tensor | dict[str, Tensor]]


class TrainingTask(ABC):
    """Training task on the valid samples of a dataset."""

    model_types: ClassVar[tuple[str, ...]]  # of initial checkpoints

    def __init__(self, arguments: TaskArguments, dataset: Dataset) -> None:
        self.arguments, self.dataset = arguments, dataset

    @abstractmethod
    def create_model(self, report: DatasetReport) -> InitialModel:
        """Create the initial model and its image processor."""

    @abstractmethod
    def augmentation(self) -> dict[str, Any]:
        """Return keyword arguments of `make_transform` for training."""

    def mix(self) -> Mix | None:
        """Return an augmentation of whole batches, None for no such."""
        return None

    @abstractmethod
    def loss_function(self, report: DatasetReport, device: torch.device) -> LossFunction:
        """Return the loss of a model on a batch."""

    def update_config(self, model: PreTrainedModel, result: EvaluationResult) -> None:
        """Store results of the evaluation in the model's configuration."""
        return

    def _common_augmentation(self) -> dict[str, Any]:
        return {name: getattr(self.arguments, name) for name in ("horizontal_flip", "vertical_flip", "color_jitter")}

    def _class_weights(self, report: DatasetReport, device: torch.device) -> Tensor | None:
        """Return the class weights of the loss (K,), None for equal ones."""
        kind = self.arguments.class_weights
        if kind == "none":
            return None
        weights = balanced_weights([report.counts["train"][name] for name in self.dataset.classes])
        return (weights.sqrt() if kind == "sqrt" else weights).to(device)


class ClassificationTask(TrainingTask):
    """Image classification with cross-entropy loss."""

    model_types = CLASSIFIER_TYPES

    def create_model(self, report: DatasetReport) -> InitialModel:
        """Create a classifier whose input size is at most the median image size."""
        return create_classifier(self.arguments, self.dataset.classes, image_side(report))

    def augmentation(self) -> dict[str, Any]:
        """Return crops, flips, color jitter, RandAugment and random erasing."""
        a = self.arguments
        own = {"crop_scale": (a.crop_scale, 1.0), "rand_augment": a.rand_augment, "random_erasing": a.random_erasing}
        return self._common_augmentation() | own

    def mix(self) -> Mix | None:
        """Return MixUp and CutMix, None if both are disabled."""
        return make_mix(len(self.dataset.classes), self.arguments.mixup, self.arguments.cutmix)

    def loss_function(self, report: DatasetReport, device: torch.device) -> LossFunction:
        """Return cross-entropy with label smoothing and optional class weights."""
        weights, smoothing = self._class_weights(report, device), self.arguments.label_smoothing_factor

        def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
            logits = model(pixel_values=batch["pixel_values"]).logits.float()
            return F.cross_entropy(logits, batch["labels"], weight=weights, label_smoothing=smoothing)

        return loss


class DetectionTask(TrainingTask):
    """Object detection with SSD's loss."""

    model_types = DETECTOR_TYPES

    def create_model(self, report: DatasetReport) -> InitialModel:
        """Create a detector with anchors fitted to the training boxes."""
        train = self.dataset.splits["train"]
        return create_detector(self.arguments, self.dataset.classes, train if isinstance(train, Sequence) else None)

    def augmentation(self) -> dict[str, Any]:
        """Return SSD's augmentation."""
        return self._common_augmentation() | {name: getattr(self.arguments, name) for name in ("zoom_out", "crop")}

    def loss_function(self, report: DatasetReport, device: torch.device) -> LossFunction:
        """Return the model's own loss and its parts, `loss_ce` and `loss_bbox`."""

        def loss(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
            outputs = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
            return {"loss": outputs.loss, **outputs.loss_dict}

        return loss

    def update_config(self, model: PreTrainedModel, result: EvaluationResult) -> None:
        """Store the selected threshold, with the highest F1, as the recommended one."""
        if result.recommended_threshold:
            model.config.recommended_threshold = result.recommended_threshold.value


class SegmentationTask(TrainingTask):
    """Semantic segmentation with cross-entropy or focal loss, and optionally Dice loss."""

    model_types = CLASSIFIER_TYPES

    def create_model(self, report: DatasetReport) -> InitialModel:
        """Create a segmentation model whose input size is at most the median image size."""
        return create_segmenter(self.arguments, self.dataset.classes, image_side(report))

    def augmentation(self) -> dict[str, Any]:
        """Return crops at several scales, flips and color jitter."""
        return self._common_augmentation() | {"scale_jitter": (self.arguments.min_scale, self.arguments.max_scale)}

    def loss_function(self, report: DatasetReport, device: torch.device) -> LossFunction:
        """Return the loss at the resolution of the labels; class weights are by number of pixels."""
        compute = SegmentationLoss(
            class_weights=self._class_weights(report, device),
            label_smoothing=self.arguments.label_smoothing_factor,
            focal_gamma=self.arguments.focal_gamma,
            dice_weight=self.arguments.dice_weight,
        )

        def loss(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
            return compute(model(pixel_values=batch["pixel_values"]).logits, batch["labels"])

        return loss


TRAINING_TASKS: dict[TaskName, type[TrainingTask]] = {
    "image-classification": ClassificationTask,
    "object-detection": DetectionTask,
    "image-segmentation": SegmentationTask,
}


def image_side(report: DatasetReport) -> float | None:
    """Return the shorter of the median width and height of the images in pixels; None if none was decoded."""
    return min(report.widths.median, report.heights.median) if report.widths and report.heights else None


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Return class weights inversely proportional to class frequency, with mean 1 over the samples or pixels.

    Args:
        counts: (K,) number of samples or pixels by class; an empty class gets weight 0.
    """
    numbers = torch.tensor(counts, dtype=torch.float32)
    present = numbers > 0
    return torch.where(present, numbers.sum() / (present.sum() * numbers.clamp(min=1)), 0.0)
