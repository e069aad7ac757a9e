"""Number of images or objects of each class in the splits of a dataset."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..data.types import Dataset, Sample
from ..evaluation.class_mapping import match_classes


def count_classes(dataset: Dataset, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the number of images or objects by split and class name of the model.

    Streams, and rows whose labels can't be read without their images, are left out, as are masks: reading all of them
    takes as long as an evaluation.
    """
    if dataset.task == "image-segmentation":
        return {}
    targets, _ = match_classes(dict(enumerate(classes)), dataset.classes)
    counts = {}
    for split, samples in dataset.splits.items():
        if isinstance(samples, Sequence) and (isinstance(samples, list) or hasattr(samples, "labels_at")):
            labels = Counter(label for index in range(len(samples)) for label in _labels(samples, index))
            counts[split] = {classes[target]: labels[label] for label, target in enumerate(targets)}
    return counts


def _labels(samples: Any, index: int) -> list[int]:
    if hasattr(samples, "labels_at"):
        return samples.labels_at(index)
    sample: Sample = samples[index]
    if sample.objects is not None:
        return sample.objects.labels.tolist()
    return [] if sample.label is None else [sample.label]
