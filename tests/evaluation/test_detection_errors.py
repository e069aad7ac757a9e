import numpy as np
import pytest
from detection_cases import make_detected_image, random_detected_images, to_metric_inputs
from metric_cases import compute_pycocotools

from mobilevit_hf.evaluation.detection_errors import ERROR_TYPES, confusion_matrix, detection_errors
from mobilevit_hf.evaluation.outcomes import count_by_class, find_outcomes

BOX, FAR = [0, 0, 100, 100], [150, 150, 250, 250]
SHIFTED = [60, 0, 160, 100]  # IoU 0.25 with BOX
CLOSE = [10, 0, 110, 100]  # IoU 0.82 with BOX

CASES = {
    "localization": ([(SHIFTED, 0, 0.5)], [(BOX, 0)]),
    "classification": ([(CLOSE, 1, 0.5)], [(BOX, 0)]),
    "duplicate": ([(BOX, 0, 0.9), (CLOSE, 0, 0.5)], [(BOX, 0)]),
    "background": ([(BOX, 0, 0.9), (FAR, 0, 0.5)], [(BOX, 0)]),
    "both": ([(SHIFTED, 1, 0.5), (BOX, 0, 0.4)], [(BOX, 0)]),
    "missed": ([(BOX, 0, 0.9)], [(BOX, 0), (FAR, 0)]),
}


@pytest.mark.parametrize("error_type", CASES)
def test_each_type_is_counted_above_the_threshold(error_type):
    image = make_detected_image(*CASES[error_type])
    counts = {name: statistics.count for name, statistics in detection_errors([image], 0.45).items()}
    expected = dict.fromkeys(ERROR_TYPES, 0) | {error_type: 1}
    if error_type == "both":
        expected["missed"] = 1  # at this threshold
    assert counts == expected
    counts = {name: statistics.count for name, statistics in detection_errors([image], 0.95).items()}
    assert counts == dict.fromkeys(ERROR_TYPES, 0) | {"missed": len(image.matches.objects)}


def test_gains_equal_pycocotools_on_corrected_detections():
    """One class with objects, two wrong detections of each type but one object without any detection."""
    objects = [([0, y, 40, y + 40], 0) for y in range(0, 300, 60)]
    (first, _), (second, _), (third, _), (fourth, _), _ = objects
    shifted = [20, second[1], 60, second[3]]
    background, other = [200, 200, 240, 240], [25, fourth[1], 65, fourth[3]]
    detections = {
        "background": (background, 0, 0.9),
        "localization": (shifted, 0, 0.8),
        "correct": (first, 0, 0.7),
        "duplicate": (first, 0, 0.65),
        "classification": (third, 1, 0.6),
        "both": (other, 1, 0.55),
        "low": (fourth, 0, 0.5),
    }

    def compute_map_50(found, present):
        image = make_detected_image(found, present)
        return compute_pycocotools(*to_metric_inputs([image]))[0][1]

    def without(name):
        return [detection for key, detection in detections.items() if key != name]

    image = make_detected_image([*detections.values()], [*objects, ([200, 0, 240, 40], 1)])
    errors = detection_errors([image], 0.0)
    assert {name: statistics.count for name, statistics in errors.items()} == dict.fromkeys(ERROR_TYPES, 1) | {
        "missed": 2
    }
    present = [*objects, ([200, 0, 240, 40], 1)]
    base = compute_map_50([*detections.values()], present)
    corrected = {
        "localization": compute_map_50([*without("localization"), (second, 0, 0.8)], present),
        "classification": compute_map_50([*without("classification"), (third, 0, 0.6)], present),
        "duplicate": compute_map_50(without("duplicate"), present),
        "background": compute_map_50(without("background"), present),
        "both": compute_map_50(without("both"), present),
        # Without the objects that nothing detects: class 1 has none left and keeps an average precision of 0.
        "missed": compute_map_50([*detections.values()], objects[:-1]) / 2,
    }
    for name, value in corrected.items():
        assert errors[name].gain == pytest.approx(value - base, abs=1e-9)
    assert len({round(statistics.gain, 6) for statistics in errors.values()}) >= 5


def test_only_the_best_detection_of_an_object_is_corrected():
    image = make_detected_image([(SHIFTED, 0, 0.9), (SHIFTED, 0, 0.8), (CLOSE, 1, 0.7)], [(BOX, 0)])
    errors = detection_errors([image], 0.0)
    assert (errors["localization"].count, errors["classification"].count) == (2, 1)
    assert (errors["localization"].gain, errors["classification"].gain) == (1, 0)


def test_wrong_detection_of_a_matched_object_is_removed_not_corrected():
    objects = [(BOX, 0), (FAR, 0)]
    errors = detection_errors([make_detected_image([(SHIFTED, 0, 0.95), (BOX, 0, 0.9)], objects)], 0.0)
    assert errors["localization"].count == 1
    assert errors["localization"].gain == pytest.approx((1 - 1 / 2) * 51 / 101)  # of 101 recalls, 51 are up to 0.5


def test_detections_in_crowds_are_no_errors():
    image = make_detected_image([(BOX, 0, 0.9)], [([0, 0, 200, 200], 0)], crowds=[0])
    assert all(statistics == (0, 0) for statistics in detection_errors([image], 0.0).values())
    assert confusion_matrix([image], 0.0, 1).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("threshold", [-1.0, 0.5])
@pytest.mark.parametrize("crowds", [0, 0.3])
def test_confusion_matrix_has_all_objects_and_detections(threshold, crowds):
    images = random_detected_images(2, crowds=crowds)
    confusion = confusion_matrix(images, threshold, 4)
    counts = count_by_class(images, threshold, 4)
    assert confusion.dtype == np.int64
    assert confusion.sum(axis=1)[:-1].tolist() == [numbers.objects for numbers in counts]
    detected = [numbers.true_positives + numbers.false_positives for numbers in counts]
    assert confusion.sum(axis=0)[:-1].tolist() == detected
    assert confusion.diagonal()[:-1].tolist() == [numbers.true_positives for numbers in counts]
    assert confusion[-1, -1] == 0
    assert confusion[:-1, :-1].sum() > confusion.diagonal().sum()


def test_confusion_matrix_of_one_image():
    """The detection of class 1 takes the object of class 0, that of lower score is left in the background."""
    detections = [(CLOSE, 1, 0.9), (BOX, 2, 0.8), (FAR, 2, 0.7), (FAR, 0, 0.2)]
    image = make_detected_image(detections, [(BOX, 0), (FAR, 2), ([0, 200, 50, 250], 1)])
    expected = [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert confusion_matrix([image], 0.5, 3).tolist() == expected


def test_count_errors_are_means_over_the_images():
    images = [
        make_detected_image([(BOX, 0, 0.9), (FAR, 0, 0.8), (FAR, 0, 0.1)], [(BOX, 0)]),
        make_detected_image([], [(BOX, 0), (FAR, 1)]),
        make_detected_image([(FAR, 1, 0.9)], [(BOX, 0)]),
    ]
    zero, one = count_by_class(images, 0.5, 2)
    assert (zero.objects, zero.true_positives, zero.false_positives) == (3, 1, 1)
    assert (zero.mean_error, zero.mean_absolute_error) == pytest.approx((-1 / 3, 1))
    assert (one.mean_error, one.mean_absolute_error) == pytest.approx((0, 2 / 3))
    assert (zero.precision, zero.recall, zero.f1) == (1 / 2, 1 / 3, 0.4)


def test_outcomes_name_the_matched_object():
    image = make_detected_image([(FAR, 0, 0.9), (CLOSE, 0, 0.8), (BOX, 0, 0.3)], [(BOX, 0), (FAR, 0)])
    outcomes = find_outcomes(image, 0.85)
    assert (outcomes.true_positives.tolist(), outcomes.missed.tolist()) == ([True, False, False], [True, False])
    outcomes = find_outcomes(image, 0.1)
    assert outcomes.objects.tolist() == [1, 0, -1]
    assert outcomes.false_positives.tolist() == [False, False, True]
    assert not outcomes.missed.any()
