"""The figures of a report can be recomputed from predictions.csv."""

import csv
from collections import Counter

import numpy as np
import pytest
from detection_cases import random_detected_images
from metric_cases import reference_map
from report_cases import CLASSES, classification_result, detection_result, label_maps, segmentation_result

from mobilevit_hf.reports.predictions import write_predictions


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(result, tmp_path):
    write_predictions(tmp_path / "predictions.csv", result)
    return read(tmp_path / "predictions.csv")


def test_accuracy_and_scores_of_each_image(tmp_path):
    result = classification_result()
    rows = write(result, tmp_path)
    assert list(rows[0]) == ["file", "target", "prediction", "score", "target_score", "correct"]
    assert [row["file"] for row in rows] == result.predictions.names
    is_correct = [row["target"] == row["prediction"] for row in rows]
    assert np.mean(is_correct) == result.metrics["accuracy"]
    assert [row["correct"] for row in rows] == ["true" if correct else "false" for correct in is_correct]
    for column, expected in (("score", "scores"), ("target_score", "target_scores")):
        assert (
            np.array([row[column] for row in rows], dtype=np.float32) == getattr(result.predictions, expected)
        ).all()
    support = Counter(row["target"] for row in rows)
    assert support == {name: row["support"] for name, row in result.metrics["per_class"].items()}


@pytest.mark.parametrize("seed", [0, 1])
def test_map_by_pycocotools_equals_that_of_the_report(seed, tmp_path):
    result = detection_result(random_detected_images(seed))
    rows = write(result, tmp_path)
    files = {image.name: index for index, image in enumerate(result.predictions, 1)}

    def convert(row):
        x1, y1, x2, y2 = (float(row[name]) for name in ("x1", "y1", "x2", "y2"))
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        return box | {"image_id": files[row["file"]], "category_id": CLASSES.index(row["label"])}

    objects = [convert(row) for row in rows if row["kind"] == "object"]
    detections = [convert(row) | {"score": float(row["score"])} for row in rows if row["kind"] == "prediction"]
    content = {
        "images": [{"id": index} for index in files.values()],
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES)],
        "annotations": [item | {"id": i, "iscrowd": 0} for i, item in enumerate(objects, 1)],
    }
    expected = reference_map(content, detections)
    assert 0.05 < expected[0] < 0.9
    assert [result.metrics["map"], result.metrics["map_50"]] == pytest.approx(expected, abs=1e-6)


def test_precision_and_recall_at_the_threshold(tmp_path):
    result = detection_result()
    outcomes = Counter(row["outcome"] for row in write(result, tmp_path))
    best = result.best_threshold
    assert outcomes["true positive"] == outcomes["detected"]
    positives = outcomes["true positive"] + outcomes["false positive"]
    assert outcomes["true positive"] / positives == pytest.approx(best.precision)
    assert outcomes["true positive"] / (outcomes["detected"] + outcomes["missed"]) == pytest.approx(best.recall)
    assert outcomes["below threshold"] > 0


def test_rows_have_the_scores_of_their_outcomes(tmp_path):
    result = detection_result(random_detected_images(3, crowds=0.3))
    rows = write(result, tmp_path)
    threshold = result.best_threshold.value
    for row in rows:
        if row["kind"] == "object":
            assert row["score"] == ""
            assert row["outcome"] in ("detected", "missed", "ignored")
        else:
            assert (float(row["score"]) > threshold) == (row["outcome"] != "below threshold")
    crowds = sum(int(image.is_crowd.sum()) for image in result.predictions)
    assert sum(row["kind"] == "object" and row["outcome"] == "ignored" for row in rows) == crowds > 0


def test_names_with_separators_and_undecodable_bytes(tmp_path):
    names = ['a,b".jpg', "two\nlines.jpg", "猫.jpg", "\udc80.jpg"]
    rows = write(classification_result(names), tmp_path)
    assert [row["file"] for row in rows] == [*names[:3], "\\udc80.jpg"]


def test_ious_of_each_image(tmp_path):
    """Computed from one mask per class; an image without labeled pixels has no values."""
    result = segmentation_result()
    rows = write(result, tmp_path)
    assert list(rows[0]) == ["file", "mean_iou", "pixel_accuracy", *(f"iou {name}" for name in CLASSES)]
    for row, image, prediction, mask in zip(rows, result.predictions, *label_maps(), strict=True):
        assert row.pop("file") == image.name
        if (mask < 0).all():
            assert set(row.values()) == {""}
            continue
        ious = {}
        for label, name in enumerate(CLASSES):
            target, predicted = mask == label, (prediction == label) & (mask >= 0)
            if (target | predicted).any():
                ious[f"iou {name}"] = (target & predicted).sum() / (target | predicted).sum()
        assert {name: float(value) for name, value in row.items() if value} == pytest.approx(
            ious | {"mean_iou": np.mean([*ious.values()]), "pixel_accuracy": (mask == prediction)[mask >= 0].mean()}
        )
