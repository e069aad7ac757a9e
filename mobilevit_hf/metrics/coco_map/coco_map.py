"""COCO's mean average precision of detected boxes, as a module for `evaluate`.

This file stands alone: `evaluate.load` copies it out of the package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from mobilevit_hf.metrics.class_names import class_names

_DESCRIPTION = """\
Average precision and recall of detected boxes as the COCO challenge defines them, averaged over classes and over
thresholds of overlap (IoU). The numbers are those of pycocotools.
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
    predictions: For each image a dict, as `post_process_object_detection` of an image processor returns it: `boxes`
        (n, 4), (x1, y1, x2, y2) in pixels; `scores` (n,), finite, higher is surer; `labels` (n,), class indices from
        0. COCO counts the best 100 of each class on an image.
    references: For each image a dict: `boxes` (m, 4), (x1, y1, x2, y2) in the same pixels; `labels` (m,); optionally
        `iscrowd` (m,), 1 for a box around a group, which is neither missed nor found, default 0; and `area` (m,) in
        pixels², which decides what is small, medium or large, default the area of the box.
    id2label: At `compute` only, optional: names of the classes by index, for `per_class`. Where classes share a name,
        each gets its index behind it.

    Arrays, tensors on any device and lists are taken alike. Images without objects have empty ones. Other keys are
    passed over.

Returns:
    A dict of numbers in 0..1, or -1 where there is no reference to find, as COCO has it:
    `map`, `map_50`, `map_75`: average precision at overlaps of 0.50, 0.55 .. 0.95; at 0.50; at 0.75.
    `map_small`, `map_medium`, `map_large`: `map` of areas up to 32², from there to 96², and from there on.
    `mar_1`, `mar_10`, `mar_100`: average recall with so many detections of a class on an image.
    `mar_small`, `mar_medium`, `mar_large`: `mar_100` of the same areas.
    `per_class`: `map` of each class that occurs in references or predictions, by name, or by index without `id2label`.

Raises:
    ValueError: If there are not as many predictions as references, a key is missing, lengths differ, a box is not
        (x1, y1, x2, y2), a number is not finite, or a class has no name in `id2label`.
"""

STATISTICS = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
)

# Ours → COCO's.
COCO_KEYS = {"labels": "category_id", "scores": "score", "iscrowd": "iscrowd", "area": "area"}


class CocoMap(evaluate.Metric):
    """COCO's mean average precision. `inputs_description` says what goes in and what comes out."""

    def _info(self) -> evaluate.MetricInfo:
        boxes = datasets.List(datasets.List(datasets.Value("float64"), length=4))
        integers, numbers = datasets.List(datasets.Value("int64")), datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": {"boxes": boxes, "labels": integers, "scores": numbers},
                    "references": {"boxes": boxes, "labels": integers, "iscrowd": integers, "area": numbers},
                }
            ),
            reference_urls=["https://cocodataset.org/#detection-eval"],
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
        super().add_batch(
            predictions=[_read_prediction(f"predictions[{i}]", value) for i, value in enumerate(predictions)],
            references=[_read_reference(f"references[{i}]", value) for i, value in enumerate(references)],
            **kwargs,
        )

    def _compute(
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
        # (thresholds, recalls, classes, areas, numbers of detections); a class without references is -1 throughout.
        precision = evaluation.eval["precision"][..., 0, -1].mean(axis=(0, 1))
        return {
            **dict(zip(STATISTICS, map(float, evaluation.stats), strict=True)),
            "per_class": dict(zip(names, map(float, precision), strict=True)),
        }


def _read_prediction(where: str, image: Any) -> dict[str, list[Any]]:
    """An image's detections, checked, as the lists that `features` asks for."""
    boxes, labels = _read_objects(where, image, ["boxes", "labels", "scores"])
    scores = _read_numbers(f"{where}['scores']", image["scores"], len(boxes))
    return {"boxes": boxes.tolist(), "labels": labels.tolist(), "scores": scores.tolist()}


def _read_reference(where: str, image: Any) -> dict[str, list[Any]]:
    """An image's references, checked and completed, as the lists that `features` asks for."""
    boxes, labels = _read_objects(where, image, ["boxes", "labels"])
    widths_heights = boxes[:, 2:] - boxes[:, :2]
    iscrowd = _read_integers(f"{where}['iscrowd']", image.get("iscrowd", np.zeros(len(boxes))), len(boxes))
    area = _read_numbers(f"{where}['area']", image.get("area", widths_heights.prod(axis=1)), len(boxes))
    return {
        "boxes": boxes.tolist(),
        "labels": labels.tolist(),
        "iscrowd": iscrowd.tolist(),
        "area": area.tolist(),
    }


def _read_objects(where: str, image: Any, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """`boxes` (n, 4) and `labels` (n,) of an image that has all `keys`."""
    if not isinstance(image, Mapping) or not set(keys) <= set(image):
        got = f"the keys {sorted(image)}" if isinstance(image, Mapping) else type(image).__name__
        raise ValueError(f"{where}: got {got}, expected a dict with {', '.join(keys)}.")
    boxes = _to_array(f"{where}['boxes']", image["boxes"])
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}['boxes']: got shape {boxes.shape}, expected (n, 4).")
    wrong = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"{where}['boxes']: got {boxes[wrong[0]].tolist()}, expected (x1, y1, x2, y2) with x1 ≤ x2 and y1 ≤ y2. "
            "Other formats are converted by torchvision.ops.box_convert."
        )
    return boxes, _read_integers(f"{where}['labels']", image["labels"], len(boxes))


def _read_integers(where: str, values: Any, count: int) -> np.ndarray:
    """(count,) int64, none below 0."""
    values = _read_numbers(where, values, count)
    if (values != np.floor(values)).any() or (values < 0).any():
        raise ValueError(f"{where}: got {values.tolist()}, expected integers from 0.")
    return values.astype(np.int64)


def _read_numbers(where: str, values: Any, count: int) -> np.ndarray:
    """(count,) float64."""
    values = _to_array(where, values)
    if values.shape != (count,):
        raise ValueError(f"{where}: got shape {values.shape}, expected ({count},), one for each box.")
    return values


def _to_array(where: str, values: Any) -> np.ndarray:
    """Finite float64 of an array, a tensor or a list; in this precision nothing is lost."""
    values = values.detach().cpu().double() if hasattr(values, "detach") else values
    try:
        values = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: not an array of numbers: {error}") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: got numbers that are not finite: the model or the annotations are broken.")
    return values


def _to_coco(images: Sequence[Mapping[str, Any]], classes: Sequence[int]) -> COCO:
    """Images in COCO's own format."""
    annotations = []
    for image_id, image in enumerate(images):
        for i, (x1, y1, x2, y2) in enumerate(image["boxes"]):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            fields = {key: image[name][i] for name, key in COCO_KEYS.items() if name in image}
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **box, **fields})
    return COCO(
        {
            "images": [{"id": i} for i in range(len(images))],
            "annotations": annotations,
            "categories": [{"id": label} for label in classes],
        }
    )
