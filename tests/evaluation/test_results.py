import json

import numpy as np
import pytest
from detection_cases import make_detected_image

from mobilevit_hf.data.types import Sample
from mobilevit_hf.evaluation import ClassifiedImages, EvaluationResult, Mistake, ThresholdMetrics
from mobilevit_hf.evaluation.classification import ClassificationMetrics
from mobilevit_hf.evaluation.inference import Prepared
from mobilevit_hf.records import EvaluationRecord, read_record, write_record

BEST, RECOMMENDED = ThresholdMetrics(0.25, 0.8, 0.7, 0.9), ThresholdMetrics(0.5, 0.7, 0.8, 0.6)


def test_record_has_the_figures(tmp_path):
    metrics = {"map": 0.5, "per_class": {"cat": 0.5}, "per_class_metrics": {"cat": {"map": 0.5, "support": 3}}}
    result = EvaluationResult(
        task="object-detection",
        metrics=metrics,
        intervals={"map": (0.4, 0.6)},
        best_threshold=BEST,
        images_per_second=9.876,
        num_images=12,
        losses={"loss": 1.5, "loss_ce": 1.0, "loss_bbox": 0.5},
        classes=["cat"],
        recommended_threshold=RECOMMENDED,
    )
    write_record(tmp_path / "evaluation-test.json", result.to_record(data="cats", split="test"))
    record = read_record(tmp_path / "evaluation-test.json", EvaluationRecord)
    assert (record.data, record.split, record.num_images, record.metrics) == ("cats", "test", 12, metrics)
    assert (record.intervals, record.losses["loss_ce"], record.images_per_second) == ({"map": [0.4, 0.6]}, 1.0, 9.9)
    assert record.best_threshold == vars(BEST)
    assert record.recommended_threshold == vars(RECOMMENDED)
    assert "predictions" not in json.loads((tmp_path / "evaluation-test.json").read_text())


def test_record_of_a_classifier_has_the_intervals_of_each_class(tmp_path):
    metrics = ClassificationMetrics(None, {0: "cat", 1: "dog"}, [0, 1])
    samples = [Sample(str(i), None, label=i % 2) for i in range(8)]
    metrics.update(np.eye(2, dtype=np.float32)[[0] * 8], [Prepared(i, s, None, (1, 1)) for i, s in enumerate(samples)])
    metrics.merge([metrics.state])
    intervals = metrics.class_intervals()
    assert {name: list(row) for name, row in intervals.items()} == {"cat": ["precision", "recall"], "dog": ["recall"]}
    assert intervals["cat"]["precision"] == pytest.approx((0.2152, 0.7848), abs=1e-4)  # 4 of 8
    assert intervals["dog"]["recall"] == pytest.approx((0, 0.4899), abs=1e-4)  # 0 of 4
    result = EvaluationResult("image-classification", {"accuracy": 0.5}, {}, None, 1.0, 8, class_intervals=intervals)
    write_record(tmp_path / "a.json", result.to_record())
    record = read_record(tmp_path / "a.json", EvaluationRecord)
    assert record.class_intervals == json.loads(json.dumps(intervals))


@pytest.mark.parametrize(
    ("best", "recommended", "expected"),
    [(None, None, None), (BEST, None, 0.25), (BEST, RECOMMENDED, 0.5), (None, RECOMMENDED, 0.5)],
)
def test_threshold_is_the_recommended_or_else_the_best(best, recommended, expected):
    result = EvaluationResult("object-detection", {}, {}, best, 1.0, 1, recommended_threshold=recommended)
    assert result.threshold == expected


def test_mistakes_of_a_detector_depend_on_its_threshold():
    box, far = [0, 0, 50, 50], [100, 100, 150, 150]
    image = make_detected_image([(box, 0, 0.4), (far, 0, 0.6)], [(box, 0)], index=3)
    for threshold, expected in ((None, "0 missed, 1 wrong"), (RECOMMENDED, "1 missed, 1 wrong")):
        result = EvaluationResult(
            "object-detection", {}, {}, None, 1.0, 1, predictions=[image], recommended_threshold=threshold
        )
        number = float(sum(map(int, expected.replace(" missed, ", " ").split()[:2])))
        assert result.mistakes == [Mistake(3, "3.jpg", "1 object", expected, number)]


def test_images_without_mistakes_are_left_out():
    box = [0, 0, 50, 50]
    images = [make_detected_image([(box, 0, 0.4)], [(box, 0)])]
    assert EvaluationResult("object-detection", {}, {}, None, 1.0, 1, predictions=images).mistakes == []
    classified = ClassifiedImages(
        np.arange(2), ["a", "b"], *np.array([[0, 1], [0, 0]]), *np.array([[0.9, 0.8], [0.9, 0.2]])
    )
    result = EvaluationResult("image-classification", {}, {}, None, 1.0, 2, predictions=classified, classes=["x", "y"])
    assert result.mistakes == [Mistake(1, "b", "y", "x", 0.8)]
