"""Detection test cases of the metrics, and pycocotools as the reference."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def detections(boxes=(), scores=None, labels=None):
    """Return a prediction; default: score 0.5, class 0."""
    boxes = list(boxes)
    scores = [0.5] * len(boxes) if scores is None else scores
    return {"boxes": boxes, "scores": scores, "labels": [0] * len(boxes) if labels is None else labels}


def objects(boxes=(), labels=None, **columns):
    """Return a reference; default: class 0."""
    boxes = list(boxes)
    return {"boxes": boxes, "labels": [0] * len(boxes) if labels is None else labels, **columns}


def reference_map(content, results):
    """Return mAP and mAP50 of pycocotools, given annotations and detections in COCO's format."""
    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:2]


def random_images(seed, count, most_detections):
    """Return predictions and references: jittered reference boxes, some of another class, with tied scores.

    The first image has no references, the second no detections; class 4 occurs in predictions only.
    """
    generator = np.random.default_rng(seed)
    predictions, references = [], []
    for index in range(count):
        m = 0 if index == 0 else int(generator.integers(1, 12))
        corners, sizes = generator.uniform(0, 300, (m, 2)), np.exp(generator.uniform(1.5, 5.3, (m, 2)))
        labels = generator.integers(0, 4, m)
        crowd = (generator.random(m) < 0.15).astype(int)
        boxes = np.concatenate([corners, corners + sizes], axis=1)
        area = sizes.prod(axis=1) * generator.uniform(0.5, 1, m)
        references.append({"boxes": boxes, "labels": labels, "iscrowd": crowd, "area": area})

        n = 0 if index == 1 else int(generator.integers(most_detections // 2, most_detections))
        source = generator.integers(0, m, n) if m else np.zeros(n, dtype=int)
        moved = (boxes if m else np.array([[10.0, 20, 60, 90]]))[source] + generator.normal(0, 4, (n, 4))
        moved = np.concatenate([np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], 1)
        guesses = generator.integers(0, 5, n)
        guesses = np.where(generator.random(n) < 0.8, labels[source], guesses) if m else guesses
        predictions.append({"boxes": moved, "scores": generator.random(n).round(2), "labels": guesses})
    return predictions, references


def evaluate_pycocotools(predictions, references):
    """Return the finished evaluation of pycocotools and the classes."""
    labels = sorted({int(label) for image in [*predictions, *references] for label in image["labels"]})

    def to_coco(images):
        annotations = []
        for number, image in enumerate(images):
            for i, (x1, y1, x2, y2) in enumerate(np.asarray(image["boxes"], dtype=float).reshape(-1, 4).tolist()):
                annotation = {"id": len(annotations) + 1, "image_id": number + 7, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                annotation["category_id"] = int(image["labels"][i]) + 1
                annotation["area"] = float(image["area"][i]) if "area" in image else (x2 - x1) * (y2 - y1)
                annotation["iscrowd"] = int(image["iscrowd"][i]) if "iscrowd" in image else 0
                annotation["score"] = float(image["scores"][i]) if "scores" in image else None
                annotations.append(annotation)
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number + 7} for number in range(len(images))],
            "categories": [{"id": label + 1} for label in labels],
            "annotations": annotations,
        }
        coco.createIndex()
        return coco

    evaluation = COCOeval(to_coco(references), to_coco(predictions), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation, labels


def compute_pycocotools(predictions, references):
    """Return the twelve statistics and the average precision per class of pycocotools."""
    evaluation, labels = evaluate_pycocotools(predictions, references)
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return evaluation.stats, {label: precision[:, :, i].mean() for i, label in enumerate(labels)}


def compute_class_metrics(predictions, references):
    """Return average precision and recall of each class by pycocotools, -1 without references."""
    evaluation, labels = evaluate_pycocotools(predictions, references)
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    return {
        label: {
            "map": precision[:, :, i, 0, 2].mean(),
            "map_50": precision[0, :, i, 0, 2].mean(),
            "map_75": precision[5, :, i, 0, 2].mean(),
            "map_small": precision[:, :, i, 1, 2].mean(),
            "map_medium": precision[:, :, i, 2, 2].mean(),
            "map_large": precision[:, :, i, 3, 2].mean(),
            "mar_100": recall[:, i, 0, 2].mean(),
        }
        for i, label in enumerate(labels)
    }


COCO_KEYS = [
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
]


def assert_matches_pycocotools(result, predictions, references):
    statistics, per_class = compute_pycocotools(predictions, references)
    assert [key for key in result if key != "per_class_metrics"] == [*COCO_KEYS, "per_class"]
    assert [result[key] for key in COCO_KEYS] == pytest.approx(statistics.tolist(), abs=1e-9)
    assert result["per_class"] == pytest.approx(per_class, abs=1e-9)
    json.dumps(result, allow_nan=False)


MANY_BOXES = [[x, 0, x + 30, 30] for x in range(0, 40 * 130, 40)]
HANDMADE = {
    "nothing at all": ([detections()], [objects()]),
    "no images": ([], []),
    "no detections": ([detections()] * 2, [objects(), objects([[0, 0, 50, 50]])]),
    "no references": ([detections([[0, 0, 50, 50]])], [objects()]),
    "other class": ([detections([[0, 0, 50, 50]], labels=[3])], [objects([[0, 0, 50, 50]], labels=[8])]),
    "only a crowd": ([detections([[0, 0, 50, 50]])], [objects([[0, 0, 50, 50]], iscrowd=[1])]),
    "crowd takes several": (
        [detections([[0, 0, 50, 50], [5, 5, 30, 30], [9, 9, 40, 40], [200, 0, 250, 50]], [0.9, 0.8, 0.7, 0.6])],
        [objects([[0, 0, 300, 60], [200, 0, 250, 50]], iscrowd=[1, 0])],
    ),
    "more than 100 on an image": (
        [detections(MANY_BOXES, scores=np.linspace(0.1, 0.9, 130))],
        [objects(MANY_BOXES)],
    ),
    "area given": ([detections([[0, 0, 40, 40]])], [objects([[0, 0, 40, 40]], area=[900.0])]),
    "area of the box": ([detections([[0, 0, 40, 40]])], [objects([[0, 0, 40, 40]])]),
    "a box without area": ([detections([[5, 5, 5, 9], [0, 0, 9, 9]])], [objects([[5, 5, 5, 9], [0, 0, 9, 9]])]),
}
