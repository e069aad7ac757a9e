import numpy as np
import pytest
import torch
from metric_cases import compute_pycocotools

from mobilevit_hf.evaluation.average_precision import average_precision, group_by_class
from mobilevit_hf.evaluation.matcher import match


def random_case(count, seed, crowds):
    """Return detections and targets of images in the format of `CocoMap`; all scores differ."""
    generator = np.random.default_rng(seed)
    detections, targets = [], []
    for _ in range(count):
        number = int(generator.integers(0, 7))
        corner, sides = generator.uniform(0, 200, (number, 2)), generator.uniform(5, 100, (number, 2))
        boxes, labels = np.concatenate([corner, corner + sides], axis=1), generator.integers(0, 4, number)
        source = generator.integers(0, number, 30) if number else np.zeros(0, dtype=int)
        near = boxes[source] + generator.normal(0, 6, (len(source), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        classes = np.where(generator.random(len(source)) < 0.8, labels[source], generator.integers(0, 5, len(source)))
        detections.append({"boxes": near, "labels": classes, "scores": generator.random(len(source))})
        iscrowd = (generator.random(number) < crowds).astype(int)
        targets.append({"boxes": boxes, "labels": labels, "iscrowd": iscrowd, "area": sides.prod(axis=1)})
    tensors = [[{k: torch.tensor(v) for k, v in image.items()} for image in part] for part in (detections, targets)]
    return [[image | {"boxes": image["boxes"].reshape(-1, 4)} for image in part] for part in tensors]


def match_all(detections, targets):
    return group_by_class([match(*pair)[0] for pair in zip(detections, targets, strict=True)])


def pycocotools_map(detections, targets, indices):
    """Return map and map_50 of pycocotools on the images at the indices, which may repeat."""
    statistics, _ = compute_pycocotools([detections[i] for i in indices], [targets[i] for i in indices])
    return statistics[:2]


@pytest.mark.parametrize("crowds", [0, 0.4])
def test_weighted_precision_equals_pycocotools_on_the_resampled_images(crowds):
    detections, targets = random_case(20, seed=3, crowds=crowds)
    weights = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), size=4).T
    weights = np.concatenate([np.ones((20, 1), dtype=weights.dtype), weights], axis=1)
    precision = average_precision(match_all(detections, targets), weights)
    for of_resample, counts in zip(np.moveaxis(precision, -1, 0), weights.T, strict=True):
        expected = pycocotools_map(detections, targets, np.repeat(np.arange(20), counts))
        assert [np.nanmean(of_resample), np.nanmean(of_resample[:, 0])] == pytest.approx(expected, abs=1e-9)


def test_class_without_objects_in_the_resample_is_excluded():
    detections, targets = random_case(6, seed=1, crowds=0)
    rare = next(i for i, target in enumerate(targets) if len(target["labels"]))
    targets[rare]["labels"][0] = 4  # the only object of this class
    precision = average_precision(match_all(detections, targets), np.array([[int(i != rare)] for i in range(6)]))
    assert np.isnan(precision[-1]).all()
    others = [i for i in range(6) if i != rare]
    assert np.nanmean(precision) == pytest.approx(pycocotools_map(detections, targets, others)[0], abs=1e-9)
