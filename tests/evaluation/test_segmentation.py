import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
import transformers
from dataset_files import make_images, png_bytes
from scipy import ndimage
from transformers import AutoImageProcessor

import mobilevit_hf
from mobilevit_hf.data.masks import Mask
from mobilevit_hf.data.types import Sample
from mobilevit_hf.evaluation import EvaluationResult, evaluate_model, take_whole_images
from mobilevit_hf.evaluation.evaluator import evaluate_folds
from mobilevit_hf.evaluation.inference import Prepared
from mobilevit_hf.evaluation.predictions import CompressedLabelMap
from mobilevit_hf.evaluation.segmentation import LabelMaps, SegmentationMetrics
from mobilevit_hf.metrics import MeanIoU

NAMES = ["cat", "dog", "fish", "owl"]
# The model has the dataset's classes in another order, and two more, the last of which never occurs.
MODEL_NAMES, TARGETS = dict(enumerate("abcdef")), [3, 0, 4, 1]
METRICS = ("mean_iou", "pixel_accuracy", "mean_dice", "boundary_iou")


def random_maps(count, seed=0):
    """Return label maps of several sizes: predictions of classes 0..4, and masks of a dataset of four classes."""
    generator = np.random.default_rng(seed)
    predictions, masks = [], []
    for _ in range(count):
        size = generator.integers(20, 60, 2)
        blocks = generator.integers(0, 4, (4, 4)).astype(np.uint8)
        mask = np.kron(blocks, np.ones((15, 15), np.uint8))[: size[0], : size[1]]
        prediction = np.array(TARGETS)[np.roll(mask, generator.integers(-3, 4, 2), (0, 1))]
        prediction[generator.random(mask.shape) < 0.1] = 2
        mask = np.where(ndimage.uniform_filter(generator.random(mask.shape), 5) < 0.42, 255, mask).astype(np.uint8)
        predictions.append(prediction)
        masks.append(mask)
    return predictions, masks


def measure(predictions, masks, num_shards=1):
    """Return metrics merged from shards, each updated with every `num_shards`-th image."""
    states = []
    for shard in range(num_shards):
        metrics = SegmentationMetrics(None, MODEL_NAMES, TARGETS)
        for index in reversed(range(shard, len(masks), num_shards)):
            target = metrics.class_indices[masks[index]]
            prepared = Prepared(index, Sample(f"{index}.png", None), None, target.shape, masks[index])
            metrics.update([LabelMaps(predictions[index], target)], [prepared])
        states.append(pickle.dumps(metrics.state))
    metrics = SegmentationMetrics(None, MODEL_NAMES, TARGETS)
    metrics.merge(pickle.loads(state) for state in reversed(states))
    return metrics


def to_model_classes(mask):
    """Return the target of each pixel as the model's class, 255 for pixels to ignore."""
    return np.array([TARGETS[value] if value != 255 else 255 for value in mask.ravel()]).reshape(mask.shape)


def compute_with_masks(predictions, masks):
    """Return IoU, Dice, accuracy and pixels per class, from one boolean mask per class over all pixels."""
    predicted = np.concatenate([p.ravel() for p in predictions])
    target = np.concatenate([to_model_classes(mask).ravel() for mask in masks])
    predicted, target = predicted[target != 255], target[target != 255]
    rows = {}
    for label in sorted({*predicted.tolist(), *target.tolist()}):
        a, b = predicted == label, target == label
        rows[MODEL_NAMES[label]] = {
            "iou": (a & b).sum() / (a | b).sum(),
            "dice": 2 * (a & b).sum() / (a.sum() + b.sum()),
            "accuracy": (a & b).sum() / b.sum() if b.any() else 0.0,
            "pixels": b.sum(),
        }
    return rows, (predicted == target).mean()


def compute_boundary_iou(predictions, masks):
    """Return the mean boundary IoU by eroding the mask of each class, as in the paper's code."""
    intersections, unions = np.zeros(6), np.zeros(6)
    for prediction, mask in zip(predictions, masks, strict=True):
        distance = max(1, round(0.02 * np.hypot(*mask.shape)))
        target = to_model_classes(mask)
        for label in range(6):
            a, b = (
                m & ~ndimage.binary_erosion(m, np.ones((3, 3)), iterations=distance)
                for m in ((prediction == label) & (target != 255), target == label)
            )
            intersections[label] += (a & b).sum()
            unions[label] += (a | b).sum()
    return np.mean([i / u for i, u in zip(intersections, unions, strict=True) if u])


@pytest.mark.parametrize("num_shards", [1, 3])
def test_metrics_equal_those_of_one_mask_per_class(num_shards):
    predictions, masks = random_maps(9)
    rows, accuracy = compute_with_masks(predictions, masks)
    result = measure(predictions, masks, num_shards).compute()
    assert {name: pytest.approx(row, abs=1e-9) for name, row in rows.items()} == result["per_class"]
    assert set(rows) == set("abcde")
    assert rows["c"]["pixels"] == 0
    assert {name: result[name] for name in METRICS} == pytest.approx(
        {
            "mean_iou": np.mean([row["iou"] for row in rows.values()]),
            "pixel_accuracy": accuracy,
            "mean_dice": np.mean([row["dice"] for row in rows.values()]),
            "boundary_iou": compute_boundary_iou(predictions, masks),
        },
        abs=1e-9,
    )
    reference = MeanIoU(keep_in_memory=True)
    targets = [to_model_classes(mask) for mask in masks]
    assert reference.compute(predictions=predictions, references=targets)["mean_iou"] == result["mean_iou"]


def test_metrics_of_a_small_map():
    """Results of evaluate's `mean_iou` for the same map, with the model's class indices and 255 to ignore."""
    mask = np.array([[0, 0, 1, 1], [0, 2, 2, 255], [0, 2, 3, 3]], np.uint8)
    prediction = np.array([[3, 0, 0, 0], [3, 4, 4, 1], [3, 3, 1, 4]])
    result = measure([prediction], [mask]).compute()
    assert result["mean_iou"] == pytest.approx(0.5666666666666667, abs=1e-9)
    assert result["pixel_accuracy"] == pytest.approx(0.7272727272727273, abs=1e-9)
    rows = result["per_class"]
    assert list(rows) == ["a", "b", "d", "e"]
    assert [row["iou"] for row in rows.values()] == pytest.approx([0.66666667, 0.5, 0.6, 0.5])
    assert [row["accuracy"] for row in rows.values()] == pytest.approx([1, 0.5, 0.75, 0.66666667])
    assert [row["pixels"] for row in rows.values()] == [2, 2, 4, 3]


def test_intervals_resample_images():
    """The same resamples, with the pixels of each drawn image repeated."""
    predictions, masks = random_maps(12, seed=1)
    metrics = measure(predictions, masks)
    values = metrics.compute()
    intervals = metrics.confidence_intervals(values, 60, np.random.default_rng(7))
    draws = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=60)
    means = []
    for weights in draws:
        chosen = [index for index, weight in enumerate(weights) for _ in range(weight)]
        rows, accuracy = compute_with_masks([predictions[i] for i in chosen], [masks[i] for i in chosen])
        means.append((np.mean([row["iou"] for row in rows.values()]), accuracy))
    for column, name in enumerate(METRICS[:2]):
        ends = np.quantile([row[column] for row in means], [0.025, 0.975])
        assert intervals[name] == pytest.approx(tuple(ends), abs=1e-9)
    assert set(intervals) == set(METRICS)
    assert all(low < values[name] < high for name, (low, high) in intervals.items())
    assert metrics.confidence_intervals(values, 0, np.random.default_rng(7)) == {}


def test_few_images_have_wide_intervals():
    predictions, masks = random_maps(3)
    metrics = measure(predictions, masks)
    low, high = metrics.confidence_intervals(metrics.compute(), 100, np.random.default_rng(0))["mean_iou"]
    assert high - low > 0.4


def test_images_and_mistakes():
    predictions, masks = random_maps(30, seed=2)
    predictions[4] = to_model_classes(masks[4]) % 255  # no mistake
    masks[7][:] = 255  # no labeled pixel
    metrics = measure(predictions, masks, num_shards=2)
    images = metrics.predictions()
    assert [image.name for image in images] == [f"{i}.png" for i in range(30)]
    np.testing.assert_array_equal(metrics.confusion_matrix(), sum(image.confusion for image in images))
    expected = []
    for index, image in enumerate(images):
        assert image.size == masks[index].shape
        if index == 7:
            assert np.isnan([image.mean_iou, image.pixel_accuracy]).all()
            assert not image.confusion.any()
            continue
        rows, accuracy = compute_with_masks(predictions[index : index + 1], masks[index : index + 1])
        mean_iou = np.mean([row["iou"] for row in rows.values()])
        assert (image.mean_iou, image.pixel_accuracy) == pytest.approx((mean_iou, accuracy))
        ious = dict(zip(MODEL_NAMES.values(), image.ious, strict=True))
        assert {name: iou for name, iou in ious.items() if not np.isnan(iou)} == pytest.approx(
            {name: row["iou"] for name, row in rows.items()}
        )
        expected.append((mean_iou, index))
    names = list(MODEL_NAMES.values())
    mistakes = EvaluationResult(
        "image-segmentation", {}, {}, None, 1.0, 30, predictions=images, classes=names
    ).mistakes
    values, indices = zip(*sorted(expected)[:24], strict=True)
    assert [mistake.index for mistake in mistakes] == list(indices)
    assert [1 - mistake.score for mistake in mistakes] == pytest.approx(values)
    worst = mistakes[0]
    predicted, target = predictions[worst.index], to_model_classes(masks[worst.index])
    pairs, counts = np.unique(
        np.stack([target, predicted])[:, (target != 255) & (target != predicted)], axis=1, return_counts=True
    )
    a, b = pairs[:, counts.argmax()]
    fraction = counts.max() / (target != 255).sum()
    assert worst.prediction == (
        f"mean IoU {1 - worst.score:.1%}, mostly {names[a]} as {names[b]} ({fraction:.1%} of the pixels)"
    )
    assert worst.target == f"{len(set(target.ravel().tolist()) - {255})} classes"


def test_label_maps_of_the_worst_and_best_images_are_kept():
    predictions, masks = random_maps(80, seed=3)
    masks[5][:] = 255
    for num_shards in (1, 3):
        images = measure(predictions, masks, num_shards).predictions()
        ranked = sorted((image for image in images if image.index != 5), key=lambda image: image.mean_iou)
        kept = {image.index for image in ranked[:12] + ranked[-12:]}
        assert {image.index for image in images if image.label_maps} == kept
        for image in images:
            if image.label_maps:
                target, prediction = (label_map.to_array() for label_map in image.label_maps)
                expected = to_model_classes(masks[image.index])
                np.testing.assert_array_equal(target, np.where(expected == 255, 65535, expected))
                np.testing.assert_array_equal(prediction, predictions[image.index])


def test_large_label_maps_are_reduced():
    labels = np.kron(np.arange(12).reshape(3, 4), np.ones((500, 500), int))
    reduced = CompressedLabelMap.from_array(labels).to_array()
    assert reduced.shape == (540, 720)
    np.testing.assert_array_equal(reduced, np.kron(np.arange(12).reshape(3, 4), np.ones((180, 180), int)))


def test_state_is_small_with_many_classes():
    """A dense confusion matrix of 200 classes takes 320 kB."""
    metrics = SegmentationMetrics(None, {i: str(i) for i in range(200)}, range(200))
    maps = np.random.default_rng(0).integers(0, 20, (2, 100, 100))
    for index in range(60):
        prepared = Prepared(index, Sample("a", None), None, (100, 100), maps[1].astype(np.uint8))
        metrics.update([LabelMaps(*maps)], [prepared])
    metrics.merge([metrics.state])
    assert len(pickle.dumps(dataclasses.replace(metrics.images[30], label_maps=None))) < 12_000
    assert metrics.images[30].label_maps is None


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmenter(checkpoints):
    """A tiny segmentation model and its image processor, which resizes without a crop."""
    folder = checkpoints["image-segmentation"]
    model = mobilevit_hf.MobileViTForSemanticSegmentation.from_pretrained(folder)
    bias = model.segmentation_head.classifier.convolution.bias
    processor = AutoImageProcessor.from_pretrained(
        folder, do_center_crop=False, size={"height": 64, "width": 64}, resample=2
    )
    with torch.no_grad():  # all classes are predicted
        pixels = processor(list(make_images(4, size=(90, 70))), return_tensors="pt")["pixel_values"]
        logits = model(pixels).logits
        bias -= logits.mean(dim=(0, 2, 3))
        assert len(model(pixels).logits.argmax(dim=1).unique()) > 1
    return model, processor


@pytest.fixture(scope="module")
def samples():
    """Images with masks of four classes and pixels to ignore."""
    generator = np.random.default_rng(0)
    samples = []
    for index, image in enumerate(make_images(12, size=(90, 70))):
        mask = np.kron(generator.integers(0, 5, (7, 9)), np.ones((10, 10))).astype(np.uint8)
        samples.append(Sample(f"{index}.png", png_bytes(image), mask=Mask(np.where(mask == 4, 255, mask))))
    return samples


@pytest.mark.parametrize("batch_size", [1, 5])
def test_metrics_are_those_of_the_stock_pipeline(segmenter, samples, batch_size):
    model, processor = segmenter
    stock = transformers.MobileViTForSemanticSegmentation(transformers.MobileViTConfig(**model.config.to_diff_dict()))
    stock.load_state_dict(model.state_dict())
    segment = transformers.pipeline("image-segmentation", model=stock.eval(), image_processor=processor)
    result = evaluate_model(model, processor, samples, ["owl", "fish", "dog", "cat"], batch_size=batch_size)
    predictions, losses, labeled = [], [], []
    for sample, image in zip(samples, make_images(12, size=(90, 70)), strict=True):
        prediction = np.full((70, 90), -1)
        for part in segment(image):
            prediction[np.asarray(part["mask"]) > 0] = NAMES.index(part["label"])
        predictions.append(prediction)
        mask = sample.mask.read().astype(int)
        labels = torch.tensor(np.where(mask == 255, 255, 3 - mask))[None]
        with torch.no_grad():
            losses.append(stock(processor(image, return_tensors="pt")["pixel_values"], labels=labels).loss.item())
        labeled.append((mask != 255).sum())
    reference = MeanIoU(keep_in_memory=True)
    targets = [np.where((mask := s.mask.read().astype(int)) == 255, 255, 3 - mask) for s in samples]
    expected = reference.compute(predictions=predictions, references=targets, id2label=dict(enumerate(NAMES)))
    # The fused model rounds differently: a pixel on the boundary of two classes may change.
    assert result.metrics["mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-3)
    assert result.metrics["pixel_accuracy"] == pytest.approx(expected["overall_accuracy"], abs=1e-3)
    pixels = {name: row["pixels"] for name, row in expected["per_class"].items()}
    assert {name: row["pixels"] for name, row in result.metrics["per_class"].items()} == pixels
    assert result.losses == {"loss": pytest.approx(np.average(losses, weights=labeled), rel=1e-4)}
    assert (result.task, result.num_images, result.classes) == ("image-segmentation", 12, NAMES)
    assert result.confusion.sum() == sum(labeled)
    record = result.to_record(data="data", split="validation")
    assert record.metrics == result.metrics
    assert record.intervals.keys() == set(METRICS)


def test_folds_are_evaluated_as_one_data_set(segmenter, samples):
    """Two folds with the same model are one evaluation; with another model for one fold they are not."""
    whole = evaluate_model(*segmenter, samples, NAMES)
    model, processor = segmenter
    pooled = evaluate_folds([(model, processor, range(6, 12)), (model, processor, range(6))], samples, NAMES)
    assert pooled.metrics == whole.metrics
    assert pooled.intervals == whole.intervals
    assert [image.index for image in pooled.predictions] == list(range(12))
    other = copy.deepcopy(model)
    torch.nn.init.constant_(other.segmentation_head.classifier.convolution.weight, 0)
    pooled = evaluate_folds([(other, processor, range(6, 12)), (model, processor, range(6))], samples, NAMES)
    assert pooled.metrics["mean_iou"] != whole.metrics["mean_iou"]
    assert [i.mean_iou for i in pooled.predictions[:6]] == [i.mean_iou for i in whole.predictions[:6]]


def test_processes_share_the_work(segmenter, samples):
    """Each of two processes gets the same result as one alone."""
    whole = evaluate_model(*segmenter, samples, NAMES)
    shards = []

    def measure_first(items):
        shards.extend(pickle.loads(pickle.dumps(items)))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        evaluate_model(*segmenter, samples, NAMES, rank=1, num_replicas=2, gather=measure_first)
    both = evaluate_model(*segmenter, samples, NAMES, rank=0, num_replicas=2, gather=lambda items: [*shards, *items])
    assert both.metrics == whole.metrics
    assert both.losses == pytest.approx(whole.losses)


def test_masks_that_do_not_fit_are_skipped_by_name(segmenter, samples):
    broken = [
        dataclasses.replace(samples[0], name="damaged.png", mask=Mask(b"no image")),
        dataclasses.replace(samples[1], name="smaller.png", mask=Mask(np.zeros((35, 45), np.uint8))),
        dataclasses.replace(samples[2], name="photo.png", image=b"no image"),
    ]
    result = evaluate_model(*segmenter, [*samples[:5], *broken, *samples[5:]], NAMES, max_bad=0.5)
    assert [(p.name, p.kind) for p in result.problems] == [
        ("damaged.png", "unreadable mask"),
        ("smaller.png", "mask of another size"),
        ("photo.png", "unreadable image"),
    ]
    assert result.problems[1].reason == "mask of 45x35 pixels, image of 90x70"
    assert result.metrics == evaluate_model(*segmenter, samples, NAMES).metrics


def test_image_processor_without_a_crop():
    cropping = transformers.MobileViTImageProcessor(size={"shortest_edge": 68}, crop_size={"height": 48, "width": 64})
    before = cropping.to_dict()
    whole, notes = take_whole_images(cropping)
    image = next(make_images(1, size=(90, 70)))
    pixels, expected = (
        processor(image, return_tensors="pt")["pixel_values"]
        for processor in (
            whole,
            transformers.MobileViTImageProcessor(size={"height": 48, "width": 64}, do_center_crop=False),
        )
    )
    assert torch.equal(pixels, expected)
    assert "resized to 64x48" in notes[0]
    assert cropping.to_dict() == before
    assert take_whole_images(whole) == (whole, [])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "a.png: got no mask, expected one"),
        (np.full((70, 90), 4, np.uint8), r"a.png: got value 4 in its mask, expected 0\.\.3 or 255"),
        (np.full((70, 90), 255, np.uint8), "got no labeled pixel in 1 images"),
    ],
)
def test_unusable_samples_raise(segmenter, samples, mask, message):
    sample = dataclasses.replace(samples[0], name="a.png", mask=None if mask is None else Mask(mask))
    with pytest.raises(ValueError, match=message):
        evaluate_model(*segmenter, [sample], NAMES)
