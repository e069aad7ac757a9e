import dataclasses
import pickle

import numpy as np
import pytest
import torch
from evaluation_cases import compute_in_shards

from mobilevit_hf.data.types import Sample
from mobilevit_hf.evaluation import EvaluationResult
from mobilevit_hf.evaluation.classification import ClassificationMetrics
from mobilevit_hf.evaluation.inference import Prepared
from mobilevit_hf.metrics import TopKAccuracy


def random_logits(count, num_classes, seed=0, decimals=1):
    """Return logits (count, num_classes), with many ties for 0 decimals, and samples of mostly the predicted class."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, num_classes)).round(decimals).astype(np.float32)
    labels = np.where(generator.random(count) < 0.6, logits.argmax(axis=1), generator.integers(0, num_classes, count))
    return logits, [Sample(f"{i}.jpg", None, label=label) for i, label in enumerate(labels.tolist())]


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("num_classes", [4, 9, 10])
def test_metrics_equal_top_k_accuracy(num_classes, num_shards):
    logits, samples = random_logits(150, num_classes, decimals=0)
    names = {i: f"class {i}" for i in range(num_classes)} | {1: "class 0"}  # a duplicate name
    metrics, _ = compute_in_shards(
        lambda: ClassificationMetrics(None, names, range(num_classes)), logits, samples, num_shards
    )
    reference = TopKAccuracy(keep_in_memory=True)
    reference.add_batch(predictions=logits, references=[sample.label for sample in samples])
    expected = reference.compute(k=(1, 5) if num_classes >= 10 else 1, id2label=names)
    result = metrics.compute()
    ece = result.pop("ece")
    assert result == expected
    assert list(result) == list(expected)
    probabilities = torch.tensor(logits).softmax(dim=1)
    confidence, predictions = (values.numpy() for values in probabilities.max(dim=1))
    is_correct = predictions == np.array([sample.label for sample in samples])
    bins = np.ceil(15 * confidence.astype(float)).astype(int)
    gaps = [abs((confidence[bins == b].astype(float) - is_correct[bins == b]).sum()) for b in set(bins.tolist())]
    assert ece == pytest.approx(sum(gaps) / 150, abs=1e-6)


@pytest.mark.parametrize("num_shards", [1, 2])
def test_confusion_matrix_and_mistakes_use_the_models_classes(num_shards):
    """The model has the dataset's classes in another order, and one more."""
    logits, samples = random_logits(120, 5, seed=1)
    samples = [dataclasses.replace(sample, label=sample.label % 4) for sample in samples]
    names, targets = dict(enumerate("abcde")), [3, 0, 4, 1]
    metrics, _ = compute_in_shards(lambda: ClassificationMetrics(None, names, targets), logits, samples, num_shards)
    confusion, wrong = np.zeros((5, 5), dtype=np.int64), []
    for index, (row, sample) in enumerate(zip(logits.tolist(), samples, strict=True)):
        target, prediction = targets[sample.label], row.index(max(row))
        confusion[target, prediction] += 1
        if target != prediction:
            probability = torch.tensor(row).softmax(dim=0)[prediction].item()
            wrong.append((-probability, index, sample.name, names[target], names[prediction]))
    assert metrics.confusion_matrix().dtype == np.int64
    np.testing.assert_array_equal(metrics.confusion_matrix(), confusion)
    result = EvaluationResult(
        "image-classification", {}, {}, None, 1.0, 120, predictions=metrics.predictions(), classes=[*names.values()]
    )
    mistakes = result.mistakes
    assert len(wrong) > 24
    assert len(mistakes) == 24
    for mistake, (score, *expected) in zip(mistakes, sorted(wrong), strict=False):
        assert [mistake.index, mistake.name, mistake.target, mistake.prediction] == expected
        assert mistake.score == pytest.approx(-score, rel=1e-5)


def test_state_takes_few_bytes_per_image():
    logits, samples = random_logits(100, 12)
    sizes = []
    for times in (2, 20):
        metrics = ClassificationMetrics(None, dict(enumerate("abcdefghijkl")), range(12))
        for start in range(0, 100 * times, 100):
            metrics.update(logits, [Prepared(start + i, sample, None, (1, 1)) for i, sample in enumerate(samples)])
        sizes.append(len(pickle.dumps(metrics.state)))
    assert sizes[1] - sizes[0] < 60 * 1800


def test_predictions_and_loss_equal_those_of_torch():
    logits, samples = random_logits(60, 12, seed=2)
    logits *= 4
    logits[0, 3], logits[0, 4], samples[0] = 300, -300, dataclasses.replace(samples[0], label=4)  # probability 0
    metrics, _ = compute_in_shards(
        lambda: ClassificationMetrics(None, dict(enumerate("abcdefghijkl")), range(12)), logits, samples, 3
    )
    targets = torch.tensor([sample.label for sample in samples])
    probabilities = torch.tensor(logits).softmax(dim=1)
    result = metrics.predictions()
    assert (result.indices.tolist(), result.names) == (list(range(60)), [sample.name for sample in samples])
    assert (result.targets == targets.numpy()).all()
    assert (result.predictions == probabilities.argmax(dim=1).numpy()).all()
    assert result.scores == pytest.approx(probabilities.amax(dim=1).numpy(), rel=1e-5)
    assert result.target_scores == pytest.approx(probabilities[range(60), targets].numpy(), rel=1e-4, abs=1e-30)
    assert result.scores.dtype == result.target_scores.dtype == np.float32
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), targets).item()
    assert expected > 10
    assert metrics.losses() == {"loss": pytest.approx(expected, rel=1e-5)}
