"""Mean intersection over union of predicted label maps, as a module for `evaluate`.

This file stands alone: `evaluate.load` copies it out of the package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from mobilevit_hf.metrics.class_names import class_names

_DESCRIPTION = """\
How well predicted label maps cover the right ones: for each class the pixels that both give it, divided by those that
either does, of all images together; and the mean of the classes.
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
    predictions: For each image a label map (H, W) of class indices from 0, as an image processor's
        `post_process_semantic_segmentation` returns it. Images may differ in size.
    references: For each image the right label map, of the same size as the prediction.
    ignore_index: At `compute` only: pixels that a reference gives this label are left out. Default: 255. None leaves
        out none.
    num_labels: At `compute` only, optional: the number of classes. With it, other labels are an error.
    id2label: At `compute` only, optional: names of the classes by index, for `per_class`. Where classes share a name,
        each gets its index behind it.

    Arrays, tensors on any device, PIL images in mode L or P and lists are taken alike.

Returns:
    A dict of numbers in 0..1, the same as those of evaluate's own `mean_iou`:
    `mean_iou`: the mean over the classes that occur in references or predictions.
    `mean_accuracy`: the mean of `accuracy` over the classes that occur in references.
    `overall_accuracy`: how many pixels are right.
    `per_class`: for each class that occurs in references or predictions, by name, or by index without `id2label`, a
        dict of `iou`, `accuracy` (how many of the references' pixels are found; 0 where there are none) and `pixels`,
        the number of the references' pixels.

Raises:
    ValueError: If there are not as many predictions as references, a map is not (H, W) or not of integers, two differ
        in size, no pixel is left to measure, a label is out of range, or a class has no name in `id2label`.
"""


class MeanIoU(evaluate.Metric):
    """Mean intersection over union. `inputs_description` says what goes in and what comes out.

    Label maps are not kept: the cache has, for each image, the pairs of labels that occur and how often they do.
    """

    name = "mean_iou"  # evaluate would make "mean_io_u" of the class's name

    def _info(self) -> evaluate.MetricInfo:
        integers = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": {"labels": integers, "pixels": integers}, "references": integers}
            ),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one image."""
        example = {"predictions": prediction, "references": reference, **kwargs}
        self.add_batch(**{name: [value] for name, value in example.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add images."""
        counts = [0 if batch is None else len(batch) for batch in (predictions, references)]
        if counts[0] != counts[1]:
            raise ValueError(f"got {counts[0]} predictions and {counts[1]} references. Give one of each per image.")
        pairs = [_count_pairs(i, *maps) for i, maps in enumerate(zip(predictions, references, strict=True))]
        super().add_batch(
            predictions=[{"labels": labels, "pixels": pixels} for labels, _, pixels in pairs],
            references=[labels for _, labels, _ in pairs],
            **kwargs,
        )

    def _compute(
        self,
        *,
        predictions: Sequence[Mapping[str, Sequence[int]]],
        references: Sequence[Sequence[int]],
        ignore_index: int | None = 255,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
    ) -> dict[str, Any]:
        # One column for each pair: predicted label, right label, pixels.
        pairs = np.array(
            [
                pair
                for prediction, labels in zip(predictions, references, strict=True)
                for pair in zip(prediction["labels"], labels, prediction["pixels"], strict=True)
            ],
            dtype=np.int64,
        ).reshape(-1, 3)
        pairs = pairs[pairs[:, 1] != ignore_index].T
        if not pairs.size:
            raise ValueError(f"got no pixel to measure: every reference is ignore_index, {ignore_index}, or empty.")
        classes, places = np.unique(pairs[:2], return_inverse=True)
        if classes[0] < 0 or (num_labels is not None and classes[-1] >= num_labels):
            expected = "0 and above" if num_labels is None else f"0..{num_labels - 1}"
            raise ValueError(
                f"got labels {classes.tolist()}, expected {expected}. References mark pixels to leave out by "
                f"ignore_index, here {ignore_index}."
            )
        confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
        np.add.at(confusion, tuple(places.reshape(2, -1)), pairs[2])
        right, predicted, pixels = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        columns = {
            "iou": right / (predicted + pixels - right),
            "accuracy": right / np.maximum(pixels, 1),
            "pixels": pixels,
        }
        names = class_names(classes.tolist(), id2label)
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return {
            "mean_iou": float(columns["iou"].mean()),
            "mean_accuracy": float(columns["accuracy"][pixels > 0].mean()),
            "overall_accuracy": float(right.sum() / pixels.sum()),
            "per_class": {name: dict(zip(columns, row, strict=True)) for name, row in zip(names, rows, strict=True)},
        }


def _count_pairs(index: int, prediction: Any, reference: Any) -> tuple[list[int], list[int], list[int]]:
    """Two label maps of an image → predicted label, right label and number of pixels of each pair that occurs."""
    prediction = _to_label_map(f"predictions[{index}]", prediction)
    reference = _to_label_map(f"references[{index}]", reference)
    if prediction.shape != reference.shape:
        raise ValueError(
            f"predictions[{index}] has shape {prediction.shape} and references[{index}] {reference.shape}, expected "
            "the same. `post_process_semantic_segmentation` takes the references' sizes as target_sizes."
        )
    if (prediction < 0).any():
        raise ValueError(f"predictions[{index}]: got label {prediction.min()}, expected 0 and above.")
    # A pair becomes one number, which is quicker to sort.
    span = prediction.max(initial=0) + 1
    pairs, pixels = np.unique(reference * span + prediction, return_counts=True)
    return (pairs % span).tolist(), (pairs // span).tolist(), pixels.tolist()


def _to_label_map(where: str, values: Any) -> np.ndarray:
    """An array, a tensor, an image or a list → (H, W) int64."""
    values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise ValueError(
            f"{where}: got shape {values.shape} of {values.dtype}, expected an (H, W) label map of integers."
        )
    return values.astype(np.int64)
