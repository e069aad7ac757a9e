"""Results of evaluations, and samples, for the tests of reports."""

import io

import numpy as np
from detection_cases import random_detected_images
from PIL import Image

from mobilevit_hf.data.types import Sample
from mobilevit_hf.evaluation import EvaluationResult
from mobilevit_hf.evaluation.average_precision import coco_statistics, group_by_class
from mobilevit_hf.evaluation.curves import threshold_curve
from mobilevit_hf.evaluation.detection_errors import confusion_matrix
from mobilevit_hf.evaluation.inference import Prepared
from mobilevit_hf.evaluation.predictions import ClassifiedImages
from mobilevit_hf.evaluation.segmentation import LabelMaps, SegmentationMetrics

CLASSES = ["cat", "dog", "fish", "owl"]


def png(size=(60, 40), color="teal"):
    """Return the content of a PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def make_samples(names, size=(60, 40)):
    """Return samples whose images have different colors."""
    return [Sample(name, png(size, (5 * i % 256, 90, 90))) for i, name in enumerate(names)]


def classification_result(names=None, seed=0, classes=CLASSES, **changes):
    """Return the evaluation of a classifier on images with random predictions, two thirds of them correct."""
    names = [f"validation/{i}.jpg" for i in range(40)] if names is None else names
    generator, count = np.random.default_rng(seed), len(names)
    targets = generator.integers(0, len(classes), count)
    others = (targets + generator.integers(1, len(classes), count)) % len(classes)
    predictions = np.where(generator.random(count) < 2 / 3, targets, others)
    scores = generator.uniform(0.4, 1, count).astype(np.float32)
    target_scores = np.where(predictions == targets, scores, (1 - scores) / 2).astype(np.float32)
    confusion = np.zeros((len(classes),) * 2, dtype=np.int64)
    np.add.at(confusion, (targets, predictions), 1)
    correct, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    per_class = {
        name: {
            "precision": correct[i] / max(predicted[i], 1),
            "recall": correct[i] / max(support[i], 1),
            "f1": 2 * correct[i] / max(support[i] + predicted[i], 1),
            "support": int(support[i]),
        }
        for i, name in enumerate(classes)
    }
    accuracy = float((predictions == targets).mean())
    values = {
        "task": "image-classification",
        "metrics": {"accuracy": accuracy, "macro_f1": 0.5, "per_class": per_class},
        "intervals": {"accuracy": (accuracy - 0.1, accuracy + 0.1)},
        "best_threshold": None,
        "images_per_second": 9.0,
        "num_images": count,
        "confusion": confusion,
        "predictions": ClassifiedImages(np.arange(count), list(names), targets, predictions, scores, target_scores),
        "losses": {"loss": 0.75},
        "classes": list(classes),
    }
    return EvaluationResult(**values | changes)


def detection_result(images=None, classes=CLASSES, **changes):
    """Return the evaluation of a detector on random images, at the threshold with the highest F1."""
    images = random_detected_images(0) if images is None else images
    matches = group_by_class([image.matches for image in images])
    best = threshold_curve(matches).best()
    values = {
        "task": "object-detection",
        "metrics": coco_statistics(matches, len(images), dict(enumerate(classes))),
        "intervals": {"map": (0.2, 0.5)},
        "best_threshold": best,
        "images_per_second": 9.0,
        "num_images": len(images),
        "confusion": confusion_matrix(images, best.value if best else -1.0, len(classes)),
        "predictions": images,
        "losses": {"loss": 2.0, "loss_ce": 1.5, "loss_bbox": 0.5},
        "classes": list(classes),
    }
    return EvaluationResult(**values | changes)


def label_maps(count=30, seed=0, num_classes=4):
    """Return predictions and masks (40, 60) of `count` images; the last image has no labeled pixel."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, num_classes, (count, 4, 6))
    masks = blocks.repeat(10, axis=1).repeat(10, axis=2)
    predictions = np.stack([np.roll(mask, shift, 1) for mask, shift in zip(masks, range(count), strict=True)])
    masks[:, :2] = -1
    masks[-1] = -1
    return predictions, masks


def segmentation_result(names=None, seed=0, classes=CLASSES, **changes):
    """Return the evaluation of a segmentation model whose predictions are moved masks."""
    names = [f"validation/{i}.jpg" for i in range(30)] if names is None else names
    metrics = SegmentationMetrics(None, dict(enumerate(classes)), range(len(classes)))
    for index, (prediction, mask) in enumerate(zip(*label_maps(len(names), seed, len(classes)), strict=True)):
        prepared = Prepared(index, Sample(names[index], None), None, mask.shape)
        metrics.update([LabelMaps(prediction, mask)], [prepared])
    metrics.merge([metrics.state])
    values = {
        "task": "image-segmentation",
        "metrics": metrics.compute(),
        "intervals": {"mean_iou": (0.2, 0.5)},
        "best_threshold": None,
        "images_per_second": 9.0,
        "num_images": len(names),
        "confusion": metrics.confusion_matrix(),
        "predictions": metrics.predictions(),
        "losses": metrics.losses(),
        "classes": list(classes),
    }
    return EvaluationResult(**values | changes)
