"""The detector: the shared suite, the official code's outputs, training, starting from a backbone, its pictures."""

import json
import math
import re

import numpy as np
import pytest
import torch
import transformers
from formula import DATA, formula_image, formula_state_dict, official_shapes
from model_suite import TINY, HeadSuite, assert_close, fill, make_pixels
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_convert
from transformers import BitImageProcessor, MobileViTImageProcessor

from mobilevit_hf import (
    MobileViTBackbone,
    MobileViTBackboneConfig,
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTForSemanticSegmentation,
    MobileViTModel,
    MobileViTSSDLiteConfig,
    MobileViTSSDLiteForObjectDetection,
    MobileViTSSDLiteImageProcessor,
)
from mobilevit_hf.convert_rules import translate
from mobilevit_hf.modeling.ssdlite import fit_anchors

BACKBONE = {name: value for name, value in TINY.items() if name != "num_labels"}
LEVEL_CHANNELS = [24, 28, 28, 16, 16, 12]  # the second and third, fourth and fifth equal, as in the paper
LABELS = {0: "cat", 1: "dog"}


def tiny_config(**fields):
    return MobileViTSSDLiteConfig(
        **{"backbone_config": BACKBONE, "image_size": 64, "level_channels": LEVEL_CHANNELS, "num_labels": 5, **fields}
    )


def tiny_detector(**fields):
    return fill(MobileViTSSDLiteForObjectDetection(tiny_config(**fields))).eval()


def label(boxes, class_labels, **others):
    """A picture's objects as the model takes them."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "class_labels": torch.tensor(class_labels, dtype=torch.int64), **others}


GOOD = [0.4, 0.6, 0.3, 0.2]


class TestDetectionSuite(HeadSuite):
    model_class = MobileViTSSDLiteForObjectDetection
    output_names = ("logits", "pred_boxes")
    first_stage = 0
    smallest_exported_side = 257  # two cells at stride 256

    def make_config(self, **fields):
        own = {name: fields.pop(name) for name in ("num_labels",) if name in fields}
        return tiny_config(backbone_config={**BACKBONE, **fields}, **own)

    def encoder_config(self, config):
        return config.backbone_config

    def output_shapes(self, config, batch, height, width):
        cells = [-(-height // s) * -(-width // s) for s in (16, 32, 64, 128, 256)]
        anchors = 6 * sum(cells) + 4
        return [(batch, anchors, 1 + config.num_labels), (batch, anchors, 4)]

    def make_labels(self, batch, height, width):
        labels = [label([GOOD, [0.7, 0.3, 0.5, 0.6], [0.1, 0.1, 0.05, 0.1]], [0, 3, 4])]
        return {"labels": labels + [label([], []) for _ in range(batch - 1)]}

    def wrong_labels(self):
        empty, good = label([], []), label([GOOD], [1])
        return [
            ({"labels": [empty, label([GOOD, GOOD], [1, 5])]}, r"picture 1, box 1: got class 5, expected 0\.\.4"),
            ({"labels": [label([GOOD], [-100]), good]}, r"picture 0, box 0: got class -100, expected 0\.\.4"),
            ({"labels": [good, label([[19, 20, 7, 8]], [1])]}, r"picture 1, box 0: got \[19.0, .*fractions.*Divide"),
            ({"labels": [label([GOOD, [0.4, 0.4, -0.1, 0.1]], [1, 1]), empty]}, r"picture 0, box 1: .*without area"),
            ({"labels": [good, label([[math.nan, 0.4, 0.1, 0.1]], [1])]}, r"picture 1, box 0: .*finite"),
            ({"labels": [good]}, r"got 1 for a batch of 2 pictures"),
            ({"labels": [good, {"boxes": torch.zeros(0, 4)}]}, r"picture 1 has \['boxes'\], expected tensors"),
        ]


# --- fidelity --------------------------------------------------------------------------------------------------------

OFFICIAL_NAMES = (
    (r"^extra_layers\.os_-1\.1\.", "head.extra_layers.5.pointwise."),
    (r"^extra_layers\.os_256\.", "head.extra_layers.4."),
    (r"^extra_layers\.os_128\.", "head.extra_layers.3."),
    (r"^extra_layers\.os_64\.", "head.extra_layers.2."),
    (r"^ssd_heads\.", "head.level_heads."),
    (r"loc_cls_layer\.dw_conv\.", "depthwise."),
    (r"loc_cls_layer\.(pw_conv\.)?", "predictor."),
    (r"proj_layer\.", "projection."),
    (r"dw_conv\.", "depthwise."),
    (r"pw_conv\.", "pointwise."),
    (r"block\.conv\.", "convolution."),
    (r"block\.norm\.", "normalization."),
)


def official_detector(state_dict, num_labels):
    """Our XXS detector with the weights of an official state dict."""
    encoder = {name: tensor for name, tensor in state_dict.items() if name.startswith("encoder.")}
    ours = {
        name.replace("mobilevit.", "backbone.", 1): t for name, t in translate(encoder, "official").tensors.items()
    }
    model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant("xxs", num_labels=num_labels))
    levels = list(model.head.level_heads)
    for name in state_dict.keys() - encoder.keys():
        new_name = name
        for pattern, replacement in OFFICIAL_NAMES:
            new_name = re.sub(pattern, replacement, new_name)
        new_name = re.sub(r"\.(\d)\.", lambda match: f".{levels[int(match[1])]}.", new_name, count=1)
        ours[new_name] = state_dict[name]
    model.load_state_dict(ours)
    return model.eval()


def assert_same_detections(found, expected):
    """Each of the expected detections (scores, labels from 1, boxes) is found once; equally sure ones may swap."""
    scores, labels, boxes = (torch.from_numpy(expected[name]) for name in ("scores", "labels", "boxes"))
    assert len(found["scores"]) == len(scores)
    torch.testing.assert_close(found["scores"], scores, atol=1e-4, rtol=0)
    distance = (found["boxes"][:, None] - boxes.clamp(0, 1)).abs().amax(dim=-1)
    distance += 10 * (found["scores"][:, None] - scores).abs() + (found["labels"][:, None] + 1 != labels)
    assert distance.amin(dim=0).max() < 2e-3
    assert distance.amin(dim=1).max() < 2e-3


@pytest.mark.parametrize("size", [(320, 320), (256, 384)], ids=lambda size: "x".join(map(str, size)))
def test_official_outputs(size):
    golden, suffix = np.load(DATA / "formula_golden.npz"), "{}x{}".format(*size)
    model = official_detector(formula_state_dict(official_shapes("detection", 5)), 4)
    with torch.no_grad():
        outputs = model(formula_image(*size))
        logits, locations, _ = model.head(model.backbone(formula_image(*size)).feature_maps)
    torch.testing.assert_close(logits, torch.from_numpy(golden[f"det_class_logits_{suffix}"]), atol=5e-4, rtol=0)
    torch.testing.assert_close(locations, torch.from_numpy(golden[f"det_box_locations_{suffix}"]), atol=5e-4, rtol=0)
    assert torch.equal(outputs.logits, logits)
    (found,) = MobileViTSSDLiteImageProcessor().post_process_object_detection(outputs)
    assert_same_detections(found, {name: golden[f"det_{name}_{suffix}"] for name in ("scores", "labels", "boxes")})


@pytest.mark.parametrize("size", ["320x320", "256x384"])
def test_official_reference_outputs(reference_data, size):
    folder = reference_data / "reference"
    expected, pixels = (np.load(folder / name) for name in ("det_xxs_io.npz", "det_inputs.npz"))
    pixels = torch.from_numpy(pixels[size])
    model = official_detector(torch.load(folder / "det_xxs.pt", weights_only=True), 80)
    with torch.no_grad():
        outputs = model(pixels)
    logits, boxes = (torch.from_numpy(expected[f"{name}_{size}"]) for name in ("class_logits", "boxes_xyxy"))
    torch.testing.assert_close(outputs.logits, logits, atol=5e-4, rtol=0)
    torch.testing.assert_close(box_convert(outputs.pred_boxes, "cxcywh", "xyxy"), boxes, atol=1e-5, rtol=0)
    for threshold, name in ((None, "det"), (0.25, "detconf0.25_")):
        detections = MobileViTSSDLiteImageProcessor().post_process_object_detection(outputs, threshold)
        for i, found in enumerate(detections):
            official = {part: expected[f"{name}{i}_{part}_{size}"] for part in ("scores", "labels", "boxes")}
            assert_same_detections(found, official)
    outputs = model.train()(pixels, labels=[label([GOOD, [0.5, 0.5, 1.0, 1.0]], [79, 0])] * len(pixels))
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("variant", "millions"), [("xxs", 1.755), ("xs", 2.742), ("s", 5.739)])
def test_parameter_counts(variant, millions):
    with torch.device("meta"):
        model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant(variant, num_labels=80))
    assert round(model.num_parameters() / 1e6, 3) == millions


# --- initialisation --------------------------------------------------------------------------------------------------


def assert_xavier(weight, name):
    receptive_field = math.prod(weight.shape[2:])
    bound = math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * receptive_field))
    assert weight.abs().max() <= bound, name
    assert weight.abs().max() > 0.95 * bound, name
    # Seven standard errors of a uniform distribution's variance, which is bound² / 3.
    assert abs(weight.square().mean() / (bound**2 / 3) - 1) < 7 * math.sqrt(4 / 5 / weight.numel()), name


def test_initialisation():
    torch.manual_seed(0)
    model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant("xxs"))
    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert sum(name.startswith("head.") for name in convolutions) == 7 + 2 + 5 + 6
    for name, module in convolutions.items():
        if name.startswith("head."):
            assert_xavier(module.weight, name)
        else:
            expected = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            assert abs(module.weight.std() / expected - 1) < 5 / math.sqrt(2 * module.weight.numel()), name
        if module.bias is not None:
            assert module.bias.eq(0).all(), name
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all(), name
            assert module.bias.eq(0).all(), name


def test_predictors_for_other_classes_are_initialised(tmp_path):
    tiny_detector().save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = MobileViTSSDLiteForObjectDetection.from_pretrained(tmp_path, num_labels=2, ignore_mismatched_sizes=True)
    for name, head in loaded.head.level_heads.items():
        assert_xavier(head.predictor.convolution.weight, name)
        assert head.predictor.convolution.bias.eq(0).all()


# --- training --------------------------------------------------------------------------------------------------------


def test_a_fresh_model_learns():
    torch.manual_seed(0)
    model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant("xxs", num_labels=2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    pixels, labels = 0.2 * make_pixels(4, 96, 96), []
    for i, picture in enumerate(pixels):  # a red or blue square on each
        x, y, width = 8 * i, 40 - 8 * i, 32 + 8 * i
        picture[2 * (i % 2), y : y + width, x : x + width] += 0.8
        labels.append(label([[(x + width / 2) / 96, (y + width / 2) / 96, width / 96, width / 96]], [i % 2]))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def random_label(count, generator, num_labels=5):
    sizes = 0.05 + 0.6 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([sizes / 2 + torch.rand(count, 2, generator=generator) * (1 - sizes), sizes], dim=1)
    return {"boxes": boxes, "class_labels": torch.randint(num_labels, (count,), generator=generator)}


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (100, 100), (0, 1)], ids=str)
def test_loss_is_finite(counts):
    generator, model = torch.Generator().manual_seed(0), tiny_detector().train()
    outputs = model(make_pixels(), labels=[random_label(count, generator) for count in counts])
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert outputs.loss_dict.keys() == {"loss_classification", "loss_localization"}
    torch.testing.assert_close(sum(outputs.loss_dict.values()), outputs.loss)
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) == any(counts)
    assert (outputs.loss > 0) == any(counts)


def naive_loss(outputs, labels, config, levels):
    """The loss of `outputs` by torch's and torchvision's functions, for pictures in which every label has a box."""
    scales, total = config.anchor_scales, 0
    anchors = []
    for k, (height, width) in enumerate(levels):
        s, ratios = scales[k], config.anchor_ratios[k]
        sizes = [(s, s), (math.sqrt(s * scales[k + 1]),) * 2]
        sizes += [pair for r in ratios for pair in ((s * r**0.5, s / r**0.5), (s / r**0.5, s * r**0.5))]
        anchors += [
            ((x + 0.5) / width, (y + 0.5) / height, min(w, 1), min(h, 1))
            for y in range(height)
            for x in range(width)
            for w, h in sizes
        ]
    anchors, matches = torch.tensor(anchors), 0
    unit = torch.tensor([config.center_variance] * 2 + [config.size_variance] * 2)
    for logits, predicted, one in zip(outputs.logits, outputs.pred_boxes, labels, strict=True):
        corners, others = (box_convert(b, "cxcywh", "xyxy") for b in (anchors, one["boxes"]))
        overlap = torch.stack([_overlap(corners, other, config.match_iou_eps) for other in others], dim=1)
        best, which = overlap.max(dim=1)
        positive = best >= config.match_iou_threshold
        for j in range(len(others)):
            forced = overlap[:, j].argmax()
            positive[forced], which[forced] = True, j

        def locate(boxes, positive=positive):
            offsets = (boxes[:, :2] - anchors[positive, :2]) / anchors[positive, 2:]
            return torch.cat([offsets, (boxes[:, 2:] / anchors[positive, 2:]).log()], dim=1) / unit

        targets = torch.where(positive, one["class_labels"][which] + 1, 0)
        cross_entropy = F.cross_entropy(logits, targets, reduction="none")
        hardest = cross_entropy[~positive].sort(descending=True).values
        total += cross_entropy[positive].sum() + hardest[: config.negatives_per_positive * positive.sum()].sum()
        total += config.localization_loss_weight * F.smooth_l1_loss(
            locate(predicted[positive]),
            locate(one["boxes"][which[positive]]),
            reduction="sum",
            beta=config.smooth_l1_beta,
        )
        matches += positive.sum()
    return total / matches


def _overlap(boxes, other, eps):
    sides = torch.minimum(boxes[:, 2:], other[2:]) - torch.maximum(boxes[:, :2], other[:2])
    common = sides.clamp(min=0).prod(dim=1)
    return common / ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (other[2:] - other[:2]).prod() - common + eps)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"center_variance": 0.3, "size_variance": 0.5},
        {"match_iou_threshold": 0.3, "match_iou_eps": 0.01},
        {"negatives_per_positive": 1, "smooth_l1_beta": 0.1, "localization_loss_weight": 3.0},
        {"anchor_scales": [0.08, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0], "anchor_ratios": [[1.5], [2], [2], [], [3, 4], [2]]},
    ],
    ids=str,
)
def test_loss_follows_the_configuration(fields):
    generator, model = torch.Generator().manual_seed(0), tiny_detector(**fields)
    labels = [random_label(count, generator) for count in (1, 6)]
    with torch.no_grad():
        outputs = model(make_pixels(2, 160, 224), labels=labels)
    levels = [(10, 14), (5, 7), (3, 4), (2, 2), (1, 1), (1, 1)]
    expected = naive_loss(outputs, labels, model.config, levels)
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-4, atol=0)


def test_crowds_are_left_out():
    generator, model, pixels = torch.Generator().manual_seed(0), tiny_detector(), make_pixels()
    labels = [random_label(count, generator) for count in (5, 2)]
    crowds = [torch.tensor([0, 1, 0, 0, 1]), torch.tensor([1, 1])]
    with torch.no_grad():
        marked = [{**one, "iscrowd": crowd} for one, crowd in zip(labels, crowds, strict=True)]
        without = [{name: t[crowd == 0] for name, t in one.items()} for one, crowd in zip(labels, crowds, strict=True)]
        loss = model(pixels, labels=marked).loss
        torch.testing.assert_close(loss, model(pixels, labels=without).loss, rtol=0, atol=0)
        assert not torch.isclose(loss, model(pixels, labels=labels).loss)


def test_labels_of_other_types_and_with_other_entries():
    model, pixels = tiny_detector(), make_pixels(1)
    with torch.no_grad():
        expected = model(pixels, labels=[label([GOOD], [1])]).loss
        others = {"boxes": torch.tensor([GOOD]).double(), "class_labels": torch.tensor([1], dtype=torch.int32)}
        loss = model(pixels, labels=[{**others, "image_id": "a", "area": None, "iscrowd": torch.tensor([0])}]).loss
    torch.testing.assert_close(loss, expected)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_pixels_name_the_picture(value):
    pixels = make_pixels(3)
    pixels[1, 2, 5, 5] = value
    with pytest.raises(ValueError, match=r"picture 1 holds NaN or infinity, expected values in 0\.\.1"):
        tiny_detector()(pixels, labels=[label([GOOD], [1])] * 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"boxes": torch.tensor([GOOD]), "class_labels": torch.tensor([1])}, "got dict, expected a list"),
        ([torch.tensor([GOOD])], "got list, expected a list with one dict"),
        ([label([GOOD], [1]) | {"iscrowd": [0]}], "picture 0: iscrowd is not a tensor"),
        ([label([GOOD], [1]) | {"iscrowd": torch.tensor([0, 1])}], "picture 0: iscrowd is not a tensor"),
    ],
    ids=["one dict", "tensors", "iscrowd list", "iscrowd length"],
)
def test_labels_of_another_form(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_detector()(make_pixels(1), labels=labels)


def test_training_on_one_picture_needs_more_than_one_cell():
    """Batch normalisation has nothing to normalise a single value by."""
    model = tiny_detector().train()
    with pytest.raises(ValueError, match=r"got a batch of one picture of 256x256 pixels.*dataloader_drop_last"):
        model(make_pixels(1, 256, 256))
    model(make_pixels(1, 257, 256))
    model(make_pixels(2, 256, 256))
    model.eval()(make_pixels(1, 256, 256))


@pytest.mark.parametrize("labels", [None, []])
def test_empty_batch(labels):
    with pytest.raises(ValueError, match="got an empty batch, expected at least one picture"):
        tiny_detector()(torch.zeros(0, 3, 64, 64), labels=labels)


# --- from a backbone -------------------------------------------------------------------------------------------------

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
    with pytest.raises(ValueError, match=rf"lack {count} of the backbone's, such as encoder\.layer\.4\..*whole"):
        MobileViTSSDLiteForObjectDetection.from_backbone(tmp_path, id2label=LABELS)


SQUARE = {"size": {"shortest_edge": 320}, "crop_size": {"height": 320, "width": 320}}


@pytest.fixture(scope="module")
def square():
    """A picture of the size that the detector takes."""
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


# --- image processor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(480, 640), (97, 320), (600, 33), (320, 320)], ids=str)
def test_pictures_are_resized_to_a_square(size):
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
    for other in (np.array(source), torch.from_numpy(np.array(source)).permute(2, 0, 1)):
        assert torch.equal(processor(other, return_tensors="pt").pixel_values, actual)


def test_pictures_of_several_sizes_and_modes(picture):
    pictures = [picture, picture.resize((50, 90)), picture.convert("L"), picture.convert("RGBA")]
    processor = MobileViTSSDLiteImageProcessor(do_flip_channel_order=True)
    together = processor(pictures, return_tensors="pt").pixel_values
    assert together.shape == (4, 3, 320, 320)
    for pixels, one in zip(together, pictures, strict=True):
        assert torch.equal(pixels, processor(one.convert("RGB"), return_tensors="pt").pixel_values[0])


def test_pictures_are_not_resized_on_request(picture):
    processor = MobileViTSSDLiteImageProcessor(do_resize=False)
    expected = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)
    pixels = processor(picture, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, expected[None])
    several = processor([picture, picture.resize((50, 90))]).pixel_values
    torch.testing.assert_close(several[0], expected)
    assert [tuple(pixels.shape) for pixels in several] == [(3, 96, 128), (3, 90, 50)]


def coco(*objects, **fields):
    return {"image_id": 7, "annotations": [{"bbox": b, "category_id": c, **o} for b, c, o in objects], **fields}


def test_annotations_become_labels():
    pictures = [Image.new("RGB", (200, 100)), Image.new("RGB", (64, 64))]
    crowded = coco(([20, 10, 40, 30], 3, {}), ([0, 0, 200, 100], 0, {"iscrowd": 1, "area": 12.5, "id": 5}))
    batch = MobileViTSSDLiteImageProcessor()(pictures, annotations=[crowded, coco(image_id=9)], return_tensors="pt")
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
    (alone,) = MobileViTSSDLiteImageProcessor()(pictures[0], annotations=crowded, return_tensors="pt")["labels"]
    assert torch.equal(alone["boxes"], first["boxes"])


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([coco()], r"got 1 for 2 pictures"),
        ([coco()] * 3, r"got 3 for 2 pictures"),
        ([coco(), {"image_id": 1}], r"picture 1: KeyError: 'annotations'.*`bbox` \[x, y, w, h\]"),
        ([coco(), {"boxes": [], "labels": []}], r"picture 1: KeyError"),
        ([{"annotations": [{"category_id": 1}]}, coco()], r"picture 0: KeyError: 'bbox'"),
        ([coco(([1, 2, 3, 4], 0, {})), {"annotations": [{"bbox": [1, 2, 3, 4]}]}], r"picture 1: KeyError: 'category"),
        ([coco(), coco(([1, 2, 3], 0, {}))], r"picture 1: "),
        ([coco(), coco(([1, 2, 3, 4], 0, {}), ([1, 2, 3], 0, {}))], r"picture 1: "),
        ([coco(), coco(*[([1, 2, 3], 0, {})] * 4)], r"picture 1: "),
        ([coco(), coco(([1, 2, 3, 4], "cat", {}))], r"picture 1: "),
        ([coco(), coco(([1, 2, 3, 4], 1.5, {}))], r"picture 1: "),
        ([coco(), coco((["a", 2, 3, 4], 0, {}))], r"picture 1: "),
        ([coco(), [1, 2]], r"picture 1: TypeError"),
    ],
)
def test_wrong_annotations(picture, annotations, message):
    with pytest.raises(ValueError, match="annotations: " + message):
        MobileViTSSDLiteImageProcessor()([picture] * 2, annotations=annotations, return_tensors="pt")


def detector_outputs():
    """Of two pictures: what a detector of two classes with three anchors says."""
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
        [torch.tensor([100, 200]), torch.tensor([50, 20])],  # as labels have them in orig_size
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


def test_detections_follow_the_settings():
    outputs = detector_outputs()
    detect = MobileViTSSDLiteImageProcessor().post_process_object_detection
    torch.testing.assert_close(detect(outputs)[0]["boxes"][0], torch.tensor([0.7, 0.0, 1.0, 0.3]))
    assert [len(found["scores"]) for found in detect(outputs, 0.5)] == [2, 0]
    assert [len(found["scores"]) for found in detect(outputs, 1e-9)] == [6, 2]
    for settings, scores in (
        ({"score_threshold": 0.2}, [0.85, 0.6, 0.3]),
        ({"max_detections": 1}, [0.85]),
        ({"max_candidates_per_class": 1}, [0.85, 0.6]),
    ):
        found = MobileViTSSDLiteImageProcessor(**settings).post_process_object_detection(outputs)
        torch.testing.assert_close(found[0]["scores"], torch.tensor(scores))
    overlapping = transformers.utils.ModelOutput(
        logits=torch.tensor([[[0.0, 2.0], [0.0, 1.0]]]),
        pred_boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.3]]]),  # an overlap of 2 / 3
    )
    for threshold, count in ((0.5, 1), (0.6, 1), (0.7, 2)):
        processor = MobileViTSSDLiteImageProcessor(nms_iou_threshold=threshold)
        assert len(processor.post_process_object_detection(overlapping)[0]["scores"]) == count


@pytest.mark.parametrize("sizes", [[], [(1, 1)], [(1, 1)] * 3, torch.ones(3, 2)], ids=len)
def test_wrong_number_of_target_sizes(sizes):
    with pytest.raises(ValueError, match=rf"target_sizes: got {len(sizes)} for 2 pictures"):
        MobileViTSSDLiteImageProcessor().post_process_object_detection(detector_outputs(), target_sizes=sizes)


def test_settings_are_saved(tmp_path):
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
    ],
)
def test_wrong_settings(setting, value, expected):
    with pytest.raises(ValueError, match=f"{setting}: got {value}, expected .*{expected}"):
        MobileViTSSDLiteImageProcessor(**{setting: value})
