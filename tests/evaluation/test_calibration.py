import numpy as np
import pytest

from mobilevit_hf.evaluation.calibration import reliability


def test_bins_equal_those_of_a_loop():
    generator = np.random.default_rng(0)
    scores = generator.random(300).astype(np.float32) ** 0.5
    scores[:2] = 0, 1
    is_correct = generator.random(300) < scores**2
    result = reliability(scores, is_correct)
    ece = 0
    for index in range(15):
        inside = [
            i for i, score in enumerate(scores.tolist())
            if index / 15 < score <= (index + 1) / 15 or (index == 0 and score == 0)
        ]  # fmt: skip
        assert result.counts[index] == len(inside)
        if not inside:
            assert np.isnan([result.confidence[index], result.accuracy[index]]).all()
            continue
        confidence, accuracy = scores[inside].astype(float).mean(), is_correct[inside].mean()
        assert (result.confidence[index], result.accuracy[index]) == pytest.approx((confidence, accuracy), abs=1e-9)
        ece += len(inside) / 300 * abs(confidence - accuracy)
    assert result.ece == pytest.approx(ece, abs=1e-9)
    assert 0.1 < result.ece < 0.9
    assert result.counts.sum() == 300
    assert result.edges.tolist() == pytest.approx([i / 15 for i in range(16)])


def test_certain_and_correct_predictions_are_calibrated():
    assert reliability(np.ones(5), np.ones(5, dtype=bool)).ece == 0
    assert reliability(np.ones(5), np.zeros(5, dtype=bool)).ece == 1
