import dataclasses
import warnings

import numpy as np
import pytest
import torch
from dataset_files import make_images, png_bytes
from evaluation_cases import compute_in_shards
from metric_cases import (
    HANDMADE,
    assert_matches_pycocotools,
    compute_class_metrics,
    detections,
    objects,
    random_images,
)

import mobilevit_hf
from mobilevit_hf.data.types import Objects, Sample
from mobilevit_hf.evaluation import evaluate_model
from mobilevit_hf.evaluation.detection import DetectionMetrics
from mobilevit_hf.evaluation.inference import Prepared
from mobilevit_hf.metrics import CocoMap

NAMES = ["cat", "dog", "fish", "owl"]


def make_metrics():
    return DetectionMetrics(None, {i: i for i in range(9)}, list(range(9)))


def convert_inputs(predictions, references):
    """Return predictions of `CocoMap` as tensors, references as samples and with the precision of `Objects`."""
    tensors = [{name: torch.tensor(np.array(value)) for name, value in image.items()} for image in predictions]
    tensors = [image | {"boxes": image["boxes"].reshape(-1, 4)} for image in tensors]
    targets = [
        Objects.from_lists(
            *(np.asarray(r[k]).tolist() if k in r else None for k in ("boxes", "labels", "iscrowd", "area"))
        )
        for r in references
    ]
    exact = [{"boxes": o.boxes, "labels": o.labels, "iscrowd": o.iscrowd, "area": o.areas} for o in targets]
    return tensors, [Sample(str(i), None, objects=o) for i, o in enumerate(targets)], exact


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize(("seed", "most_detections"), [(0, 30), (1, 60), (2, 700)])
def test_metrics_equal_coco_map_and_pycocotools(seed, most_detections, num_shards):
    predictions, samples, references = convert_inputs(*random_images(seed, 14, most_detections))
    metrics, _ = compute_in_shards(make_metrics, predictions, samples, num_shards)
    result = metrics.compute()
    assert_matches_pycocotools(result, predictions, references)
    reference = CocoMap(keep_in_memory=True)
    reference.add_batch(predictions=predictions, references=references)
    expected = reference.compute()
    of_classes = result.pop("per_class_metrics")
    for name, expected_row in compute_class_metrics(predictions, references).items():
        assert {key: of_classes[name][key] for key in expected_row} == pytest.approx(expected_row, abs=1e-9)
    assert len({row["map_small"] for row in of_classes.values()}) > 3
    assert result.pop("per_class") == pytest.approx(expected.pop("per_class"), abs=1e-9)
    assert result == pytest.approx(expected, abs=1e-9)
    assert len(set(result.values())) == 12


BOUNDS = [[0, 0, 32, 32], [100, 0, 196, 96]]
SPECIAL = {case: images for case, images in HANDMADE.items() if images[0]} | {
    "areas at a bound": ([detections(BOUNDS)], [objects(BOUNDS)]),
    "wrong detections with areas at a bound": (
        [detections([*BOUNDS, [0, 0, 10, 10]], [0.9, 0.8, 0.7])],
        [objects([[0, 0, 10, 10], [300, 0, 350, 50], [400, 0, 600, 90]])],
    ),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_metrics_of_special_cases_equal_pycocotools(case):
    predictions, samples, references = convert_inputs(*SPECIAL[case])
    metrics, _ = compute_in_shards(make_metrics, predictions, samples, 1)
    assert_matches_pycocotools(metrics.compute(), predictions, references)


def test_state_takes_few_bytes_per_box():
    predictions, samples, _ = convert_inputs(*random_images(0, 3, 700))
    predictions = [image | {name: image[name].float() for name in ("boxes", "scores")} for image in predictions]
    _, (state,) = compute_in_shards(make_metrics, predictions, samples, 1)
    num_boxes = sum(len(image["boxes"]) for image in predictions)
    assert num_boxes > 500
    assert len(state) < 40 * num_boxes + 3000 * len(predictions)


@pytest.mark.parametrize("box", [[5, 5, 3, 9], [0, 0, float("inf"), 4]])
@pytest.mark.parametrize("side", ["prediction", "target"])
def test_invalid_boxes_are_rejected(box, side):
    boxes = {"prediction": [[0, 0, 2, 2]], "target": [[0, 0, 2, 2]]} | {side: [box]}
    prediction = {
        "boxes": torch.tensor(boxes["prediction"]).float(),
        "scores": torch.ones(1),
        "labels": torch.zeros(1),
    }
    sample = Sample("a.jpg", None, objects=Objects.from_lists(boxes["target"], [0]))
    with pytest.raises(ValueError, match=r"a\.jpg: got boxes .*torchvision"):
        make_metrics().update([prediction], [Prepared(0, sample, None, (9, 9))])


def test_resamples_without_objects_are_excluded_from_the_intervals():
    predictions = [detections([[0, 0, 10, 10]], [0.9]), detections([], [])]
    predictions, samples, _ = convert_inputs(predictions, [objects([[0, 0, 10, 10]]), objects([])])
    metrics, _ = compute_in_shards(make_metrics, predictions, samples, 1)
    with warnings.catch_warnings(action="error"):
        intervals = metrics.confidence_intervals(metrics.compute(), 200, np.random.default_rng(0))
    expected = (pytest.approx(2 / (2 + 1.96**2), abs=1e-4), 1)
    assert intervals == {"map": expected, "map_50": expected, "map_75": expected}


def test_images_without_objects_or_detections(detector_dir):
    detect = mobilevit_hf.pipeline("object-detection", str(detector_dir))
    detect.image_processor.score_threshold = 1.0
    image = png_bytes(next(make_images(1)))
    empty = [Sample("a", image, objects=Objects.from_lists([], []))]
    result = evaluate_model(detect.model, detect.image_processor, empty, NAMES)
    assert (result.metrics["map"], result.intervals, result.best_threshold) == (-1, {}, None)
    missed = [Sample("a", image, objects=Objects.from_lists([[1, 2, 30, 40]], [1]))]
    result = evaluate_model(detect.model, detect.image_processor, missed, NAMES)
    assert (result.metrics["map"], result.best_threshold) == (0, None)
    assert result.intervals["map"] == (0, pytest.approx(1.96**2 / (1 + 1.96**2), abs=1e-4))


# --- best threshold --------------------------------------------------------------------------------------------------


def test_best_threshold_and_mistakes_equal_counts_image_by_image(detector_dir):
    detect = mobilevit_hf.pipeline("object-detection", str(detector_dir))
    samples = make_samples(detect)
    result = evaluate_model(detect.model, detect.image_processor, samples, NAMES)
    best = result.best_threshold
    detect._get_bounding_box = lambda box: box.tolist()  # exact boxes
    predictions = [sorted(detect(s.image, threshold=0.01), key=lambda p: -p["score"]) for s in samples]
    scores = sorted({prediction["score"] for image in predictions for prediction in image})
    counts = {
        threshold: count_matches(samples, predictions, threshold)
        for threshold in (best.value, *scores[:: len(scores) // 60])
    }
    f1 = {threshold: 2 * hits / (detected + present) for threshold, (hits, detected, present) in counts.items()}
    assert max(f1.values()) == f1[best.value] == pytest.approx(best.f1, abs=1e-9)
    hits, detected, present = counts[best.value]
    assert (best.precision, best.recall) == pytest.approx((hits / detected, hits / present))
    mistakes = []
    for index, (sample, image) in enumerate(zip(samples, predictions, strict=True)):
        hits, detected, present = count_matches([sample], [image], best.value)
        if errors := present - hits + detected - hits:
            target = f"{present} object{'s' * (present != 1)}"
            mistakes.append((-errors, index, sample.name, target, f"{present - hits} missed, {detected - hits} wrong"))
    assert len({errors for errors, *_ in mistakes}) > 3
    assert [(-m.score, m.index, m.name, m.target, m.prediction) for m in result.mistakes] == sorted(mistakes)


def test_metrics_at_the_recommended_threshold_equal_counts_image_by_image(detector_dir):
    detect = mobilevit_hf.pipeline("object-detection", str(detector_dir))
    detect.model.config.recommended_threshold = 0.4
    samples = make_samples(detect)
    result = evaluate_model(detect.model, detect.image_processor, samples, NAMES)
    detect._get_bounding_box = lambda box: box.tolist()  # exact boxes
    predictions = [sorted(detect(s.image, threshold=0.01), key=lambda p: -p["score"]) for s in samples]
    hits, detected, present = count_matches(samples, predictions, 0.4)
    expected = {"value": 0.4, "precision": hits / detected, "recall": hits / present}
    assert vars(result.recommended_threshold) == pytest.approx(expected | {"f1": 2 * hits / (detected + present)})
    assert result.threshold == 0.4
    assert result.best_threshold.f1 > result.recommended_threshold.f1
    confusion = result.confusion
    assert confusion.diagonal().sum() == hits
    assert (confusion[:, :-1].sum(), confusion[:-1].sum()) == (detected, present)
    for label, name in enumerate(NAMES):
        row, predicted = result.metrics["per_class_metrics"][name], confusion[:, label].sum()
        assert row["precision"] == pytest.approx(confusion[label, label] / max(predicted, 1))
        assert row["recall"] == pytest.approx(confusion[label, label] / row["support"])
        assert row["f1"] == pytest.approx(2 * confusion[label, label] / (predicted + row["support"]))
        assert row["count_bias"] == pytest.approx((predicted - row["support"]) / len(samples))
    errors = [float(mistake.prediction.split()[0]) for mistake in result.mistakes]  # missed objects
    assert sum(errors) == present - hits
    selected = evaluate_model(detect.model, detect.image_processor, samples, NAMES, resamples=0, select_threshold=True)
    assert selected.threshold == selected.recommended_threshold.value == round(result.best_threshold.value, 3)
    assert selected.best_threshold == result.best_threshold


def test_loss_equals_that_of_the_model(detector_dir):
    """The loss of a batch counts as often as it has objects; crowds and boxes outside of the image have no loss."""
    detect = mobilevit_hf.pipeline("object-detection", str(detector_dir))
    model, processor, samples = detect.model, detect.image_processor, make_samples(detect, 7)
    outside = Objects.from_lists([[280, 180, 360, 300], [400, 10, 440, 60]], [0, 1])
    samples[0] = dataclasses.replace(
        samples[0],
        objects=Objects(
            *(torch.cat(pair) for pair in zip(vars(samples[0].objects).values(), vars(outside).values(), strict=True))
        ),
    )
    losses, counts = [], []
    for batch in (samples[:4], samples[4:]):
        annotations = [
            {
                "image_id": index,
                "annotations": [
                    {"bbox": [x1, y1, min(x2, 320) - x1, min(y2, 240) - y1], "category_id": label}
                    for (x1, y1, x2, y2), label, is_crowd in zip(
                        sample.objects.boxes.tolist(),
                        sample.objects.labels.tolist(),
                        sample.objects.iscrowd.tolist(),
                        strict=True,
                    )
                    if not is_crowd and x1 < 320 and y1 < 240
                ],
            }
            for index, sample in enumerate(batch)
        ]
        inputs = processor([sample.image for sample in batch], annotations=annotations, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        losses.append(
            [outputs.loss.item(), outputs.loss_dict["loss_ce"].item(), outputs.loss_dict["loss_bbox"].item()]
        )
        counts.append(sum(int((sample.objects.iscrowd == 0).sum()) for sample in batch))
    assert counts[0] != counts[1]
    expected = np.average(losses, axis=0, weights=counts)
    result = evaluate_model(model, processor, samples, NAMES, batch_size=4, resamples=0)
    assert list(result.losses) == ["loss", "loss_ce", "loss_bbox"]
    assert list(result.losses.values()) == pytest.approx(expected.tolist(), rel=1e-4)
    assert result.losses["loss"] == pytest.approx(result.losses["loss_ce"] + result.losses["loss_bbox"])


def make_samples(detect, count=12):
    """Return images with objects near the model's detections, some of them crowds."""
    generator = np.random.default_rng(5)
    samples = []
    for i, image in enumerate(make_images(count, (320, 240))):
        detected = sorted(detect(image, threshold=0.3), key=lambda p: -p["score"])[: 40 : 1 + i % 3]
        boxes = np.array([list(p["box"].values()) for p in detected]).reshape(-1, 4)
        boxes = (boxes + generator.normal(0, 5, boxes.shape)).clip(0, (320, 240) * 2)
        keep = (boxes[:, 2:] - boxes[:, :2] >= 4).all(axis=1)
        labels = np.array([NAMES.index(p["label"]) for p in detected], dtype=int)[keep]
        crowds = (generator.random(len(labels)) < 0.1).astype(int)
        targets = Objects.from_lists(boxes[keep].tolist(), labels.tolist(), crowds.tolist())
        samples.append(Sample(f"{i}.png", image, objects=targets))
    return samples


def count_matches(samples, predictions, threshold):
    """Count hits, detections and objects at an IoU of 0.5; detections in a crowd are not counted."""
    hits = detected = present = 0
    for sample, image in zip(samples, predictions, strict=True):
        targets = list(
            zip(sample.objects.boxes.tolist(), sample.objects.labels, sample.objects.iscrowd.tolist(), strict=True)
        )
        unmatched = [(box, NAMES[label]) for box, label, crowd in targets if not crowd]
        crowds = [(box, NAMES[label]) for box, label, crowd in targets if crowd]
        present += len(unmatched)
        for prediction in image:
            if prediction["score"] <= threshold:
                continue
            box, label = prediction["box"], prediction["label"]
            ious = [iou(box, other) if name == label else 0 for other, name in unmatched]
            if ious and max(ious) >= 0.5:
                unmatched.pop(int(np.argmax(ious)))
                hits += 1
            elif any(name == label and iou(box, other, crowd=True) >= 0.5 for other, name in crowds):
                continue
            detected += 1
    return hits, detected, present


def iou(box, other, crowd=False):
    width, height = (min(box[2 + i], other[2 + i]) - max(box[i], other[i]) for i in range(2))
    intersection = width * height if width > 0 and height > 0 else 0
    area, other_area = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return intersection / (area if crowd else area + other_area - intersection)
