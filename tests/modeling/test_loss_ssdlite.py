"""Multibox loss, compared with the official code and a naive loop."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mobilevit_hf.modeling.loss_ssdlite import mine_hard_negatives, multibox_loss


def naive_loss(logits, locations, targets, target_locations, ratio=3, beta=1.0, weight=1.0):
    """Compute classification and localization loss, and the mask of anchors in the loss, image by image."""
    classification, localization, selected = [], [], torch.zeros_like(targets, dtype=torch.bool)
    for b in range(len(logits)):
        positives = [a for a in range(targets.shape[1]) if targets[b, a] > 0]
        background = [-F.log_softmax(row, dim=0)[0].item() for row in logits[b].detach()]
        others = [a for a in range(targets.shape[1]) if a not in positives]
        negatives = sorted(others, key=lambda a: -background[a])[: ratio * len(positives)]
        anchors = positives + negatives
        selected[b, anchors] = True
        classification.append(F.cross_entropy(logits[b, anchors], targets[b, anchors], reduction="sum"))
        localization.append(
            F.smooth_l1_loss(locations[b, positives], target_locations[b, positives], reduction="sum", beta=beta)
        )
    count = max(1, int((targets > 0).sum()))
    return sum(classification) / count, weight * sum(localization) / count, selected


@pytest.mark.parametrize("positives", [(2, 5, 1), (0, 3, 0), (14, 1, 15), (0, 0, 0)], ids=str)
@pytest.mark.parametrize(("ratio", "beta", "weight"), [(3, 1.0, 1.0), (1, 0.1, 2.5), (0, 3.0, 0.0)])
def test_multibox_loss_equals_loop(generator, positives, ratio, beta, weight):
    inputs = [3 * torch.randn(3, 20, n, generator=generator, dtype=torch.float64) for n in (6, 4)]
    targets, target_locations = torch.zeros(3, 20, dtype=torch.int64), torch.randn(3, 20, 4, generator=generator) * 2
    target_locations = target_locations.double()
    for row, count in zip(targets, positives, strict=True):
        row[torch.randperm(20, generator=generator)[:count]] = torch.randint(1, 6, (count,), generator=generator)
    target_locations[targets == 0] = -torch.inf  # background anchors have no target
    results = []
    for compute in (multibox_loss, naive_loss):
        logits, locations = (i.clone().requires_grad_() for i in inputs)
        options = (
            {"negatives_per_positive": ratio, "smooth_l1_beta": beta, "localization_loss_weight": weight}
            if compute is multibox_loss
            else {"ratio": ratio, "beta": beta, "weight": weight}
        )
        parts = compute(logits, locations, targets, target_locations, **options)
        parts = [*parts.values()] if compute is multibox_loss else parts[:2]
        gradients = torch.autograd.grad(sum(parts), (logits, locations))
        assert all(gradient.isfinite().all() for gradient in gradients)
        results.append([*parts, *gradients])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
    if not any(positives):
        assert all(tensor.eq(0).all() for tensor in results[0])
    background = inputs[0].logsumexp(dim=-1) - inputs[0][..., 0]
    mined = mine_hard_negatives(background, targets > 0, ratio) | (targets > 0)
    assert torch.equal(mined, naive_loss(*inputs, targets, target_locations, ratio)[2])


def test_multibox_loss_returns_named_terms():
    parts = multibox_loss(
        torch.zeros(1, 2, 3), torch.ones(1, 2, 4), torch.tensor([[1, 0]]), torch.zeros(1, 2, 4), smooth_l1_beta=4.0
    )
    assert parts == {
        "loss_ce": pytest.approx(2 * math.log(3)),
        "loss_bbox": pytest.approx(4 * 0.5 / 4),
    }


@pytest.mark.parametrize("case", ["mixed_with_empty", "single", "all_empty", "many_pos"])
def test_multibox_loss_equals_official_code(reference_data, case):
    data = np.load(reference_data / "reference/train_ssd_loss.npz")
    report = json.loads((reference_data / "reference/train_report.json").read_text())["loss"][case]
    logits, locations, targets, target_locations, mined, location_gradient, logit_gradient = (
        torch.from_numpy(data[f"{case}_{name}"])
        for name in (
            *("scores", "loc_preds", "labels", "reg_targets"),
            *("mined_mask", "grad_loc", "grad_score_rowsum_abs"),
        )
    )
    logits.requires_grad_()
    locations.requires_grad_()
    parts = multibox_loss(logits, locations, targets, target_locations)
    sum(parts.values()).backward()
    assert parts["loss_ce"].item() == pytest.approx(report["eval_f64"]["cls_loss"], rel=1e-5)
    assert parts["loss_bbox"].item() == pytest.approx(report["eval_f64"]["reg_loss"], rel=1e-5)
    torch.testing.assert_close(locations.grad, location_gradient, atol=1e-6, rtol=0)
    torch.testing.assert_close(logits.grad.abs().sum(dim=-1), logit_gradient, atol=1e-6, rtol=0)
    is_positive = targets > 0
    background = (logits.logsumexp(dim=-1) - logits[..., 0]).detach()
    selected = mine_hard_negatives(background, is_positive, 3) | is_positive
    expected = np.unpackbits(mined.numpy())[: selected.numel()].astype(bool)
    assert np.array_equal(selected.flatten().numpy(), expected)
    assert selected.sum(dim=1).tolist() == report["num_mined"]
