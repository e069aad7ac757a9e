"""Class weights."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.tasks import SegmentationTask, balanced_weights


def test_balanced_weights_equalize_classes():
    counts = [6, 0, 2, 4]
    weights = balanced_weights(counts).tolist()
    samples = [weights[label] for label, count in enumerate(counts) for _ in range(count)]
    assert sum(samples) / len(samples) == pytest.approx(1)
    assert [weight * count for weight, count in zip(weights, counts, strict=True)] == pytest.approx([4, 0, 4, 4])
    assert weights[1] == 0


@pytest.mark.parametrize(("kind", "power"), [("none", 0), ("balanced", 1), ("sqrt", 0.5)])
def test_class_weights_of_segmentation_are_by_pixels(kind, power):
    arguments = TrainArguments(class_weights=kind).for_task("image-segmentation")
    report = SimpleNamespace(counts={"train": {"road": 80, "sign": 20}})
    task = SegmentationTask(arguments, SimpleNamespace(classes=("road", "sign")))
    logits, labels = torch.randn(1, 2, 4, 4), torch.arange(16).view(1, 4, 4) % 2
    loss = task.loss_function(report, torch.device("cpu"))
    (actual,) = loss(
        lambda pixel_values: SimpleNamespace(logits=logits), {"pixel_values": None, "labels": labels}
    ).values()
    weights = torch.tensor([100 / (2 * 80), 100 / (2 * 20)]) ** power
    torch.testing.assert_close(actual, F.cross_entropy(logits, labels, weight=weights))
