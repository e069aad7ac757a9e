"""Class weights."""

import pytest

from mobilevit_hf.training.tasks import balanced_weights


def test_balanced_weights_equalize_classes():
    counts = [6, 0, 2, 4]
    weights = balanced_weights(counts).tolist()
    samples = [weights[label] for label, count in enumerate(counts) for _ in range(count)]
    assert sum(samples) / len(samples) == pytest.approx(1)
    assert [weight * count for weight, count in zip(weights, counts, strict=True)] == pytest.approx([4, 0, 4, 4])
    assert weights[1] == 0
