"""A detector and its image processor that start from a trained backbone."""

import json

import numpy as np
import pytest
import torch
import transformers
from formula import fill, formula_image
from model_suite import LEVEL_CHANNELS, TINY, assert_close, assert_xavier, make_pixels, tiny_detector
from PIL import Image
from transformers import BitImageProcessor, MobileViTImageProcessor

from mobilevit_hf import (
    MobileViTBackbone,
    MobileViTBackboneConfig,
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTForSemanticSegmentation,
    MobileViTModel,
    MobileViTSSDLiteForObjectDetection,
    MobileViTSSDLiteImageProcessor,
)
from mobilevit_hf.modeling.anchors_ssdlite import fit_anchors

LABELS = {0: "cat", 1: "dog"}
SOURCES = {
    "classifier": (MobileViTForImageClassification, MobileViTConfig, "mobilevit."),
    "segmentation": (MobileViTForSemanticSegmentation, MobileViTConfig, "mobilevit."),
    "encoder": (MobileViTModel, MobileViTConfig, ""),
    "backbone": (MobileViTBackbone, MobileViTBackboneConfig, ""),
    "stock": (transformers.MobileViTForImageClassification, transformers.MobileViTConfig, "mobilevit."),
}


def save_source(folder, name="classifier", dtype=torch.float32, **fields):
    """Save a tiny trained model and return its backbone's weights by their name there."""
    model_class, config_class, prefix = SOURCES[name]
    stride = {"output_stride": 16} if name == "segmentation" else {}
    model = fill(model_class(config_class(**{**TINY, **stride, **fields}))).to(dtype)
    model.save_pretrained(folder)
    return {key.removeprefix(prefix): tensor for key, tensor in model.state_dict().items()}


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_from_backbone(tmp_path, name, dtype):
    trained = save_source(tmp_path, name, dtype, conv_kernel_size=5)
    model = MobileViTSSDLiteForObjectDetection.from_backbone(
        tmp_path, id2label=LABELS, level_channels=LEVEL_CHANNELS, image_size=96, smooth_l1_beta=0.5
    )
    assert not model.training
    assert not any(module.training for module in model.modules())
    for key, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, trained[key].to(tensor.dtype)), key
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    config = model.config
    assert (config.id2label, config.label2id, config.num_labels) == (LABELS, {"cat": 0, "dog": 1}, 2)
    assert (config.level_channels, config.image_size, config.smooth_l1_beta) == (LEVEL_CHANNELS, 96, 0.5)
    assert (config.backbone_config.conv_kernel_size, config.backbone_config.hidden_dropout_prob) == (5, 0.1)
    assert (config.backbone_config.output_stride, config.backbone_config.out_features) == (32, ["stage4", "stage5"])
    with torch.no_grad():
        outputs = model(make_pixels())
    assert outputs.logits.shape == (2, 6 * (16 + 4 + 3) + 4, 3)


def test_from_backbone_makes_a_whole_checkpoint(tmp_path):
    save_source(tmp_path / "source")
    boxes = 20 + 400 * torch.rand(50, 2)
    fields = fit_anchors([torch.cat([boxes, boxes + 30], dim=1)], [(480, 480)])
    assert fields["feature_strides"][0] == 8
    model = MobileViTSSDLiteForObjectDetection.from_backbone(tmp_path / "source", id2label=LABELS, **fields)
    for name, head in model.head.level_heads.items():
        assert_xavier(head.predictor.convolution.weight, name)
    model.save_pretrained(tmp_path / "detector")
    loaded, info = MobileViTSSDLiteForObjectDetection.from_pretrained(tmp_path / "detector", output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.id2label == LABELS
    assert loaded.config.anchor_scales == fields["anchor_scales"]
    with torch.no_grad():
        actual, expected = (one(make_pixels(1, 160, 160)) for one in (loaded, model))
    assert_close([actual.logits, actual.pred_boxes], [expected.logits, expected.pred_boxes], 1e-6)
    assert actual.logits.shape[1] == sum(
        n * m for n, m in zip((400, 100, 25, 9, 4, 1, 1), model.config.anchors_per_cell, strict=True)
    )


def test_from_backbone_refuses_other_sources(tmp_path):
    start = MobileViTSSDLiteForObjectDetection.from_backbone
    save_source(tmp_path / "source")
    with pytest.raises(ValueError, match=r"model.safetensors is a file, expected a directory.*mobilevit convert"):
        start(tmp_path / "source/model.safetensors", id2label=LABELS)
    tiny_detector().save_pretrained(tmp_path / "detector")
    with pytest.raises(
        ValueError, match=r"got model_type 'mobilevit_ssdlite', expected 'mobilevit' .*from_pretrained"
    ):
        start(tmp_path / "detector", id2label=LABELS)
    transformers.ResNetConfig().save_pretrained(tmp_path / "resnet")
    with pytest.raises(ValueError, match=r"resnet: got model_type 'resnet', expected 'mobilevit'"):
        start(tmp_path / "resnet", id2label=LABELS)
    MobileViTConfig(**TINY).save_pretrained(tmp_path / "bare")
    for missing in ("bare", "nowhere"):
        with pytest.raises(OSError, match=missing):
            start(tmp_path / missing, id2label=LABELS)
    with pytest.raises(ValueError, match=r"id2label: got .*without gaps"):
        start(tmp_path / "source", id2label={0: "cat", 2: "dog"})
    with pytest.raises(ValueError, match=r"level_channels: got \[1, 2\], expected 6 entries"):
        start(tmp_path / "source", id2label=LABELS, level_channels=[1, 2])


def test_from_backbone_refuses_half_a_backbone(tmp_path):
    model = fill(MobileViTForImageClassification(MobileViTConfig(**TINY)))
    state = {name: tensor for name, tensor in model.state_dict().items() if "encoder.layer.4." not in name}
    count = len(model.state_dict()) - len(state)
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(
        ValueError, match=rf"{count} weights of the backbone are missing, such as encoder\.layer\.4\..*complete"
    ):
        MobileViTSSDLiteForObjectDetection.from_backbone(tmp_path, id2label=LABELS)


# --- its image processor ---------------------------------------------------------------------------------------------

SQUARE = {"size": {"shortest_edge": 320}, "crop_size": {"height": 320, "width": 320}}


@pytest.fixture(scope="module")
def square():
    """An image of the size that the detector takes."""
    values = formula_image(320, 320)[0].permute(1, 2, 0).numpy() * (1.0, 0.7, 0.4)
    return Image.fromarray((values * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    "trained_with",
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
def test_processor_from_backbone_prepares_as_the_source_did(tmp_path, square, trained_with):
    save_source(tmp_path)
    trained_with.save_pretrained(tmp_path)
    processor = MobileViTSSDLiteImageProcessor.from_backbone(tmp_path)
    assert isinstance(processor, MobileViTSSDLiteImageProcessor)
    expected = trained_with(square, return_tensors="pt").pixel_values
    actual = processor(square, return_tensors="pt").pixel_values
    torch.testing.assert_close(actual.float(), expected.float(), atol=1e-6, rtol=0)
    assert not torch.equal(expected[:, 0], expected[:, 2])
    smaller = MobileViTSSDLiteImageProcessor.from_backbone(tmp_path, size={"height": 96, "width": 64})
    assert smaller(square, return_tensors="pt").pixel_values.shape == (1, 3, 96, 64)
    assert smaller.do_flip_channel_order == processor.do_flip_channel_order


def test_processor_from_backbone_ignores_what_mobilevit_never_does(tmp_path, square):
    save_source(tmp_path)
    MobileViTImageProcessor(**SQUARE).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_normalize": True, "image_mean": [0.5] * 3}))
    processor = MobileViTSSDLiteImageProcessor.from_backbone(tmp_path)
    expected = MobileViTImageProcessor.from_pretrained(tmp_path)(square, return_tensors="pt").pixel_values
    torch.testing.assert_close(processor(square, return_tensors="pt").pixel_values, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("flip", [True, False])
def test_processor_from_backbone_without_one(tmp_path, flip):
    save_source(tmp_path)
    with pytest.raises(ValueError, match=r"no preprocessor_config.json.*do_flip_channel_order=True if .*BGR"):
        MobileViTSSDLiteImageProcessor.from_backbone(tmp_path)
    processor = MobileViTSSDLiteImageProcessor.from_backbone(tmp_path, do_flip_channel_order=flip, max_detections=7)
    assert (processor.do_flip_channel_order, processor.max_detections) == (flip, 7)


@pytest.mark.parametrize("given", [{}, {"do_flip_channel_order": True}])
def test_processor_from_backbone_of_no_source(tmp_path, given):
    with pytest.raises(OSError, match="nowhere"):
        MobileViTSSDLiteImageProcessor.from_backbone(tmp_path / "nowhere", **given)
