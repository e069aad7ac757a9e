"""Converted image processors equal the source's evaluation transform."""

import json

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from source_checkpoints import make_photo, write_timm_dir
from timm.data import create_transform
from torchvision.transforms import v2

import mobilevit_hf
from mobilevit_hf.convert.conversion import convert_checkpoint


def load_processor(folder):
    return transformers.AutoImageProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("argument", "order", "assumed"), [(None, "bgr", True), ("bgr", "bgr", False), ("rgb", "rgb", False)]
)
def test_official_channel_order_defaults_to_bgr(official_classifier, output_dir, argument, order, assumed):
    report = convert_checkpoint(official_classifier, output_dir, channel_order=argument)
    assert (report.channel_order, report.channel_order_assumed) == (order, assumed)
    assert any("BGR" in note and "--channel-order rgb" in note for note in report.notes) == assumed
    assert load_processor(output_dir).do_flip_channel_order == (order == "bgr")


def test_official_processor_matches_reference_pixels(reference_data, official_classifier, output_dir):
    reference = np.load(reference_data / "reference/preproc.npz")
    image = Image.fromarray(reference["image_rgb_u8"])
    convert_checkpoint(official_classifier, output_dir, channel_order="rgb")
    pixels = load_processor(output_dir)(image, return_tensors="np").pixel_values[0] * 255
    np.testing.assert_allclose(pixels, reference["v04_cls_resize288_bilinear_crop256_rgb"], atol=1.01)
    convert_checkpoint(official_classifier, output_dir.with_name("bgr"))
    pixels = load_processor(output_dir.with_name("bgr"))(image, return_tensors="np").pixel_values[0] * 255
    # OpenCV downscales without antialiasing, so pixels are compared on average.
    assert np.abs(pixels - reference["v01_cls_resize288_crop256_cv2_bgr"]).mean() < 3
    assert np.abs(pixels[::-1] - reference["v01_cls_resize288_crop256_cv2_bgr"]).mean() > 6


@pytest.mark.parametrize("task", ["image-classification", "image-segmentation"])
def test_official_processor_matches_torchvision_transform(task, official_classifier, official_segmenter, output_dir):
    classify = task == "image-classification"
    resize, crop = (288, 256) if classify else (544, 512)
    convert_checkpoint(official_classifier if classify else official_segmenter, output_dir)
    transform = v2.Compose(
        [v2.Resize(resize), v2.CenterCrop(crop), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    )
    processor = load_processor(output_dir)
    assert type(processor) is transformers.MobileViTImageProcessor
    pixels = processor(make_photo(), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixels, transform(make_photo()).flip(0), atol=1.5 / 255, rtol=0)
    assert processor(make_photo().convert("L"), return_tensors="pt").pixel_values.shape == (1, 3, crop, crop)


def test_timm_defaults_match_create_transform(timm_file, output_dir):
    report = convert_checkpoint(timm_file, output_dir)
    assert any("timm's default" in note for note in report.notes)
    settings = timm.data.resolve_data_config(model=timm.create_model("mobilevit_xxs"))
    expected = create_transform(**settings)(make_photo())
    pixels = load_processor(output_dir)(make_photo(), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixels, expected, atol=2 / 255, rtol=0)
    assert mobilevit_hf.MobileViTConfig.from_pretrained(output_dir).image_size == 256


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_timm_channel_order_and_image_size_arguments(timm_file, output_dir, order):
    report = convert_checkpoint(timm_file, output_dir, channel_order=order, image_size=224)
    transform = v2.Compose(
        [
            v2.Resize(248, v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(224),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    expected = transform(make_photo(248, 320))
    pixels = load_processor(output_dir)(make_photo(248, 320), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixels if order == "rgb" else pixels.flip(0), expected, atol=2 / 255, rtol=0)
    assert report.channel_order == order
    assert any(f"MobileViT: {order.upper()}, 224 px" in note for note in report.notes)
    assert mobilevit_hf.MobileViTConfig.from_pretrained(output_dir).image_size == 224


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_timm_configuration_determines_processor_and_labels(tmp_path, output_dir, weights, crop_mode):
    settings = {
        "input_size": [3, 192, 192],
        "crop_pct": 0.75,
        "interpolation": "bilinear",
        "crop_mode": crop_mode,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    folder = write_timm_dir(tmp_path / "timm", weights, **settings, label_names=["a", "b", "c", "d", "e"])
    report = convert_checkpoint(folder if weights == "model.safetensors" else folder / weights, output_dir)
    assert report.notes == ()
    saved = json.loads((output_dir / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "BitImageProcessor"
    expected = create_transform(**settings)(make_photo(288, 384))
    pixels = load_processor(output_dir)(make_photo(288, 384), return_tensors="pt").pixel_values[0]
    assert pixels.shape == (3, 192, 192)
    torch.testing.assert_close(pixels, expected, atol=2 / 255 / 0.224, rtol=0)
    config = transformers.MobileViTConfig.from_pretrained(output_dir)
    assert list(config.id2label.values()) == ["a", "b", "c", "d", "e"]
    assert config.image_size == 192


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, {"channel_order": "bgr"}, "no stock image processor both flips"),
        ({"input_size": [3, 256, 192]}, {}, "invalid pretrained_cfg.*square input_size"),
        ({"input_size": [1, 256, 256]}, {}, "3 channels"),
        ({"input_size": 256}, {}, "invalid pretrained_cfg"),
        ({"interpolation": "magic"}, {}, "invalid pretrained_cfg.*MAGIC"),
        ({"crop_pct": 0}, {}, "0 < crop_pct <= 1"),
        ({"std": [1, 1, 0]}, {}, "invalid pretrained_cfg"),
        ({"crop_mode": "border"}, {}, "crop_mode: got 'border'"),
        ({"label_names": ["a", "b"]}, {}, "label_names in config.json: got 2, expected 5"),
        ({"label_names": 7}, {}, "label_names in config.json: got 7, expected 5"),
        ({"label_names": {"1": "a", "2": "b", "3": "c", "4": "d", "5": "e"}}, {}, "got None, expected text"),
    ],
)
def test_invalid_timm_configurations_raise(tmp_path, output_dir, settings, options, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(write_timm_dir(tmp_path / "timm", **settings), output_dir, **options)
