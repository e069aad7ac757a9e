"""Top-k accuracy compared with plain loops."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

import mobilevit_hf


def compute_with_loops(predictions, targets):
    """Return accuracy, macro F1 and the figures per class."""
    per_class = {}
    for label in sorted({*predictions, *targets}):
        hits = sum(p == t == label for p, t in zip(predictions, targets, strict=True))
        predicted, support = predictions.count(label), targets.count(label)
        precision, recall = hits / predicted if predicted else 0, hits / support if support else 0
        f1 = 2 * precision * recall / (precision + recall) if hits else 0
        per_class[label] = {"precision": precision, "recall": recall, "f1": f1, "support": support}
    accuracy = sum(p == t for p, t in zip(predictions, targets, strict=True)) / len(targets)
    return accuracy, sum(figures["f1"] for figures in per_class.values()) / len(per_class), per_class


@pytest.fixture(scope="module")
def scores():
    """Scores (200, 9) with many ties and targets (200,), which never are class 8."""
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 8, 200)
    scores = generator.normal(size=(200, 9)).round(1)
    scores[np.arange(200), targets] += 0.5
    return scores.astype(np.float32), targets


def test_scores_match_loops(load, scores):
    values, targets = scores
    orders = [sorted(range(9), key=lambda label: (-row[label], label)) for row in values.tolist()]
    accuracy, macro_f1, per_class = compute_with_loops([order[0] for order in orders], targets.tolist())
    expected = {"accuracy": accuracy, "macro_f1": macro_f1}
    for k in (2, 5, 9):
        expected[f"top_{k}_accuracy"] = sum(t in o[:k] for o, t in zip(orders, targets, strict=True)) / 200
    metric = load("top_k_accuracy")
    metric.add(prediction=values[0], reference=targets[0])
    metric.add_batch(predictions=values[1:9], references=targets[1:9])
    result = metric.compute(predictions=values[9:], references=targets[9:], k=(2, 5, 9))
    assert {label: pytest.approx(figures) for label, figures in per_class.items()} == result.pop("per_class")
    assert result == pytest.approx(expected)
    assert 0.2 < accuracy < expected["top_2_accuracy"] < expected["top_5_accuracy"] < 1 == expected["top_9_accuracy"]
    assert list(metric.compute(predictions=values, references=targets, k=3))[:2] == ["accuracy", "top_3_accuracy"]
    assert "top_5_accuracy" in metric.compute(predictions=values, references=targets)


def test_class_indices_match_loops(load, scores):
    values, targets = scores
    predictions = values.argmax(axis=1)
    accuracy, macro_f1, per_class = compute_with_loops(predictions.tolist(), targets.tolist())
    result = load("top_k_accuracy").compute(predictions=predictions, references=targets)
    json.dumps(result, allow_nan=False)
    assert {label: pytest.approx(figures) for label, figures in per_class.items()} == result.pop("per_class")
    assert result == pytest.approx({"accuracy": accuracy, "macro_f1": macro_f1})
    # Class indices give no top-k accuracy, even if all are correct.
    assert list(load("top_k_accuracy").compute(predictions=[1, 0], references=[1, 0])) == [*result, "per_class"]


def test_accepts_arrays_tensors_and_lists(load, scores):
    values, targets = torch.tensor(scores[0]).bfloat16(), scores[1]
    metric = load("top_k_accuracy")
    results = [
        metric.compute(predictions=values.requires_grad_(), references=torch.tensor(targets)),
        metric.compute(predictions=values.tolist(), references=targets.tolist()),
        metric.compute(predictions=list(values), references=list(torch.tensor(targets))),
        metric.compute(predictions=list(values.detach().float().numpy()), references=targets.astype(np.uint8)),
    ]
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"predictions": [1, 2], "references": [1]}, r"shape \(2,\) and references of shape \(1,\)"),
        ({"predictions": [[[1.0]]], "references": [1]}, r"expected \(N, K\)"),
        ({"predictions": ["cat"], "references": [1]}, "label_mapping"),
        ({"predictions": [0.5], "references": [1]}, r"predictions: got \[0.5\], expected class indices"),
        ({"predictions": [[0.5, 0.5]], "references": [-100]}, "references: got .*integers from 0"),
        ({"predictions": [[0.5, 0.5]], "references": [2]}, r"class 2, expected 0\.\.1"),
        ({"predictions": [[0.5, math.nan]], "references": [1]}, "not finite"),
        ({"predictions": [[1.0, 2.0], [1.0]], "references": [0, 0]}, "not an array of numbers"),
        ({"predictions": [], "references": []}, "predictions: got none"),
        ({"predictions": [1], "references": [1], "k": 0}, "k: got 0"),
        ({"predictions": [1], "references": [1], "id2label": {0: "cat"}}, r"none for \[1\]"),
    ],
)
def test_invalid_inputs_raise(load, inputs, message):
    with pytest.raises(ValueError, match=message):
        load("top_k_accuracy").compute(**inputs)


def test_compute_metrics_of_transformers_trainer(load, checkpoints, tmp_path):
    metric = load("top_k_accuracy")
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(checkpoints["image-classification"])
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 2, 3, 2, 1]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=4),
        eval_dataset=[{"pixel_values": images[i], "labels": label} for i, label in enumerate(labels)],
        compute_metrics=lambda p: metric.compute(predictions=p.predictions, references=p.label_ids, k=2),
    )
    with torch.no_grad():
        top_2 = model(pixel_values=images).logits.topk(2).indices.tolist()
    result = trainer.evaluate()
    assert result["eval_accuracy"] == sum(row[0] == label for row, label in zip(top_2, labels, strict=True)) / 6
    assert result["eval_top_2_accuracy"] == sum(label in row for row, label in zip(top_2, labels, strict=True)) / 6
