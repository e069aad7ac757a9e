"""Metrics of semantic segmentation, from counts of the pixels of each target and predicted class."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F
from transformers import BaseImageProcessor

from ..data.types import IGNORE_INDEX
from ..metrics.mean_iou.mean_iou import class_iou, count_pairs, mean_iou_of_confusion
from .boundaries import count_boundaries
from .confidence_intervals import bootstrap_interval, chunk_sizes
from .inference import Prepared
from .predictions import CompressedLabelMap, SegmentedImage
from .task_metrics import Intervals, TaskMetrics

NUM_SHOWN = 12  # images with the lowest, and with the highest mean IoU, whose label maps are kept
UNLABELED = -1  # pixels to ignore among the model's classes, of which there may be more than `IGNORE_INDEX`


class LabelMaps(NamedTuple):
    """Label maps of an image at the resolution of its mask.

    Attributes:
        prediction: (H, W) int64 class indices of the model.
        target: (H, W) int64 class indices of the model, `UNLABELED` for pixels to ignore.
        logits: (K, height, width) of the model, None for no loss.
    """

    prediction: np.ndarray
    target: np.ndarray
    logits: Tensor | None = None

    def loss(self) -> float:
        """Return the sum of the cross-entropy over the labeled pixels.

        The logits are resized once more: kept, those of a batch take gigabytes with many classes and large masks.
        """
        if self.logits is None:
            return 0.0
        labels = torch.from_numpy(self.target)[None].to(self.logits.device)
        resized = resize_logits(self.logits, self.target.shape).float()
        return F.cross_entropy(resized, labels, ignore_index=UNLABELED, reduction="sum").item()


class SegmentationMetrics(TaskMetrics):
    """Mean IoU, pixel accuracy, mean Dice and boundary IoU, and IoU, Dice and accuracy per class."""

    state: list[SegmentedImage]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_classes = len(self.id2label)
        self.class_indices = np.full(IGNORE_INDEX + 1, UNLABELED, dtype=np.int64)
        self.class_indices[: len(self.targets)] = self.targets
        self.state = []
        self.num_label_maps = 0

    def postprocess(self, outputs: Any, group: Sequence[Prepared]) -> list[LabelMaps]:
        """Return the label maps of each image, as `post_process_semantic_segmentation` with the masks' sizes."""
        return [self._resize(logits, prepared) for logits, prepared in zip(outputs.logits, group, strict=True)]

    def _resize(self, logits: Tensor, prepared: Prepared) -> LabelMaps:
        """Logits (K, height, width) → label maps at the resolution of the mask."""
        target = self._target(prepared)
        return LabelMaps(resize_logits(logits, target.shape)[0].argmax(dim=0).cpu().numpy(), target, logits)

    def _target(self, prepared: Prepared) -> np.ndarray:
        name, mask = prepared.sample.name, prepared.mask
        if mask is None:
            raise ValueError(
                f"{name}: got no mask, expected one. Use a segmentation dataset with a segmentation model."
            )
        highest = int(mask.max(initial=0, where=mask != IGNORE_INDEX))
        if highest >= len(self.targets):
            raise ValueError(
                f"{name}: got value {highest} in its mask, expected 0..{len(self.targets) - 1} or {IGNORE_INDEX}. "
                "Correct the mask, or name all classes."
            )
        return self.class_indices[mask]

    def update(self, predictions: Sequence[LabelMaps], group: Sequence[Prepared]) -> None:
        """Count the pixels of a group of images."""
        for maps, prepared in zip(predictions, group, strict=True):
            is_labeled = maps.target != UNLABELED
            predicted, target, pixels = count_pairs(maps.prediction[is_labeled], maps.target[is_labeled])
            image = SegmentedImage(
                index=prepared.index,
                name=prepared.sample.name,
                size=(maps.target.shape[0], maps.target.shape[1]),
                num_classes=self.num_classes,
                cells=target * self.num_classes + predicted,
                pixels=pixels,
                boundaries=count_boundaries(maps.prediction, maps.target, self.num_classes),
                loss=maps.loss(),
                label_maps=_compress(maps) if len(pixels) else None,
            )
            self.state.append(image)
            self.num_label_maps += image.label_maps is not None
        if self.num_label_maps > 4 * NUM_SHOWN:
            self.state = _drop_label_maps(self.state)
            self.num_label_maps = 2 * NUM_SHOWN

    def merge(self, states: Iterable[list[SegmentedImage]]) -> None:
        """Concatenate the images of all processes in the order of the samples."""
        self.state = self.images = _drop_label_maps(sorted(chain(*states), key=attrgetter("index")))

    def confusion_matrix(self) -> np.ndarray:
        """Return the number of pixels (K, K), int64, by target class (rows) and predicted class (columns)."""
        confusion = np.zeros(self.num_classes**2, dtype=np.int64)
        for image in self.images:
            confusion[image.cells] += image.pixels
        return confusion.reshape(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Any]:
        """Compute the metrics of `MeanIoU`, Dice and the boundary IoU.

        Raises:
            ValueError: If no pixel is labeled.
        """
        confusion = self.confusion_matrix()
        classes = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
        if not len(classes):
            raise ValueError(
                f"masks: got no labeled pixel in {len(self.images)} images, expected some. Choose other images."
            )
        scores = mean_iou_of_confusion(confusion[np.ix_(classes, classes)], classes.tolist(), self.id2label)
        per_class = {
            name: {"iou": row["iou"], "dice": 2 * row["iou"] / (1 + row["iou"]), **row}
            for name, row in scores["per_class"].items()
        }
        return {
            "mean_iou": scores["mean_iou"],
            "pixel_accuracy": scores["overall_accuracy"],
            "mean_dice": float(np.mean([row["dice"] for row in per_class.values()])),
            "boundary_iou": float(np.nanmean(class_iou(*np.sum([i.boundaries for i in self.images], axis=0)))),
            "per_class": per_class,
        }

    def confidence_intervals(self, metrics: Mapping[str, Any], resamples: int, generator: Generator) -> Intervals:
        """Compute the intervals by resampling the images, whose counts are summed: pixels of an image are alike."""
        if not resamples:
            return {}
        count = len(self.images)
        pixels = np.array([image.class_pixels for image in self.images]).reshape(count, -1)
        boundaries = np.array([image.boundaries for image in self.images]).reshape(count, -1)
        values: dict[str, list[np.ndarray]] = {name: [] for name in metrics if name != "per_class"}
        for size in chunk_sizes(resamples, max(count, 3 * self.num_classes)):
            # In float64, sums of integers are exact up to 2^53 and matrix products are fast.
            weights = generator.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
            correct, predicted, targets = _split_columns(weights @ pixels)
            ious = class_iou(correct, predicted, targets)
            values["mean_iou"].append(_mean_over_classes(ious))
            values["pixel_accuracy"].append(_divide(correct.sum(axis=1), targets.sum(axis=1)))
            values["mean_dice"].append(_mean_over_classes(2 * ious / (1 + ious)))
            values["boundary_iou"].append(_mean_over_classes(class_iou(*_split_columns(weights @ boundaries))))
        return {
            name: bootstrap_interval(np.concatenate(resampled), metrics[name], count)
            for name, resampled in values.items()
        }

    def predictions(self) -> list[SegmentedImage]:
        """Return the counts of each image."""
        return self.images

    def losses(self) -> dict[str, float]:
        """Return the mean cross-entropy over the labeled pixels of all images."""
        labeled = sum(int(image.pixels.sum()) for image in self.images)
        return {"loss": sum(image.loss for image in self.images) / labeled} if labeled else {}


def resize_logits(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Logits (K, height, width) → (1, K, *size), as `post_process_semantic_segmentation` of image processors."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)


def take_whole_images(processor: BaseImageProcessor) -> tuple[BaseImageProcessor, list[str]]:
    """Return an image processor for the paper's measurement of label maps, and notes for the user.

    Of an image processor that crops images to their center, as those of Apple's checkpoints, the label map is that of
    the crop, which transformers stretches over the image: it does not match the mask. The paper resizes whole images
    to the size of the crop; so does a copy of the image processor. Others are returned as they are.
    """
    source: Any = processor
    if not getattr(source, "do_center_crop", False):
        return processor, []
    height, width = source.crop_size["height"], source.crop_size["width"]
    whole = copy.copy(source)
    whole.do_center_crop, whole.size = False, type(source.size)(height=height, width=width)
    return whole, [
        f"Measured on whole images resized to {width}x{height}, as in the paper: the model's image processor crops "
        "images to their center, and the pipeline stretches the crop's masks over the image."
    ]


def _compress(maps: LabelMaps) -> tuple[CompressedLabelMap, CompressedLabelMap]:
    return CompressedLabelMap.from_array(maps.target), CompressedLabelMap.from_array(maps.prediction)


def _drop_label_maps(images: Sequence[SegmentedImage]) -> list[SegmentedImage]:
    """Return the images without label maps but those with the lowest and the highest mean IoU."""
    ranked = sorted((image.mean_iou, image.index) for image in images if image.label_maps is not None)
    shown = {index for _, index in ranked[:NUM_SHOWN] + ranked[-NUM_SHOWN:]}
    return [
        image if image.label_maps is None or image.index in shown else dataclasses.replace(image, label_maps=None)
        for image in images
    ]


def _split_columns(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R, 3 * K) → three arrays (R, K): correct, predicted and target pixels."""
    correct, predicted, targets = np.split(values, 3, axis=1)
    return correct, predicted, targets


def _mean_over_classes(values: np.ndarray) -> np.ndarray:
    """(R, K), NaN for absent classes → means (R,), NaN without any class."""
    return _divide(np.nansum(values, axis=1), (~np.isnan(values)).sum(axis=1))


def _divide(numerators: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the quotients (R,), NaN for a count of 0."""
    return np.divide(numerators, counts, where=counts > 0, out=np.full(counts.shape, np.nan))
