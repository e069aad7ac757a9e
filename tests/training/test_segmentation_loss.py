"""Losses of segmentation, compared with torch's on logits from `F.interpolate` and with loops over pixels."""

import math

import pytest
import torch
from torch.nn import functional as F

from mobilevit_hf.training.segmentation_loss import SegmentationLoss, resize_logits

K = 4


@pytest.fixture
def batch():
    """Logits (2, K, 3, 5) and labels (2, 13, 22) with ignored pixels and without class 3."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K - 1, (2, 13, 22), generator=generator)
    labels[0, :4] = 255
    return torch.randn(2, K, 3, 5, generator=generator).mul_(3).requires_grad_(), labels


def interpolate(logits, labels):
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", [(3, 5), (48, 80), (13, 22), (2, 4)])
def test_resized_logits_and_gradients_equal_interpolation(size, batch):
    logits, _ = batch
    expected, actual = (
        F.interpolate(logits, size=size, mode="bilinear", align_corners=False),
        resize_logits(logits, size),
    )
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad(output, logits, weight)[0] for output in (actual, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("weights", [None, [1.0, 0.2, 3.0, 0.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(weights, smoothing, batch):
    logits, labels = batch
    weights = None if weights is None else torch.tensor(weights)
    (loss,) = SegmentationLoss(class_weights=weights, label_smoothing=smoothing)(logits, labels).values()
    options = {"weight": weights, "label_smoothing": smoothing, "ignore_index": 255}
    torch.testing.assert_close(loss, F.cross_entropy(interpolate(logits, labels), labels, **options))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_equals_a_loop(gamma, batch):
    logits, labels = batch
    (loss,) = SegmentationLoss(focal_gamma=gamma)(logits, labels).values()
    probabilities = interpolate(logits, labels).softmax(dim=1)
    terms = []
    for image in range(2):
        for row in range(13):
            for column in range(22):
                if (label := int(labels[image, row, column])) != 255:
                    p = float(probabilities[image, label, row, column])
                    terms.append(-((1 - p) ** gamma) * math.log(p))
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()


def test_dice_loss_equals_a_loop_over_present_classes(batch):
    logits, labels = batch
    losses = SegmentationLoss(dice_weight=0.5)(logits, labels)
    probabilities, is_labeled = interpolate(logits, labels).softmax(dim=1), labels != 255
    coefficients = []
    for label in range(3):  # class 3 has no pixel
        p, target = probabilities[:, label][is_labeled], (labels[is_labeled] == label).float()
        coefficients.append(float(2 * (p * target).sum() / (p.sum() + target.sum())))
    assert float(losses["loss_dice"]) == pytest.approx(0.5 * (1 - sum(coefficients) / 3), rel=1e-5)
    torch.testing.assert_close(losses["loss"], losses["loss_ce"] + losses["loss_dice"])


def test_loss_without_labeled_pixels_is_zero(batch):
    logits, labels = batch
    for options in ({}, {"dice_weight": 1.0}, {"focal_gamma": 0.5, "class_weights": torch.ones(K)}):
        loss = SegmentationLoss(**options)(logits, torch.full_like(labels, 255))["loss"]
        (gradient,) = torch.autograd.grad(loss, logits)
        assert float(loss) == 0
        assert not gradient.any()
