"""Detected images for the tests of a detector's evaluation."""

import numpy as np
import torch

from mobilevit_hf.evaluation.matcher import match
from mobilevit_hf.evaluation.predictions import DetectedImage


def make_detected_image(detections, objects, index=0, crowds=()):
    """Return an image with detections (box, label, score) and objects (box, label), and indices of crowds."""
    boxes, labels, scores = zip(*detections, strict=True) if detections else ((), (), ())
    object_boxes, classes = zip(*objects, strict=True) if objects else ((), ())
    detected = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }
    targets = {"boxes": torch.tensor(object_boxes, dtype=torch.float32).reshape(-1, 4)}
    targets |= {"labels": torch.tensor(classes, dtype=torch.int64)}
    targets |= {"iscrowd": torch.tensor([int(i in crowds) for i in range(len(objects))])}
    targets |= {"area": (targets["boxes"][:, 2:] - targets["boxes"][:, :2]).prod(dim=1)}
    matches, order = match(detected, targets)
    return DetectedImage(
        index=index,
        name=f"{index}.jpg",
        size=(300, 300),
        boxes=detected["boxes"].numpy()[order],
        matches=matches,
        object_boxes=targets["boxes"].numpy(),
        is_crowd=targets["iscrowd"].numpy().astype(bool),
    )


def random_detected_images(seed, count=12, crowds=0.0, num_classes=4):
    """Return images with detections near the objects, with some of another class, and in the background."""
    generator, images = np.random.default_rng(seed), []
    for index in range(count):
        number = int(generator.integers(0, 8))
        corners, sides = generator.uniform(0, 200, (number, 2)), generator.uniform(15, 100, (number, 2))
        boxes, labels = np.concatenate([corners, corners + sides], axis=1), generator.integers(0, num_classes, number)
        source = generator.integers(0, number, 30) if number else np.zeros(0, dtype=int)
        near = boxes[source] + generator.normal(0, generator.choice([3, 15, 40], (len(source), 1)), (len(source), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        corners = generator.uniform(0, 200, (6, 2))
        near = np.concatenate([near, np.concatenate([corners, corners + 30], axis=1)])
        others = generator.integers(0, num_classes, len(near))
        is_other = np.append(generator.random(len(source)) > 0.8, np.ones(6, dtype=bool))
        classes = np.where(is_other, others, np.append(labels[source], np.zeros(6, dtype=int)))
        detections = list(zip(near.tolist(), classes.tolist(), generator.random(len(near)).tolist(), strict=True))
        objects = list(zip(boxes.tolist(), labels.tolist(), strict=True))
        chosen = np.flatnonzero(generator.random(number) < crowds).tolist()
        images.append(make_detected_image(detections, objects, index, chosen))
    return images


def to_metric_inputs(images):
    """Return predictions and references of `CocoMap`."""
    predictions = [
        {"boxes": image.boxes, "scores": image.matches.scores, "labels": image.matches.labels} for image in images
    ]
    references = [
        {"boxes": image.object_boxes, "labels": image.matches.objects, "iscrowd": image.is_crowd.astype(int)}
        for image in images
    ]
    return predictions, references
