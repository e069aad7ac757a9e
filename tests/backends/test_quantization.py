"""Quantization to int8: what becomes int8, how ranges are chosen, which images are used, and when it is refused."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import draw_classification, draw_image
from transformers import MobileViTImageProcessor

import mobilevit_hf
from mobilevit_hf.backends.quantization import (
    CalibrationImages,
    Drop,
    check_drop,
    measure_drop,
    quantize_openvino,
    read_images,
)
from mobilevit_hf.data.types import Sample


@pytest.fixture(scope="module")
def engine():
    """OpenVINO and the operations its models are made of."""
    pytest.importorskip("nncf")
    return pytest.importorskip("openvino")


@pytest.fixture
def processor():
    return MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})


@pytest.fixture
def photos(tmp_path):
    """A folder of ten images and two files that are none."""
    for i in range(10):
        draw_image(["circle"], i)[0].save(tmp_path / f"{i}.png")
    for name in ("broken.png", "empty.jpg"):
        (tmp_path / name).write_bytes(b"no image" if name == "broken.png" else b"")
    return tmp_path


def make_network(engine):
    """Convolution, SiLU, depthwise convolution, SiLU, 1x1 convolution, and arithmetic as in decoding boxes."""
    ops, random = engine.opset13, np.random.default_rng(0)

    def convolve(features, make, *shape):
        weights = ops.constant(random.normal(size=shape).astype(np.float32))
        bias = ops.constant(random.normal(size=(1, shape[0], 1, 1)).astype(np.float32))
        return ops.add(make(features, weights, [1, 1], [1, 1], [1, 1], [1, 1]), bias)

    pixels = ops.parameter([-1, 3, 16, 16], np.float32, name="pixel_values")
    features = ops.swish(convolve(pixels, ops.convolution, 8, 3, 3, 3))
    features = ops.swish(convolve(features, ops.group_convolution, 8, 1, 1, 3, 3))
    boxes = convolve(features, ops.convolution, 4, 8, 3, 3)
    corners = ops.multiply(boxes, ops.exp(ops.multiply(boxes, ops.constant(np.float32(0.01)))))
    return engine.Model([ops.result(corners)], [pixels], "network")


def make_batches(number):
    return [np.random.default_rng(i).random((2, 3, 16, 16), np.float32) for i in range(number)]


def run(engine, model, pixels):
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return engine.Core().compile_model(model, "CPU", options)(pixels)[0]


def ranges(model):
    """The largest value each quantized activation can have, by the operation that reads it."""
    return {
        port.get_node().get_type_name(): node.input_value(2).get_node().get_data().max()
        for node in model.get_ops()
        if node.get_type_name() == "FakeQuantize"
        for port in node.output(0).get_target_inputs()
    }


def test_layers_become_int8_and_answer_alike(engine):
    model = make_network(engine)
    quantized = quantize_openvino(model, make_batches(8))
    weights = [node for node in quantized.get_ops() if node.get_element_type() == engine.Type.i8]
    assert sum(node.get_output_size() for node in weights) >= 3
    pixels = np.random.default_rng(99).random((4, 3, 16, 16), np.float32)
    expected, found = (run(engine, each, pixels) for each in (model, quantized))
    assert 0 < np.abs(found - expected).mean() < 0.05 * expected.std()


def test_the_model_is_left_as_it_is(engine):
    model = make_network(engine)
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    quantize_openvino(model, make_batches(2))
    assert [node.get_type_name() for node in model.get_ordered_ops()] == before


def test_what_is_behind_the_last_layer_stays_in_float(engine):
    """Boxes are decoded by exponentials and products, which 256 steps would be too coarse for."""
    readers = set(ranges(quantize_openvino(make_network(engine), make_batches(4))))
    assert readers == {"Convolution", "GroupConvolution"}


def largest_input(engine, batches):
    """What the range of the quantized images ends at."""
    quantized = quantize_openvino(make_network(engine), batches)
    reader = next(iter(quantized.input(0).get_node().output(0).get_target_inputs())).get_node()
    assert reader.get_type_name() == "FakeQuantize"
    return reader.input_value(2).get_node().get_data().max()


def test_values_that_few_images_have_stay_in_the_range(engine):
    """The mean of the images' largest values, 1.6, would cut a fifth of the images."""
    batches = make_batches(20)
    for batch in batches[4::5]:
        batch *= 4
    assert largest_input(engine, batches) > 3.5


def test_the_range_ends_before_the_few_largest_of_all_values(engine):
    batches = [np.random.default_rng(i).exponential(size=(2, 3, 16, 16)).astype(np.float32) for i in range(30)]
    largest = max(batch.max() for batch in batches)
    assert 0.5 * largest < largest_input(engine, batches) < 0.95 * largest


def test_nothing_is_printed(engine, capfd):
    quantize_openvino(make_network(engine), make_batches(2))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_without_nncf_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install nncf"):
        quantize_openvino(None, make_batches(1))


def test_without_images_it_says_so(engine):
    with pytest.raises(ValueError, match="no images"):
        quantize_openvino(make_network(engine), [])


def as_input(processor, paths):
    return [processor(Image.open(path), return_tensors="pt")["pixel_values"][0] for path in paths]


def test_a_folder_without_labels_gives_different_images_to_quantize_and_to_check(photos, processor):
    images = read_images(str(photos), "image-classification", processor)
    assert images.classes is None
    bad_ones = {problem.name.rpartition("/")[2] for problem in images.problems}
    checked = {sample.image.rpartition("/")[2] for sample in images.samples}
    assert len(images.samples) == 6
    # Of twelve files six are for quantizing; those among them that are broken are named, the others come later.
    assert len(images.calibration) == 6 - len(bad_ones)
    assert bad_ones == {"broken.png", "empty.jpg"} - checked
    assert images.calibration.shape[1:] == (3, 64, 64)
    others = as_input(processor, [photos / name for name in checked - {"broken.png", "empty.jpg"}])
    assert not any(torch.equal(pixels, other) for pixels in images.calibration for other in others)


def test_a_data_set_is_quantized_on_its_training_and_checked_on_its_validation_split(tmp_path, processor):
    folder = draw_classification(tmp_path, train=6, validation=4)
    images = read_images(str(folder), "image-classification", processor)
    training = as_input(processor, (folder / "train").rglob("*.png"))
    assert len(images.calibration) == len(training) == 6
    assert all(any(torch.equal(pixels, each) for each in training) for pixels in images.calibration)
    assert images.classes == ("circle", "square")
    assert sorted(sample.name.split("/")[0] for sample in images.samples) == ["validation"] * 4


def test_labels_of_another_task_are_left_out(tmp_path, processor):
    folder = draw_classification(tmp_path, train=4, validation=2)
    assert read_images(str(folder), "object-detection", processor).classes is None


def test_no_readable_image_is_an_error(tmp_path, processor):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of 2 images can be read\. The first is"):
        read_images(str(tmp_path), "image-classification", processor)


@pytest.fixture
def models(tiny_model):
    """A classifier that says "fish" of some images and "dog" of others, and one that always says "dog"."""
    model, other = (tiny_model(mobilevit_hf.MobileViTForImageClassification).requires_grad_(False) for _ in range(2))
    model.classifier.bias.data[2] += 0.325
    other.classifier.bias.data[1] += 1000
    return model, other


@pytest.fixture
def samples():
    return [Sample(f"{i}", draw_image(["circle"], i)[0], label=i % 4) for i in range(8)]


def test_with_labels_the_drop_is_in_accuracy(models, samples, processor):
    model, other = models
    images = CalibrationImages(None, samples, ("cat", "dog", "fish", "owl"))
    drop = measure_drop(other, other, "image-classification", processor, images)
    assert drop == Drop("accuracy", 0.25, 0.25, 8)
    assert drop.points == 0
    pixels = processor([sample.image for sample in samples], return_tensors="pt")["pixel_values"]
    right = (model(pixels).logits.argmax(dim=1).numpy() == np.arange(8) % 4).mean()
    assert right != 0.25
    assert measure_drop(model, other, "image-classification", processor, images).points == 100 * (right - 0.25)


def test_without_labels_the_drop_is_in_agreement(models, samples, processor):
    model, other = models
    other.names = ("logits",)
    pixels = processor([sample.image for sample in samples], return_tensors="pt")["pixel_values"]
    dogs = (model(pixels).logits.argmax(dim=1) == 1).float().mean().item()
    assert 0 < dogs < 1
    drop = measure_drop(model, other, "image-classification", processor, CalibrationImages(None, samples, None))
    assert drop == Drop("agreement", 1.0, dogs, 8)


@pytest.mark.parametrize(("after", "is_refused"), [(0.912, False), (0.9, False), (0.899, True), (float("nan"), True)])
def test_a_drop_above_the_limit_is_refused(after, is_refused):
    drop = Drop("accuracy", 0.91, after, 372)
    if not is_refused:
        return check_drop(drop, 1.0 + 1e-9)
    with pytest.raises(ValueError, match=r"accuracy falls from 91.0% to .* on 372 images, .*Nothing was written"):
        check_drop(drop, 1.0)
