"""COCO mean average precision of detected boxes, as a metric module for `evaluate`.

`evaluate.load` copies this file out of the package, so it has no relative imports.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from mobilevit_hf.metrics import base
from mobilevit_hf.metrics.class_names import class_names

_DESCRIPTION = """\
Average precision and recall of detected boxes as defined by the COCO challenge, averaged over classes and IoU
thresholds. The values equal those of pycocotools.
"""

_CITATION = """\
@inproceedings{lin2014microsoft,
  title={Microsoft {COCO}: Common Objects in Context},
  author={Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro and Ramanan, Deva
          and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  booktitle={European Conference on Computer Vision},
  year={2014}
}
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions: One dict per image, as returned by `post_process_object_detection` of an image processor: `boxes`
        (n, 4), (x1, y1, x2, y2) in pixels; `scores` (n,), finite; `labels` (n,), class indices from 0. COCO counts
        the 100 highest scores per class and image.
    references: One dict per image: `boxes` (m, 4), (x1, y1, x2, y2) in the same pixels; `labels` (m,); optionally
        `iscrowd` (m,), 1 for a box around a group of objects, which is ignored (default: 0); `area` (m,) in pixels²,
        which assigns objects to the size ranges (default: area of the box).
    id2label: Class names by index for `per_class`; argument of `compute`, optional. The index is appended to names
        that several classes share.

    Arrays, tensors on any device and lists are accepted; they are empty for images without objects. Other keys are
    ignored.

Returns:
    A dict of values in 0..1, or -1 without references, as in COCO:
    `map`, `map_50`, `map_75`: average precision at IoU 0.50, 0.55 .. 0.95; at 0.50; at 0.75.
    `map_small`, `map_medium`, `map_large`: `map` of areas up to 32², from 32² to 96², and above 96².
    `mar_1`, `mar_10`, `mar_100`: average recall with 1, 10 and 100 detections per class and image.
    `mar_small`, `mar_medium`, `mar_large`: `mar_100` by area.
    `per_class`: `map` of each class in references or predictions, by name, or by index without `id2label`.

Raises:
    ValueError: If the numbers of predictions and references differ, a key is missing, lengths differ, a box is not
        (x1, y1, x2, y2), a value is not finite, or a class has no name in `id2label`.
"""

STATISTICS = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
)

# Key here → key in COCO's annotations.
COCO_KEYS = {"labels": "category_id", "scores": "score", "iscrowd": "iscrowd", "area": "area"}


class CocoMap(base.ConvertingMetric):
    """COCO mean average precision; see `inputs_description` for arguments and results."""

    def _info(self) -> evaluate.MetricInfo:
        boxes = datasets.List(datasets.List(datasets.Value("float64"), length=4))
        integers, numbers = datasets.List(datasets.Value("int64")), datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                predictions={"boxes": boxes, "labels": integers, "scores": numbers},
                references={"boxes": boxes, "labels": integers, "iscrowd": integers, "area": numbers},
            ),
            reference_urls=["https://cocodataset.org/#detection-eval"],
        )

    def _convert(self, predictions: Any, references: Any) -> tuple[list[Any], list[Any]]:
        base.check_counts(predictions, references)
        return (
            [_read_prediction(f"predictions[{i}]", image) for i, image in enumerate(predictions)],
            [_read_reference(f"references[{i}]", image) for i, image in enumerate(references)],
        )

    def _compute(  # ty: ignore[incompatible-method-override]  # evaluate passes the arguments of `compute` on by name
        self,
        *,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        id2label: Mapping[int, str] | None = None,
    ) -> dict[str, Any]:
        classes = sorted({label for image in [*predictions, *references] for label in image["labels"]})
        names = class_names(classes, id2label)
        evaluation = COCOeval_faster(_to_coco(references, classes), _to_coco(predictions, classes), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        # (IoU thresholds, recalls, classes, areas, detection limits); all -1 for a class without references.
        precision = evaluation.eval["precision"][..., 0, -1].mean(axis=(0, 1))
        return {
            **dict(zip(STATISTICS, map(float, evaluation.stats), strict=True)),
            "per_class": dict(zip(names, map(float, precision), strict=True)),
        }


def _read_prediction(where: str, image: Any) -> dict[str, list[Any]]:
    """Return the validated detections of an image as lists, as declared in `features`."""
    boxes, labels = _read_objects(where, image, ["boxes", "labels", "scores"])
    scores = _read_numbers(f"{where}['scores']", image["scores"], len(boxes))
    return {"boxes": boxes.tolist(), "labels": labels.tolist(), "scores": scores.tolist()}


def _read_reference(where: str, image: Any) -> dict[str, list[Any]]:
    """Return the validated references of an image as lists, with default values, as declared in `features`."""
    boxes, labels = _read_objects(where, image, ["boxes", "labels"])
    widths_heights = boxes[:, 2:] - boxes[:, :2]
    iscrowd = _read_integers(f"{where}['iscrowd']", image.get("iscrowd", np.zeros(len(boxes))), len(boxes))
    area = _read_numbers(f"{where}['area']", image.get("area", widths_heights.prod(axis=1)), len(boxes))
    return {"boxes": boxes.tolist(), "labels": labels.tolist(), "iscrowd": iscrowd.tolist(), "area": area.tolist()}


def _read_objects(where: str, image: Any, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return `boxes` (n, 4) and `labels` (n,) of an image after checking that it has all `keys`."""
    if not isinstance(image, Mapping) or not set(keys) <= set(image):
        got = f"the keys {sorted(image)}" if isinstance(image, Mapping) else type(image).__name__
        raise ValueError(f"{where}: got {got}, expected a dict with {', '.join(keys)}.")
    boxes = _to_array(f"{where}['boxes']", image["boxes"])
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}['boxes']: got shape {boxes.shape}, expected (n, 4).")
    invalid = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    if len(invalid):
        raise ValueError(
            f"{where}['boxes']: got {boxes[invalid[0]].tolist()}, expected (x1, y1, x2, y2) with x1 ≤ x2 and y1 ≤ y2. "
            "Convert other formats with torchvision.ops.box_convert."
        )
    return boxes, _read_integers(f"{where}['labels']", image["labels"], len(boxes))


def _read_integers(where: str, values: Any, count: int) -> np.ndarray:
    """Return non-negative integers as (count,) int64."""
    values = _read_numbers(where, values, count)
    if (values != np.floor(values)).any() or (values < 0).any():
        raise ValueError(f"{where}: got {values.tolist()}, expected integers from 0.")
    return values.astype(np.int64)


def _read_numbers(where: str, values: Any, count: int) -> np.ndarray:
    """Return numbers as (count,) float64."""
    values = _to_array(where, values)
    if values.shape != (count,):
        raise ValueError(f"{where}: got shape {values.shape}, expected ({count},), one value per box.")
    return values


def _to_array(where: str, values: Any) -> np.ndarray:
    """Convert an array, a tensor or a list to finite float64, which is exact for all input types."""
    try:
        values = np.asarray(base.from_tensor(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: not an array of numbers: {error}") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: got values that are not finite. Check the model and the annotations.")
    return values


def _to_coco(images: Sequence[Mapping[str, Any]], classes: Sequence[int]) -> COCO:
    """Convert images to a COCO dataset."""
    annotations = []
    for image_id, image in enumerate(images):
        for i, (x1, y1, x2, y2) in enumerate(image["boxes"]):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            fields = {key: image[name][i] for name, key in COCO_KEYS.items() if name in image}
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **box, **fields})
    image_ids, categories = [{"id": i} for i in range(len(images))], [{"id": label} for label in classes]
    return COCO({"images": image_ids, "annotations": annotations, "categories": categories})
