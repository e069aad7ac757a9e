"""Post-training int8 quantization: quantized layers, activation ranges, calibration images and accuracy drop."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from toy_datasets import draw_classification, draw_image, draw_segmentation
from transformers import MobileViTImageProcessor

import mobilevit_hf
from mobilevit_hf.backends.nncf_quantization import quantize_openvino
from mobilevit_hf.backends.quantization import (
    AccuracyDrop,
    CalibrationImages,
    check_drop,
    load_calibration_images,
    measure_drop,
)
from mobilevit_hf.data.masks import Mask
from mobilevit_hf.data.types import Sample


@pytest.fixture(scope="module")
def openvino():
    """The openvino package; skips the test without NNCF."""
    pytest.importorskip("nncf")
    return pytest.importorskip("openvino")


@pytest.fixture
def processor():
    return MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})


@pytest.fixture
def photos(tmp_path):
    """A folder of ten images and two unreadable files."""
    for i in range(10):
        draw_image(["circle"], i)[0].save(tmp_path / f"{i}.png")
    for name in ("broken.png", "empty.jpg"):
        (tmp_path / name).write_bytes(b"no image" if name == "broken.png" else b"")
    return tmp_path


def make_network(openvino):
    """Return convolution, SiLU, depthwise convolution, SiLU, convolution, and arithmetic as in decoding boxes."""
    ops, random = openvino.opset13, np.random.default_rng(0)

    def convolve(features, make, *shape):
        weights = ops.constant(random.normal(size=shape).astype(np.float32))
        bias = ops.constant(random.normal(size=(1, shape[0], 1, 1)).astype(np.float32))
        return ops.add(make(features, weights, [1, 1], [1, 1], [1, 1], [1, 1]), bias)

    pixels = ops.parameter([-1, 3, 16, 16], np.float32, name="pixel_values")
    features = ops.swish(convolve(pixels, ops.convolution, 8, 3, 3, 3))
    features = ops.swish(convolve(features, ops.group_convolution, 8, 1, 1, 3, 3))
    boxes = convolve(features, ops.convolution, 4, 8, 3, 3)
    corners = ops.multiply(boxes, ops.exp(ops.multiply(boxes, ops.constant(np.float32(0.01)))))
    return openvino.Model([ops.result(corners)], [pixels], "network")


def make_batches(number):
    return [np.random.default_rng(i).random((2, 3, 16, 16), np.float32) for i in range(number)]


def infer(openvino, model, pixels):
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(model, "CPU", options)(pixels)[0]


def activation_maxima(model):
    """Return the upper limit of each quantized activation, by the type of the operation that reads it."""
    return {
        port.get_node().get_type_name(): node.input_value(2).get_node().get_data().max()
        for node in model.get_ops()
        if node.get_type_name() == "FakeQuantize"
        for port in node.output(0).get_target_inputs()
    }


def test_weights_become_int8_and_outputs_stay_close(openvino):
    model = make_network(openvino)
    quantized = quantize_openvino(model, make_batches(8))
    weights = [node for node in quantized.get_ops() if node.get_element_type() == openvino.Type.i8]
    assert sum(node.get_output_size() for node in weights) >= 3
    pixels = np.random.default_rng(99).random((4, 3, 16, 16), np.float32)
    expected, actual = (infer(openvino, each, pixels) for each in (model, quantized))
    assert 0 < np.abs(actual - expected).mean() < 0.05 * expected.std()


def test_float_model_is_not_modified(openvino):
    model = make_network(openvino)
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    quantize_openvino(model, make_batches(2))
    assert [node.get_type_name() for node in model.get_ordered_ops()] == before


def test_operations_behind_the_last_layer_stay_in_float(openvino):
    """Boxes are decoded by exponentials and products, for which 256 steps are too coarse."""
    readers = set(activation_maxima(quantize_openvino(make_network(openvino), make_batches(4))))
    assert readers == {"Convolution", "GroupConvolution"}


def input_maximum(openvino, batches):
    """Return the upper limit of the quantized input."""
    quantized = quantize_openvino(make_network(openvino), batches)
    reader = next(iter(quantized.input(0).get_node().output(0).get_target_inputs())).get_node()
    assert reader.get_type_name() == "FakeQuantize"
    return reader.input_value(2).get_node().get_data().max()


def test_range_covers_values_that_occur_in_few_images(openvino):
    """The mean of the images' maxima, 1.6, would clip a fifth of the images."""
    batches = make_batches(20)
    for batch in batches[4::5]:
        batch *= 4
    assert input_maximum(openvino, batches) > 3.5


def test_range_excludes_the_few_largest_values(openvino):
    batches = [np.random.default_rng(i).exponential(size=(2, 3, 16, 16)).astype(np.float32) for i in range(30)]
    largest = max(batch.max() for batch in batches)
    assert 0.5 * largest < input_maximum(openvino, batches) < 0.95 * largest


def test_quantization_prints_nothing(openvino, capfd):
    quantize_openvino(make_network(openvino), make_batches(2))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_missing_nncf_error_names_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install nncf"):
        quantize_openvino(None, make_batches(1))


def load_pixels(processor, paths):
    return [processor(Image.open(path), return_tensors="pt")["pixel_values"][0] for path in paths]


def test_unlabeled_folder_is_split_into_calibration_and_evaluation_images(photos, processor):
    images = load_calibration_images(str(photos), "image-classification", processor)
    assert images.classes is None
    assert images.note.startswith(f"{photos} has no labels: the agreement with the torch model is measured")
    unreadable = {problem.name.rpartition("/")[2] for problem in images.problems}
    evaluated = {sample.image.rpartition("/")[2] for sample in images.samples}
    assert len(images.samples) == 6
    # Six of twelve files are for calibration; unreadable ones among the others are reported when they are loaded.
    assert len(images.calibration) == 6 - len(unreadable)
    assert unreadable == {"broken.png", "empty.jpg"} - evaluated
    assert images.calibration.shape[1:] == (3, 64, 64)
    others = load_pixels(processor, [photos / name for name in evaluated - {"broken.png", "empty.jpg"}])
    assert not any(torch.equal(pixels, other) for pixels in images.calibration for other in others)


def test_dataset_calibrates_on_train_and_evaluates_on_validation(tmp_path, processor):
    folder = draw_classification(tmp_path, train=6, validation=4)
    images = load_calibration_images(str(folder), "image-classification", processor)
    training = load_pixels(processor, (folder / "train").rglob("*.png"))
    assert len(images.calibration) == len(training) == 6
    assert all(any(torch.equal(pixels, each) for each in training) for pixels in images.calibration)
    assert images.classes == ("circle", "square")
    assert images.note == ""
    assert sorted(sample.name.split("/")[0] for sample in images.samples) == ["validation"] * 4


def test_labels_of_another_task_are_ignored(tmp_path, processor):
    folder = draw_classification(tmp_path, train=4, validation=2)
    images = load_calibration_images(str(folder), "object-detection", processor)
    assert images.classes is None
    assert images.note.startswith(f"{folder} has labels for image-classification, not object-detection: ")


def test_annotations_that_cannot_be_read_are_an_error(tmp_path, processor):
    """Masks in colors without a palette: without labels, the masks would be images to calibrate with."""
    folder = draw_segmentation(tmp_path, train=2, validation=2)
    for path in folder.glob("*annot/*.png"):
        draw_image(["circle"], 0)[0].save(path)
    (folder / "classes.txt").unlink()
    for task in ("image-segmentation", "image-classification"):
        with pytest.raises(ValueError, match=r"calibration: .*mask.* Or pass a folder with nothing but images"):
            load_calibration_images(str(folder), task, processor)


def test_folders_of_unlabeled_images_need_no_names_of_classes(photos, processor):
    """Also with the names of splits, or in a folder of their own."""
    for name in ("images/a.png", "train/b.png", "val/c.png"):
        (photos / name).parent.mkdir()
        draw_image(["square"], 1)[0].save(photos / name)
    images = load_calibration_images(str(photos), "image-segmentation", processor)
    assert images.classes is None
    assert "has no labels" in images.note


def test_unreadable_images_only_is_an_error(tmp_path, processor):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"got 2 images, of which none can be read\. The first: "):
        load_calibration_images(str(tmp_path), "image-classification", processor)


@pytest.fixture
def models(tiny_model):
    """A classifier that predicts "fish" for some images and "dog" for others, and one that always predicts "dog"."""
    model, other = (tiny_model(mobilevit_hf.MobileViTForImageClassification).requires_grad_(False) for _ in range(2))
    model.classifier.bias.data[2] += 0.325
    other.classifier.bias.data[1] += 1000
    return model, other


@pytest.fixture
def samples():
    return [Sample(f"{i}", draw_image(["circle"], i)[0], label=i % 4) for i in range(8)]


def test_drop_with_labels_is_in_accuracy(models, samples, processor):
    model, other = models
    images = CalibrationImages(None, samples, ("cat", "dog", "fish", "owl"))
    drop = measure_drop(other, other, "image-classification", processor, images)
    assert drop == AccuracyDrop("accuracy", 0.25, 0.25, 8)
    assert drop.points == 0
    pixels = processor([sample.image for sample in samples], return_tensors="pt")["pixel_values"]
    accuracy = (model(pixels).logits.argmax(dim=1).numpy() == np.arange(8) % 4).mean()
    assert accuracy != 0.25
    assert measure_drop(model, other, "image-classification", processor, images).points == 100 * (accuracy - 0.25)


def test_drop_of_a_segmentation_model_is_in_mean_iou(tiny_model, processor):
    model, other = (tiny_model(mobilevit_hf.MobileViTForSemanticSegmentation).requires_grad_(False) for _ in range(2))
    for each, label in ((model, 2), (other, 1)):  # predicts this class for all pixels
        each.segmentation_head.classifier.convolution.bias[label] += 1000
    # Of 64x64 pixels, the class "fish" has three quarters.
    target = np.full((64, 64), 2, np.uint8)
    target[:32, :32] = 1
    samples = [Sample("a", draw_image(["circle"], 0)[0], mask=Mask(target))]
    images = CalibrationImages(None, samples, ("cat", "dog", "fish", "owl"))
    drop = measure_drop(model, other, "image-segmentation", processor, images)
    assert drop == AccuracyDrop("mean_iou", 0.375, 0.125, 1)
    assert drop.points == 25


def test_masks_are_loaded_for_a_segmentation_model(tmp_path, processor):
    """Also of a folder whose class folders or boxes would win without the task."""
    folder = draw_segmentation(tmp_path, train=4, validation=2)
    images = load_calibration_images(str(folder), "image-segmentation", processor)
    assert images.classes
    assert len(images.samples) == 2
    assert all(sample.mask for sample in images.samples)
    assert load_calibration_images(str(folder), "object-detection", processor).classes is None


def test_drop_without_labels_is_in_agreement(models, samples, processor):
    model, other = models
    other.outputs = ("logits",)
    pixels = processor([sample.image for sample in samples], return_tensors="pt")["pixel_values"]
    dogs = (model(pixels).logits.argmax(dim=1) == 1).float().mean().item()
    assert 0 < dogs < 1
    drop = measure_drop(model, other, "image-classification", processor, CalibrationImages(None, samples, None))
    assert drop == AccuracyDrop("agreement", 1.0, dogs, 8)


@pytest.mark.parametrize(("value", "is_rejected"), [(0.912, False), (0.9, False), (0.899, True), (float("nan"), True)])
def test_drop_above_the_limit_is_rejected(value, is_rejected):
    drop = AccuracyDrop("accuracy", 0.91, value, 372)
    if not is_rejected:
        return check_drop(drop, 1.0 + 1e-9)
    with pytest.raises(ValueError, match=r"accuracy drops from 91.0% to .* on 372 images, .*Nothing was written"):
        check_drop(drop, 1.0)
