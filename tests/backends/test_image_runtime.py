"""Files that take an image behind the interface of the torch model: exact bytes in, logits out."""

import numpy as np
import pytest
import torch
from transformers import BitImageProcessor, MobileViTImageProcessor

import mobilevit_hf
from mobilevit_hf.backends.image_models import build_module
from mobilevit_hf.backends.image_runtime import ImageRuntime
from mobilevit_hf.backends.pytorch import load_model
from mobilevit_hf.backends.requests import ExportRequest
from mobilevit_hf.backends.runtime import ExportedModel, processor_of_outputs
from mobilevit_hf.backends.verify import compare
from mobilevit_hf.model_sources import load_image_processor

CLASSIFICATION, DETECTION, SEGMENTATION = "image-classification", "object-detection", "image-segmentation"


class Recorder:
    """A runtime that keeps its input."""

    def __init__(self, shape, outputs):
        self.shape, self.outputs = shape, outputs

    def __call__(self, images):
        self.images = images
        return self.outputs


@pytest.fixture
def image():
    """(40, 40, 3) uint8 RGB."""
    return np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "processor",
    [
        MobileViTImageProcessor(),
        MobileViTImageProcessor(do_flip_channel_order=False, rescale_factor=1 / 127.5),
        BitImageProcessor(do_normalize=True, image_mean=[0.48, 0.46, 0.41], image_std=[0.23, 0.22, 0.27]),
    ],
    ids=["bgr", "scaled", "normalized"],
)
def test_pixels_are_converted_back_to_the_bytes(image, processor):
    pixels = processor(image, do_resize=False, do_center_crop=False, return_tensors="np")["pixel_values"]
    runtime = Recorder((1, 40, 40, 3), [np.full((1, 2), 0.5, np.float32)])
    ImageRuntime(runtime, CLASSIFICATION, "image", processor, 2)(pixels)
    assert runtime.images.dtype == np.uint8
    np.testing.assert_array_equal(runtime.images[0], image)
    runtime.shape = (1, 3, 40, 40)
    bytes_ = ImageRuntime(runtime, DETECTION, "transformers.js", processor, 2)._to_input(pixels)[0] * 255
    np.testing.assert_allclose(bytes_.transpose(1, 2, 0), image, atol=1e-4)


def test_scores_become_logits_with_the_same_softmax():
    scores = np.array([[0.7, 0.3, 0.0]], np.float32)
    runtime = ImageRuntime(Recorder((1, 32, 32, 3), [scores]), CLASSIFICATION, "image", MobileViTImageProcessor(), 3)
    (logits,) = runtime(np.zeros((1, 3, 32, 32), np.float32))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(-1).numpy(), scores, atol=1e-6)


def test_rows_become_boxes_that_post_processing_returns_unchanged():
    """Also two boxes that overlap more after clipping than the NMS allows."""
    boxes = np.array([[[0.0, 0.0, 0.4, 0.4], [0.0, 0.1, 0.4, 0.4], [0.5, 0.5, 1, 1], [0, 0, 0, 0]]], np.float32)
    scores, labels = np.array([[0.9, 0.6, 0.2, 0.0]], np.float32), np.array([[1, 1, 0, 0]], np.int32)
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor()
    runtime = ImageRuntime(Recorder((1, 64, 64, 3), [boxes, scores, labels]), DETECTION, "image", processor, 2)
    model = ExportedModel(mobilevit_hf.MobileViTSSDLiteConfig(), DETECTION, runtime, 0)
    model.interface = "image"
    outputs = model(torch.zeros(1, 3, 64, 64))
    (detections,) = processor_of_outputs(model, processor).post_process_object_detection(outputs)
    np.testing.assert_allclose(detections["scores"], scores[0, :3], atol=1e-6)
    np.testing.assert_allclose(detections["boxes"], boxes[0, :3], atol=1e-6)
    assert detections["labels"].tolist() == [1, 1, 0]
    assert len(processor.post_process_object_detection(outputs)[0]["scores"]) == 2


def test_labels_of_pixels_are_those_after_post_processing():
    labels = np.random.default_rng(0).integers(0, 4, (2, 32, 48), dtype=np.uint8)
    processor = MobileViTImageProcessor()
    runtime = ImageRuntime(Recorder((1, 32, 48, 3), [labels]), SEGMENTATION, "image", processor, 4)
    model = ExportedModel(mobilevit_hf.MobileViTConfig(), SEGMENTATION, runtime, 0)
    outputs = model(torch.zeros(2, 3, 32, 48))
    for target_sizes in (None, [(32, 48)] * 2):
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes)
        np.testing.assert_array_equal(np.stack(maps), labels)


def test_other_image_size_is_an_error():
    runtime = ImageRuntime(Recorder((1, 64, 48, 3), []), CLASSIFICATION, "image", MobileViTImageProcessor(), 3)
    with pytest.raises(ValueError, match="got images of 64x64 pixels, expected 64x48"):
        runtime(np.zeros((1, 3, 64, 64), np.float32))


@pytest.mark.parametrize(
    ("task", "interface"),
    [
        (CLASSIFICATION, "image"),
        (DETECTION, "image"),
        (DETECTION, "transformers.js"),
        (SEGMENTATION, "image"),
        (SEGMENTATION, "transformers.js"),
    ],
)
def test_comparison_with_the_torch_model_finds_no_difference(model_dirs, task, interface):
    """And finds one if the weights change."""
    model, _ = load_model(task, str(model_dirs[task]))
    processor = load_image_processor(model_dirs[task], trust_remote_code=False)
    images = np.random.default_rng(1).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    fields = {"do_resize": False} if task == DETECTION else {"do_resize": False, "do_center_crop": False}
    pixels = processor(list(images), return_tensors="pt", **fields)["pixel_values"]
    module = build_module(ExportRequest(model, task, processor, pixels, interface=interface))

    class Runtime:
        shape = (1, 64, 64, 3) if interface == "image" else (1, 3, 64, 64)

        def __call__(self, inputs):
            with torch.no_grad():
                outputs = [module(torch.from_numpy(each[None])) for each in inputs]
            return [torch.cat(parts).numpy() for parts in zip(*outputs, strict=True)]

    runtime = ImageRuntime(Runtime(), task, interface, processor, len(model.config.id2label))
    exported = ExportedModel(model.config, task, runtime, 0)
    exported.interface = interface
    comparison = compare(model, exported, pixels, task, processor)
    assert comparison.max_error < 1e-5
    assert comparison.agreement > 0.999  # rounding may break the tie of a pixel differently
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    assert compare(model, exported, pixels, task, processor).max_error > 1e-3
