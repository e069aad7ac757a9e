"""Mean IoU compared with one mask per class."""

import json

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def label_maps():
    """Predictions and references of several sizes; class 5 is in predictions only, class 4 in references only."""
    generator = np.random.default_rng(0)
    references = [generator.integers(0, 5, size) for size in ((7, 9), (20, 3), (1, 30))]
    references[0][:2] = 255
    predictions = [
        np.where(generator.random(r.shape) < 0.6, r % 4, generator.integers(0, 4, r.shape)) for r in references
    ]
    predictions[1][0, 0] = 5
    return predictions, references


def compute_with_masks(predictions, references, ignore_index):
    """Return IoU per class, accuracy per class and overall accuracy."""
    predicted, target = (np.concatenate([m.ravel() for m in maps]) for maps in (predictions, references))
    predicted, target = predicted[target != ignore_index], target[target != ignore_index]
    ious, accuracies = {}, {}
    for label in {*predicted.tolist(), *target.tolist()}:
        a, b = predicted == label, target == label
        ious[label] = (a & b).sum() / (a | b).sum()
        if b.any():
            accuracies[label] = (a & b).sum() / b.sum()
    return ious, accuracies, (predicted == target).mean()


@pytest.mark.parametrize("ignore_index", [255, 0, None])
def test_matches_masks(load, label_maps, ignore_index):
    predictions, references = label_maps
    ious, accuracies, overall = compute_with_masks(predictions, references, ignore_index)
    metric = load("mean_iou")
    metric.add(prediction=predictions[0], reference=references[0])
    result = metric.compute(predictions=predictions[1:], references=references[1:], ignore_index=ignore_index)
    json.dumps(result, allow_nan=False)
    per_class = result.pop("per_class")
    assert result == pytest.approx(
        {
            "mean_iou": np.mean(list(ious.values())),
            "mean_accuracy": np.mean(list(accuracies.values())),
            "overall_accuracy": overall,
        }
    )
    assert {label: figures["iou"] for label, figures in per_class.items()} == pytest.approx(ious)
    assert {label: f["accuracy"] for label, f in per_class.items() if f["pixels"]} == pytest.approx(accuracies)
    assert per_class[5] == {"iou": 0, "accuracy": 0, "pixels": 0}
    kept = sum((r != ignore_index).sum() for r in references)
    assert sum(figures["pixels"] for figures in per_class.values()) == kept


def test_accepts_arrays_tensors_images_and_lists(load, label_maps):
    predictions, references = label_maps
    metric = load("mean_iou")
    results = [
        metric.compute(predictions=predictions, references=references),
        metric.compute(
            predictions=[torch.tensor(p) for p in predictions],
            references=[Image.fromarray(r.astype(np.uint8)) for r in references],
        ),
        metric.compute(predictions=[p.tolist() for p in predictions], references=[r.tolist() for r in references]),
    ]
    assert results[0] == results[1] == results[2]
    ignored = [np.where(r == 255, -100, r) for r in references]
    assert metric.compute(predictions=predictions, references=ignored, ignore_index=-100) == results[0]


@pytest.mark.parametrize(
    ("prediction", "reference", "options", "message"),
    [
        ([[0, 1]], [[0], [1]], {}, r"predictions\[1\] has shape \(1, 2\) and references\[1\] \(2, 1\).*target_sizes"),
        ([0, 1], [0, 1], {}, r"predictions\[1\]: got shape \(2,\)"),
        ([[0.5]], [[0]], {}, "float64, expected an"),
        ([[-1]], [[0]], {}, "got label -1"),
        ([[0]], [[-1]], {}, "expected 0 and above"),
        ([[0]], [[255]], {"ignore_index": None, "num_labels": 2}, r"\[0, 1, 255\], expected 0\.\.1.*ignore_index"),
        ([[2]], [[1]], {"num_labels": 2}, r"\[0, 1, 2\], expected 0\.\.1"),
        ([[1]], [[1]], {"id2label": {0: "sky"}}, r"none for \[1\]"),
    ],
)
def test_invalid_inputs_raise(load, prediction, reference, options, message):
    with pytest.raises(ValueError, match=message):
        load("mean_iou").compute(predictions=[[[0]], prediction], references=[[[1]], reference], **options)


def test_only_ignored_pixels_raise(load):
    with pytest.raises(ValueError, match="got no pixel other than ignore_index, 255"):
        load("mean_iou").compute(predictions=[[[0, 1]]], references=[[[255, 255]]])


def test_large_labels_are_counted_as_small_ones(load, label_maps):
    """Pairs of large labels are sorted, and those of small ones counted in bins."""
    predictions, references = label_maps
    metric = load("mean_iou")
    expected = metric.compute(predictions=predictions, references=references)
    spread = np.array([9_000 * label for label in range(6)] + [0] * 249 + [255])
    result = metric.compute(predictions=[spread[p] for p in predictions], references=[spread[r] for r in references])
    per_class = result.pop("per_class")
    assert {label // 9_000: row for label, row in per_class.items()} == expected.pop("per_class")
    assert result == expected
