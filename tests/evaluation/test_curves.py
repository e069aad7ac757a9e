import numpy as np
import pytest
from detection_cases import make_detected_image, random_detected_images, to_metric_inputs
from metric_cases import evaluate_pycocotools

from mobilevit_hf.evaluation.average_precision import RECALLS, group_by_class
from mobilevit_hf.evaluation.curves import precision_recall_curves, threshold_curve, threshold_metrics


def group(images):
    return group_by_class([image.matches for image in images])


@pytest.mark.parametrize("crowds", [0, 0.3])
def test_precision_recall_curves_equal_pycocotools(crowds):
    images = random_detected_images(0, crowds=crowds)
    evaluation, labels = evaluate_pycocotools(*to_metric_inputs(images))
    curves = precision_recall_curves(group(images))
    assert list(curves) == labels
    for index, label in enumerate(labels):
        curve, expected = curves[label], evaluation.eval["precision"][0, :, index, 0, 2]
        assert curve.average_precision == pytest.approx(expected.mean(), abs=1e-9)
        positions = np.searchsorted(curve.recall, RECALLS)
        assert np.append(curve.precision, 0)[positions] == pytest.approx(expected, abs=1e-9)
        assert curve.recall[-1] == pytest.approx(evaluation.eval["recall"][0, index, 0, 2])
        assert (curve.recall[0], curve.precision[0]) == (0, curve.precision.max())


def test_class_without_objects_has_no_curve_and_one_without_detections_is_0():
    box = [0, 0, 20, 20]
    curves = precision_recall_curves(group([make_detected_image([(box, 1, 0.5)], [(box, 2)])]))
    assert list(curves) == [2]
    assert (curves[2].recall.tolist(), curves[2].precision.tolist(), curves[2].average_precision) == ([0], [0], 0)


@pytest.mark.parametrize("crowds", [0, 0.3])
def test_threshold_curve_equals_counts(crowds):
    images = random_detected_images(1, crowds=crowds)
    curve = threshold_curve(group(images))
    scores = sorted({score for image in images for score in image.matches.scores.tolist()})
    num_objects = sum(int((~image.is_crowd).sum()) for image in images)
    assert (np.diff(curve.thresholds) > 0).all()
    assert curve.thresholds[0] < scores[0]
    for threshold, precision, recall, f1 in list(zip(*vars(curve).values(), strict=True))[::20]:
        hits = detections = 0
        for image in images:
            detected = image.matches.scores > threshold
            hits += int((image.matches.hits[detected, 0] >> 7).sum())  # the first bit: all areas, an IoU of 0.5
            detections += int((~(image.matches.ignored[detected, 0] >> 7).astype(bool)).sum())
        assert (precision, recall) == pytest.approx((hits / detections, hits / num_objects))
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall) if hits else 0)
        metrics = threshold_metrics(group(images), threshold)
        assert vars(metrics) == pytest.approx({"value": threshold, "f1": f1, "precision": precision, "recall": recall})
    best = curve.best()
    assert best.f1 == curve.f1.max()
    assert threshold_metrics(group(images), best.value) == best


def test_threshold_between_equal_scores_is_impossible():
    box, other = [0, 0, 20, 20], [100, 100, 120, 120]
    image = make_detected_image([(box, 0, 0.5), (other, 0, 0.5), (other, 0, 0.25)], [(box, 0)])
    curve = threshold_curve(group([image]), lowest=0.05)
    assert curve.thresholds.tolist() == pytest.approx([0.15, 0.375])
    assert curve.precision.tolist() == pytest.approx([1 / 3, 1 / 2])


@pytest.mark.parametrize(
    ("detections", "objects"), [([], [([0, 0, 9, 9], 0)]), ([([0, 0, 9, 9], 0, 0.5)], []), ([], [])]
)
def test_without_objects_or_detections_there_is_no_best_threshold(detections, objects):
    curve = threshold_curve(group([make_detected_image(detections, objects)]))
    assert len(curve.thresholds) == 0
    assert curve.best() is None
    assert threshold_metrics(group([make_detected_image(detections, objects)]), 0.9).f1 == 0
