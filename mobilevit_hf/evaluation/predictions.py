"""Predictions of the evaluated images."""

import zlib
from dataclasses import dataclass

import numpy as np

from ..metrics.mean_iou.mean_iou import class_iou
from .matcher import Matches


@dataclass(frozen=True)
class ClassifiedImages:
    """Predictions of a classifier: one row per image, in the order of the samples.

    Attributes:
        indices: (N,) int64 index of the sample.
        names: Name of each sample.
        targets, predictions: (N,) int64 target and predicted class, as the model's class index.
        scores, target_scores: (N,) float32 probability of the predicted and of the target class, 0..1.
    """

    indices: np.ndarray
    names: list[str]
    targets: np.ndarray
    predictions: np.ndarray
    scores: np.ndarray
    target_scores: np.ndarray


@dataclass(frozen=True)
class DetectedImage:
    """Detections and objects of an image.

    Attributes:
        index, name: Index and name of the sample.
        size: Height and width in pixels.
        boxes: (n, 4) float32 (x1, y1, x2, y2) in pixels, in the order of `matches.scores`: by class and descending
            score.
        matches: Scores and classes of the detections, classes of the objects, and their matches.
        object_boxes: (m, 4) float32 in the same format, in the order of `matches.objects`.
        is_crowd: (m,) whether an object is a crowd.
    """

    index: int
    name: str
    size: tuple[int, int]
    boxes: np.ndarray
    matches: Matches
    object_boxes: np.ndarray
    is_crowd: np.ndarray


MAX_LABEL_MAP_SIDE = 720  # of a label map that is kept, in pixels: that of the photos in reports


@dataclass(frozen=True)
class CompressedLabelMap:
    """A label map, reduced to at most `MAX_LABEL_MAP_SIDE` pixels: some kilobytes."""

    shape: tuple[int, int]
    data: bytes

    @classmethod
    def from_array(cls, labels: np.ndarray) -> "CompressedLabelMap":
        """Compress class indices (H, W) below 65535; negative ones, of pixels to ignore, become 65535."""
        scale = min(1, MAX_LABEL_MAP_SIDE / max(labels.shape))
        rows, columns = (
            ((np.arange(max(1, round(scale * side))) + 0.5) * side / max(1, round(scale * side))).astype(int)
            for side in labels.shape
        )
        reduced = labels[np.ix_(rows, columns)].astype(np.uint16)
        return cls((len(rows), len(columns)), zlib.compress(reduced.tobytes(), level=1))

    def to_array(self) -> np.ndarray:
        """Return the class indices (H, W) uint16."""
        return np.frombuffer(zlib.decompress(self.data), dtype=np.uint16).reshape(self.shape)


@dataclass(frozen=True)
class SegmentedImage:
    """Counts of an image's pixels, without those to ignore. Label maps are kept of a few images only.

    Attributes:
        index, name: Index and name of the sample.
        size: Height and width of the mask in pixels.
        num_classes: Number of classes K of the model.
        cells: (n,) int64 cells of the confusion matrix with at least one pixel: target class times K plus predicted
            class.
        pixels: (n,) int64 number of pixels of each.
        boundaries: (3, K) int64 boundary pixels of each class: see `count_boundaries`.
        loss: Sum of the cross-entropy over the pixels.
        label_maps: Target and predicted label map of the images with the lowest and the highest mean IoU, None for
            others.
    """

    index: int
    name: str
    size: tuple[int, int]
    num_classes: int
    cells: np.ndarray
    pixels: np.ndarray
    boundaries: np.ndarray
    loss: float = 0.0
    label_maps: tuple[CompressedLabelMap, CompressedLabelMap] | None = None

    @property
    def confusion(self) -> np.ndarray:
        """(K, K) int64 number of pixels by target class (rows) and predicted class (columns)."""
        confusion = np.zeros(self.num_classes**2, dtype=np.int64)
        confusion[self.cells] = self.pixels
        return confusion.reshape(self.num_classes, self.num_classes)

    @property
    def class_pixels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(K,) numbers of correct, predicted and target pixels of each class."""
        target, predicted = np.divmod(self.cells, self.num_classes)
        correct, all_predicted, targets = (
            np.bincount(labels, weights, minlength=self.num_classes).astype(np.int64)
            for labels, weights in (
                (target, self.pixels * (target == predicted)),
                (predicted, self.pixels),
                (target, self.pixels),
            )
        )
        return correct, all_predicted, targets

    @property
    def most_frequent_confusion(self) -> tuple[int, int, float] | None:
        """Target class, predicted class and fraction of the pixels; None if no pixel is wrong."""
        target, predicted = np.divmod(self.cells, self.num_classes)
        wrong = np.where(target != predicted, self.pixels, 0)
        if not wrong.any():
            return None
        worst = int(wrong.argmax())
        return int(target[worst]), int(predicted[worst]), float(wrong[worst] / self.pixels.sum())

    @property
    def ious(self) -> np.ndarray:
        """(K,) IoU of each class, NaN for a class that is neither in the mask nor predicted."""
        return class_iou(*self.class_pixels)

    @property
    def mean_iou(self) -> float:
        """Mean of `ious` over the classes in the mask or the prediction, NaN without labeled pixels."""
        return float(np.nanmean(self.ious)) if len(self.pixels) else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of correct pixels, NaN without labeled pixels."""
        correct, _, targets = self.class_pixels
        return float(correct.sum() / targets.sum()) if len(self.pixels) else float("nan")
