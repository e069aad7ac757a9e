"""Image processor of the detector: preprocessing, annotations, post-processing, `from_backbone`."""

import json

import numpy as np
import pytest
import torch
import transformers
from formula import fill, formula_image
from model_suite import TINY, tiny_detector
from PIL import Image
from transformers import BitImageProcessor, MobileViTImageProcessor

from mobilevit_hf import MobileViTConfig, MobileViTForImageClassification, MobileViTSSDLiteImageProcessor


@pytest.mark.parametrize("size", [(480, 640), (97, 320), (600, 33), (320, 320)], ids=str)
def test_images_are_resized_to_a_square(size):
    values = formula_image(*size)[0].permute(1, 2, 0).numpy()
    source = Image.fromarray((values * 255).round().astype(np.uint8))
    resized = np.asarray(source.resize((320, 320), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    expected = torch.from_numpy(resized).permute(2, 0, 1)[None]
    processor = MobileViTSSDLiteImageProcessor()
    actual = processor(source, return_tensors="pt").pixel_values
    torch.testing.assert_close(actual, expected, atol=1.5 / 255, rtol=0)
    flipped = processor(source, do_flip_channel_order=True, return_tensors="pt").pixel_values
    assert torch.equal(flipped, actual.flip(1))
    assert not torch.equal(flipped, actual)
    for array in (np.array(source), torch.from_numpy(np.array(source)).permute(2, 0, 1)):
        assert torch.equal(processor(array, return_tensors="pt").pixel_values, actual)


def test_batch_of_several_sizes_and_modes(image):
    images = [image, image.resize((50, 90)), image.convert("L"), image.convert("RGBA")]
    processor = MobileViTSSDLiteImageProcessor(do_flip_channel_order=True)
    together = processor(images, return_tensors="pt").pixel_values
    assert together.shape == (4, 3, 320, 320)
    for pixels, source in zip(together, images, strict=True):
        assert torch.equal(pixels, processor(source.convert("RGB"), return_tensors="pt").pixel_values[0])


def test_do_resize_false_keeps_sizes(image):
    processor = MobileViTSSDLiteImageProcessor(do_resize=False)
    expected = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    pixels = processor(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, expected[None])
    several = processor([image, image.resize((50, 90))]).pixel_values
    torch.testing.assert_close(several[0], expected)
    assert [tuple(pixels.shape) for pixels in several] == [(3, 96, 128), (3, 90, 50)]


def annotate(*objects, **fields):
    return {"image_id": 7, "annotations": [{"bbox": b, "category_id": c, **o} for b, c, o in objects], **fields}


def test_annotations_are_converted_to_labels():
    images = [Image.new("RGB", (200, 100)), Image.new("RGB", (64, 64))]
    crowded = annotate(([20, 10, 40, 30], 3, {}), ([0, 0, 200, 100], 0, {"iscrowd": 1, "area": 12.5, "id": 5}))
    batch = MobileViTSSDLiteImageProcessor()(images, annotations=[crowded, annotate(image_id=9)], return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 320, 320)
    first, second = batch["labels"]
    torch.testing.assert_close(first["boxes"], torch.tensor([[0.2, 0.25, 0.2, 0.3], [0.5, 0.5, 1.0, 1.0]]))
    expected = {
        "image_id": [7],
        "class_labels": [3, 0],
        "iscrowd": [0, 1],
        "area": [1200.0, 12.5],
        "orig_size": [100, 200],
    }
    assert {name: first[name].tolist() for name in expected} == expected
    assert second["image_id"].tolist() == [9]
    assert {name: tuple(second[name].shape) for name in ("boxes", "class_labels", "iscrowd", "area")} == {
        "boxes": (0, 4),
        "class_labels": (0,),
        "iscrowd": (0,),
        "area": (0,),
    }
    model = tiny_detector()
    assert model(**batch).loss.isfinite()
    (single,) = MobileViTSSDLiteImageProcessor()(images[0], annotations=crowded, return_tensors="pt")["labels"]
    assert torch.equal(single["boxes"], first["boxes"])


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([annotate()], r"got 1 for 2 images"),
        ([annotate()] * 3, r"got 3 for 2 images"),
        ([annotate(), {"image_id": 1}], r"image 1: KeyError: 'annotations'.*`bbox` \[x, y, w, h\]"),
        ([annotate(), {"boxes": [], "labels": []}], r"image 1: KeyError"),
        ([{"annotations": [{"category_id": 1}]}, annotate()], r"image 0: KeyError: 'bbox'"),
        (
            [annotate(([1, 2, 3, 4], 0, {})), {"annotations": [{"bbox": [1, 2, 3, 4]}]}],
            r"image 1: KeyError: 'category",
        ),
        ([annotate(), annotate(([1, 2, 3], 0, {}))], r"image 1: "),
        ([annotate(), annotate(([1, 2, 3, 4], 0, {}), ([1, 2, 3], 0, {}))], r"image 1: "),
        ([annotate(), annotate(*[([1, 2, 3], 0, {})] * 4)], r"image 1: "),
        ([annotate(), annotate(([1, 2, 3, 4], "cat", {}))], r"image 1: "),
        ([annotate(), annotate(([1, 2, 3, 4], 1.5, {}))], r"image 1: "),
        ([annotate(), annotate((["a", 2, 3, 4], 0, {}))], r"image 1: "),
        ([annotate(), [1, 2]], r"image 1: TypeError"),
        ([annotate(), annotate(image_id="abc")], r"image 1: .*`image_id`"),
        ([annotate(), annotate(([1, 2, 3, 4], 0, {"iscrowd": None}))], r"image 1: TypeError.*`iscrowd`"),
        ([annotate(), annotate(([1, 2, 3, 4], 0, {"area": None}))], r"image 1: TypeError.*`area`"),
    ],
)
def test_invalid_annotations_raise(image, annotations, message):
    with pytest.raises(ValueError, match="annotations: " + message):
        MobileViTSSDLiteImageProcessor()([image] * 2, annotations=annotations, return_tensors="pt")


def detector_outputs():
    """Return the outputs of a detector with two classes and three anchors for two images."""
    probabilities = torch.tensor(
        [
            [[0.1, 0.6, 0.3], [0.992, 0.003, 0.005], [0.1, 0.05, 0.85]],
            [[0.971, 0.02, 0.009], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]],
        ]
    )
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.1, 0.1], [0.9, 0.1, 0.4, 0.4]])
    return transformers.utils.ModelOutput(logits=(probabilities + 1e-12).log(), pred_boxes=boxes.expand(2, 3, 4))


@pytest.mark.parametrize(
    "sizes",
    [
        [(100, 200), (50, 20)],
        torch.tensor([[100, 200], [50, 20]]),
        [torch.tensor([100, 200]), torch.tensor([50, 20])],  # as in `orig_size` of labels
        np.array([[100.0, 200.0], [50.0, 20.0]]),
    ],
    ids=["tuples", "tensor", "tensors", "array"],
)
def test_boxes_are_clipped_and_scaled(sizes):
    first, second = MobileViTSSDLiteImageProcessor().post_process_object_detection(
        detector_outputs(), target_sizes=sizes
    )
    torch.testing.assert_close(first["scores"], torch.tensor([0.85, 0.6, 0.3, 0.05]))
    assert first["labels"].tolist() == [1, 0, 1, 0]
    corner, middle = [140.0, 0.0, 200.0, 30.0], [80.0, 30.0, 120.0, 70.0]
    torch.testing.assert_close(first["boxes"], torch.tensor([corner, middle, middle, corner]))
    torch.testing.assert_close(second["scores"], torch.tensor([0.02]))
    assert second["labels"].tolist() == [0]
    torch.testing.assert_close(second["boxes"], torch.tensor([[8.0, 15.0, 12.0, 35.0]]))


def test_post_processing_uses_settings():
    outputs = detector_outputs()
    detect = MobileViTSSDLiteImageProcessor().post_process_object_detection
    torch.testing.assert_close(detect(outputs)[0]["boxes"][0], torch.tensor([0.7, 0.0, 1.0, 0.3]))
    assert [len(image["scores"]) for image in detect(outputs, 0.5)] == [2, 0]
    assert [len(image["scores"]) for image in detect(outputs, 1e-9)] == [6, 2]
    for settings, scores in (
        ({"score_threshold": 0.2}, [0.85, 0.6, 0.3]),
        ({"max_detections": 1}, [0.85]),
        ({"max_candidates_per_class": 1}, [0.85, 0.6]),
    ):
        detections = MobileViTSSDLiteImageProcessor(**settings).post_process_object_detection(outputs)
        torch.testing.assert_close(detections[0]["scores"], torch.tensor(scores))
    overlapping = transformers.utils.ModelOutput(
        logits=torch.tensor([[[0.0, 2.0], [0.0, 1.0]]]),
        pred_boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.3]]]),  # IoU 2 / 3
    )
    for threshold, count in ((0.5, 1), (0.6, 1), (0.7, 2)):
        processor = MobileViTSSDLiteImageProcessor(nms_iou_threshold=threshold)
        assert len(processor.post_process_object_detection(overlapping)[0]["scores"]) == count


@pytest.mark.parametrize("sizes", [[], [(1, 1)], [(1, 1)] * 3, torch.ones(3, 2)], ids=len)
def test_target_sizes_must_match_the_batch(sizes):
    with pytest.raises(ValueError, match=rf"target_sizes: got {len(sizes)} for 2 images"):
        MobileViTSSDLiteImageProcessor().post_process_object_detection(detector_outputs(), target_sizes=sizes)


def test_settings_are_saved_and_loaded(tmp_path):
    settings = {
        "size": {"height": 96, "width": 64},
        "do_flip_channel_order": True,
        "score_threshold": 0.3,
        "max_candidates_per_class": 50,
        "nms_iou_threshold": 0.7,
        "max_detections": 9,
    }
    MobileViTSSDLiteImageProcessor(**settings).save_pretrained(tmp_path)
    tiny_detector().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()).items() >= settings.items()
    for processor_class in (MobileViTSSDLiteImageProcessor, transformers.AutoImageProcessor):
        loaded = processor_class.from_pretrained(tmp_path)
        assert isinstance(loaded, MobileViTSSDLiteImageProcessor)
        assert {name: getattr(loaded, name) for name in settings if name != "size"} == {
            name: value for name, value in settings.items() if name != "size"
        }
        assert dict(loaded.size) == settings["size"]


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("score_threshold", -0.1, r"0\.\.1"),
        ("score_threshold", 1.5, r"0\.\.1"),
        ("nms_iou_threshold", 50, r"0\.\.1"),
        ("max_candidates_per_class", 0, "at least 1"),
        ("max_detections", -1, "at least 1"),
        ("score_threshold", "a", r"0\.\.1"),
        ("max_detections", None, "at least 1"),
        ("max_detections", 1.5, "at least 1"),
    ],
)
def test_invalid_settings_raise(setting, value, expected):
    with pytest.raises(ValueError, match=f"{setting}: got {value!r}, expected .*{expected}"):
        MobileViTSSDLiteImageProcessor(**{setting: value})


SQUARE = {"size": {"shortest_edge": 320}, "crop_size": {"height": 320, "width": 320}}


def save_classifier(folder):
    fill(MobileViTForImageClassification(MobileViTConfig(**TINY))).save_pretrained(folder)


@pytest.fixture(scope="module")
def square_image():
    """An image of the detector's input size."""
    values = formula_image(320, 320)[0].permute(1, 2, 0).numpy() * (1.0, 0.7, 0.4)
    return Image.fromarray((values * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    "source_processor",
    [
        MobileViTImageProcessor(**SQUARE),
        MobileViTImageProcessor(**SQUARE, do_flip_channel_order=False),
        MobileViTImageProcessor(**SQUARE, rescale_factor=1 / 127.5),
        MobileViTImageProcessor(**SQUARE, do_rescale=False),
        BitImageProcessor(**SQUARE),
        BitImageProcessor(**SQUARE, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]),
        BitImageProcessor(**SQUARE, do_normalize=False),
    ],
    ids=["bgr", "rgb", "scale", "bytes", "bit", "bit-statistics", "bit-plain"],
)
def test_from_backbone_preprocesses_as_the_source(tmp_path, square_image, source_processor):
    save_classifier(tmp_path)
    source_processor.save_pretrained(tmp_path)
    processor = MobileViTSSDLiteImageProcessor.from_backbone(tmp_path)
    assert isinstance(processor, MobileViTSSDLiteImageProcessor)
    expected = source_processor(square_image, return_tensors="pt").pixel_values
    actual = processor(square_image, return_tensors="pt").pixel_values
    torch.testing.assert_close(actual.float(), expected.float(), atol=1e-6, rtol=0)
    assert not torch.equal(expected[:, 0], expected[:, 2])
    smaller = MobileViTSSDLiteImageProcessor.from_backbone(tmp_path, size={"height": 96, "width": 64})
    assert smaller(square_image, return_tensors="pt").pixel_values.shape == (1, 3, 96, 64)
    assert smaller.do_flip_channel_order == processor.do_flip_channel_order


def test_from_backbone_ignores_normalization_of_mobilevit_processor(tmp_path, square_image):
    save_classifier(tmp_path)
    MobileViTImageProcessor(**SQUARE).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_normalize": True, "image_mean": [0.5] * 3}))
    processor = MobileViTSSDLiteImageProcessor.from_backbone(tmp_path)
    expected = MobileViTImageProcessor.from_pretrained(tmp_path)(square_image, return_tensors="pt").pixel_values
    torch.testing.assert_close(processor(square_image, return_tensors="pt").pixel_values, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("flip", [True, False])
def test_from_backbone_without_processor_requires_channel_order(tmp_path, flip):
    save_classifier(tmp_path)
    with pytest.raises(ValueError, match=r"no preprocessor_config.json.*do_flip_channel_order=True if .*BGR"):
        MobileViTSSDLiteImageProcessor.from_backbone(tmp_path)
    processor = MobileViTSSDLiteImageProcessor.from_backbone(tmp_path, do_flip_channel_order=flip, max_detections=7)
    assert (processor.do_flip_channel_order, processor.max_detections) == (flip, 7)


@pytest.mark.parametrize("fields", [{}, {"do_flip_channel_order": True}])
def test_from_backbone_of_missing_source_raises(tmp_path, fields):
    with pytest.raises(OSError, match="missing"):
        MobileViTSSDLiteImageProcessor.from_backbone(tmp_path / "missing", **fields)
