"""Mean intersection over union of predicted label maps, as a metric module for `evaluate`.

`evaluate.load` copies this file out of the package, so it has no relative imports.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from mobilevit_hf.metrics import base
from mobilevit_hf.metrics.class_names import per_class_table

_DESCRIPTION = """\
Intersection over union of predicted and ground truth label maps, per class over the pixels of all images, and its
mean over the classes.
"""

_CITATION = """\
@article{everingham2010pascal,
  title={The {PASCAL} Visual Object Classes ({VOC}) Challenge},
  author={Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and Winn, John and Zisserman, Andrew},
  journal={International Journal of Computer Vision},
  year={2010}
}
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions: One label map (H, W) of class indices from 0 per image, as returned by
        `post_process_semantic_segmentation` of an image processor. Images may differ in size.
    references: One ground truth label map per image, of the same size as the prediction.
    ignore_index: Label of reference pixels to ignore; argument of `compute`. Default: 255. None ignores no pixel.
    num_labels: Number of classes; argument of `compute`, optional. If set, labels out of range are an error.
    id2label: Class names by index for `per_class`; argument of `compute`, optional. The index is appended to names
        that several classes share.

    Arrays, tensors on any device, PIL images in mode L or P and lists are accepted.

Returns:
    A dict of values in 0..1, equal to those of `mean_iou` of evaluate:
    `mean_iou`: mean over the classes in references or predictions.
    `mean_accuracy`: mean of `accuracy` over the classes in references.
    `overall_accuracy`: fraction of correct pixels.
    `per_class`: for each class in references or predictions, by name, or by index without `id2label`, a dict of
        `iou`, `accuracy` (fraction of its reference pixels that are predicted correctly; 0 without reference pixels)
        and `pixels` (number of its reference pixels).

Raises:
    ValueError: If the numbers of predictions and references differ, a map is not (H, W) or not of integers, the
        sizes of a pair differ, all pixels are ignored, a label is out of range, or a class has no name in `id2label`.
"""

MAX_BINS = 2**20  # counting pairs of labels is 10 times faster in bins than by sorting


class MeanIoU(base.ConvertingMetric):
    """Mean intersection over union; see `inputs_description` for arguments and results.

    The cache holds the confusion counts of each image instead of its label maps.
    """

    name = "mean_iou"  # evaluate derives "mean_io_u" from the class name

    def _info(self) -> evaluate.MetricInfo:
        integers = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(predictions={"labels": integers, "pixels": integers}, references=integers),
        )

    def _convert(self, predictions: Any, references: Any) -> tuple[list[Any], list[Any]]:
        base.check_counts(predictions, references)
        pairs = [_count_image(i, *maps) for i, maps in enumerate(zip(predictions, references, strict=True))]
        predictions = [{"labels": labels, "pixels": pixels} for labels, _, pixels in pairs]
        return predictions, [labels for _, labels, _ in pairs]

    def _compute(  # ty: ignore[incompatible-method-override]  # evaluate passes the arguments of `compute` on by name
        self,
        *,
        predictions: Sequence[Mapping[str, Sequence[int]]],
        references: Sequence[Sequence[int]],
        ignore_index: int | None = 255,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
    ) -> dict[str, Any]:
        per_image = ([p["labels"] for p in predictions], references, [p["pixels"] for p in predictions])
        pairs = np.array([list(itertools.chain(*values)) for values in per_image], dtype=np.int64)
        pairs = pairs[:, pairs[1] != ignore_index]  # (3, pairs): predicted label, target label, pixels
        if not pairs.size:
            raise ValueError(f"references: got no pixel other than ignore_index, {ignore_index}. Add labeled images.")
        classes, indices = np.unique(pairs[:2], return_inverse=True)
        if classes[0] < 0 or (num_labels is not None and classes[-1] >= num_labels):
            expected = "0 and above" if num_labels is None else f"0..{num_labels - 1}"
            raise ValueError(
                f"got labels {classes.tolist()}, expected {expected}. Mark reference pixels to ignore with "
                f"ignore_index, here {ignore_index}."
            )
        confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
        np.add.at(confusion, tuple(indices.reshape(2, -1)[::-1]), pairs[2])
        return mean_iou_of_confusion(confusion, classes.tolist(), id2label)


def mean_iou_of_confusion(
    confusion: np.ndarray, classes: Sequence[int], id2label: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Return the metrics of `MeanIoU` from numbers of pixels.

    Args:
        confusion: (C, C) pixels by target class (rows) and predicted class (columns). Each class has at least one.
        classes: Index of each of the C classes.
        id2label: Class names by index.
    """
    correct, predicted, pixels = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    columns = {
        "iou": class_iou(correct, predicted, pixels),
        "accuracy": correct / np.maximum(pixels, 1),
        "pixels": pixels,
    }
    return {
        "mean_iou": float(columns["iou"].mean()),
        "mean_accuracy": float(columns["accuracy"][pixels > 0].mean()),
        "overall_accuracy": float(correct.sum() / pixels.sum()),
        "per_class": per_class_table(columns, classes, id2label),
    }


def count_pairs(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return predicted label, target label and number of pixels of each pair of labels of two integer maps (H, W).

    The predicted labels are 0 and above.
    """
    span = int(prediction.max(initial=0)) + 1
    pairs = reference.astype(np.int64).ravel() * span + prediction.ravel()
    low, high = (int(end) for end in (pairs.min(initial=0), pairs.max(initial=0)))
    if high - low < MAX_BINS:
        counts = np.bincount(pairs - low)
        bins = np.flatnonzero(counts)
        pairs, pixels = bins + low, counts[bins]
    else:
        pairs, pixels = np.unique(pairs, return_counts=True)
    return pairs % span, pairs // span, pixels


def class_iou(correct: np.ndarray, predicted: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the intersection over union from numbers of correct, predicted and target pixels; NaN without any."""
    union = predicted + pixels - correct
    return np.divide(correct, union, where=union > 0, out=np.full(union.shape, np.nan))


def _count_image(index: int, prediction: Any, reference: Any) -> tuple[list[int], list[int], list[int]]:
    """Return predicted label, target label and number of pixels of each pair of labels in an image."""
    prediction = _to_label_map(f"predictions[{index}]", prediction)
    reference = _to_label_map(f"references[{index}]", reference)
    if prediction.shape != reference.shape:
        raise ValueError(
            f"predictions[{index}] has shape {prediction.shape} and references[{index}] {reference.shape}, expected "
            "the same. Pass the references' sizes to post_process_semantic_segmentation as target_sizes."
        )
    if (prediction < 0).any():
        raise ValueError(f"predictions[{index}]: got label {prediction.min()}, expected 0 and above.")
    predicted, target, pixels = count_pairs(prediction, reference)
    return predicted.tolist(), target.tolist(), pixels.tolist()


def _to_label_map(where: str, values: Any) -> np.ndarray:
    """Convert an array, a tensor, an image or a list to (H, W) int64."""
    values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise ValueError(
            f"{where}: got shape {values.shape} of {values.dtype}, expected an (H, W) label map of integers."
        )
    return values.astype(np.int64)
