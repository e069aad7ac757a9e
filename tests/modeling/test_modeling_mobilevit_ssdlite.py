"""Detector: shared suite, parity with the official code, initialization, `from_backbone`, loss, validation."""

import math
import re

import numpy as np
import pytest
import torch
import transformers
from formula import DATA, fill, formula_image, formula_state_dict, official_shapes
from model_suite import (
    LEVEL_CHANNELS,
    TINY,
    TINY_BACKBONE,
    HeadSuite,
    assert_close,
    assert_xavier,
    make_pixels,
    tiny_detector,
    tiny_detector_config,
)
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_convert

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
from mobilevit_hf.convert.rules import translate
from mobilevit_hf.modeling.anchors_ssdlite import fit_anchors


def label(boxes, class_labels, **others):
    """Return the labels of one image."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "class_labels": torch.tensor(class_labels, dtype=torch.int64), **others}


BOX = [0.4, 0.6, 0.3, 0.2]


class TestDetection(HeadSuite):
    model_class = MobileViTSSDLiteForObjectDetection
    output_names = ("logits", "pred_boxes")
    first_stage = 0
    smallest_exported_side = 257  # two cells at stride 256

    def make_config(self, **fields):
        detector_fields = {"num_labels": fields.pop("num_labels")} if "num_labels" in fields else {}
        return tiny_detector_config(backbone_config={**TINY_BACKBONE, **fields}, **detector_fields)

    def encoder_config(self, config):
        return config.backbone_config

    def output_shapes(self, config, batch, height, width):
        cells = [-(-height // s) * -(-width // s) for s in (16, 32, 64, 128, 256)]
        anchors = 6 * sum(cells) + 4
        return [(batch, anchors, 1 + config.num_labels), (batch, anchors, 4)]

    def make_labels(self, batch, height, width):
        labels = [label([BOX, [0.7, 0.3, 0.5, 0.6], [0.1, 0.1, 0.05, 0.1]], [0, 3, 4])]
        return {"labels": labels + [label([], []) for _ in range(batch - 1)]}

    def invalid_labels(self):
        empty, valid = label([], []), label([BOX], [1])
        return [
            ({"labels": [empty, label([BOX, BOX], [1, 5])]}, r"image 1, box 1: got class 5, expected 0\.\.4"),
            ({"labels": [label([BOX], [-100]), valid]}, r"image 0, box 0: got class -100, expected 0\.\.4"),
            ({"labels": [valid, label([[19, 20, 7, 8]], [1])]}, r"image 1, box 0: got \[19.0, .*fractions.*Divide"),
            ({"labels": [label([BOX, [0.4, 0.4, -0.1, 0.1]], [1, 1]), empty]}, r"image 0, box 1: .*without area"),
            ({"labels": [valid, label([[math.nan, 0.4, 0.1, 0.1]], [1])]}, r"image 1, box 0: .*finite"),
            ({"labels": [valid]}, r"got 1 for a batch of 2 images"),
            ({"labels": [valid, {"boxes": torch.zeros(0, 4)}]}, r"image 1 has \['boxes'\], expected tensors"),
        ]


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
    """Create an XXS detector with the weights of an official state dict."""
    encoder = {name: tensor for name, tensor in state_dict.items() if name.startswith("encoder.")}
    tensors = {
        name.replace("mobilevit.", "backbone.", 1): t for name, t in translate(encoder, "official").tensors.items()
    }
    model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant("xxs", num_labels=num_labels))
    levels = list(model.head.level_heads)
    for name in state_dict.keys() - encoder.keys():
        new_name = name
        for pattern, replacement in OFFICIAL_NAMES:
            new_name = re.sub(pattern, replacement, new_name)
        new_name = re.sub(r"\.(\d)\.", lambda match: f".{levels[int(match[1])]}.", new_name, count=1)
        tensors[new_name] = state_dict[name]
    model.load_state_dict(tensors)
    return model.eval()


def assert_equal_detections(detections, expected):
    """Compare with the official detections (labels from 1), in any order of equal scores."""
    scores, labels, boxes = (torch.from_numpy(expected[name]) for name in ("scores", "labels", "boxes"))
    assert len(detections["scores"]) == len(scores)
    torch.testing.assert_close(detections["scores"], scores, atol=1e-4, rtol=0)
    distance = (detections["boxes"][:, None] - boxes.clamp(0, 1)).abs().amax(dim=-1)
    distance += 10 * (detections["scores"][:, None] - scores).abs() + (detections["labels"][:, None] + 1 != labels)
    assert distance.amin(dim=0).max() < 2e-3
    assert distance.amin(dim=1).max() < 2e-3


@pytest.mark.parametrize("size", [(320, 320), (256, 384)], ids=lambda size: "x".join(map(str, size)))
def test_outputs_equal_official_code(size):
    golden, suffix = np.load(DATA / "formula_golden.npz"), "{}x{}".format(*size)
    model = official_detector(formula_state_dict(official_shapes("detection", 5)), 4)
    with torch.no_grad():
        outputs = model(formula_image(*size))
        logits, locations, _ = model.head(model.backbone(formula_image(*size)).feature_maps)
    torch.testing.assert_close(logits, torch.from_numpy(golden[f"det_class_logits_{suffix}"]), atol=5e-4, rtol=0)
    torch.testing.assert_close(locations, torch.from_numpy(golden[f"det_box_locations_{suffix}"]), atol=5e-4, rtol=0)
    assert torch.equal(outputs.logits, logits)
    (detections,) = MobileViTSSDLiteImageProcessor().post_process_object_detection(outputs)
    assert_equal_detections(
        detections, {name: golden[f"det_{name}_{suffix}"] for name in ("scores", "labels", "boxes")}
    )


@pytest.mark.parametrize("size", ["320x320", "256x384"])
def test_outputs_equal_official_code_for_reference_weights(reference_data, size):
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
        for i, image_detections in enumerate(detections):
            official = {part: expected[f"{name}{i}_{part}_{size}"] for part in ("scores", "labels", "boxes")}
            assert_equal_detections(image_detections, official)
    outputs = model.train()(pixels, labels=[label([BOX, [0.5, 0.5, 1.0, 1.0]], [79, 0])] * len(pixels))
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("variant", "millions"), [("xxs", 1.755), ("xs", 2.742), ("s", 5.739)])
def test_parameter_counts(variant, millions):
    with torch.device("meta"):
        model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant(variant, num_labels=80))
    assert round(model.num_parameters() / 1e6, 3) == millions


def test_initialization_matches_official_code():
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


def test_predictors_for_new_classes_are_initialized(tmp_path):
    tiny_detector().save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = MobileViTSSDLiteForObjectDetection.from_pretrained(tmp_path, num_labels=2, ignore_mismatched_sizes=True)
    for name, head in loaded.head.level_heads.items():
        assert_xavier(head.predictor.convolution.weight, name)
        assert head.predictor.convolution.bias.eq(0).all()


LABELS = {0: "cat", 1: "dog"}


SOURCES = {
    "classifier": (MobileViTForImageClassification, MobileViTConfig, "mobilevit."),
    "segmentation": (MobileViTForSemanticSegmentation, MobileViTConfig, "mobilevit."),
    "encoder": (MobileViTModel, MobileViTConfig, ""),
    "backbone": (MobileViTBackbone, MobileViTBackboneConfig, ""),
    "stock": (transformers.MobileViTForImageClassification, transformers.MobileViTConfig, "mobilevit."),
}


def save_source(folder, name="classifier", dtype=torch.float32, **fields):
    """Save a tiny model and return the weights of its backbone by their names in `MobileViTBackbone`."""
    model_class, config_class, prefix = SOURCES[name]
    stride = {"output_stride": 16} if name == "segmentation" else {}
    model = fill(model_class(config_class(**{**TINY, **stride, **fields}))).to(dtype)
    model.save_pretrained(folder)
    return {key.removeprefix(prefix): tensor for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_from_backbone_loads_weights_and_fields(tmp_path, name, dtype):
    expected_weights = save_source(tmp_path, name, dtype, conv_kernel_size=5)
    model = MobileViTSSDLiteForObjectDetection.from_backbone(
        tmp_path, id2label=LABELS, level_channels=LEVEL_CHANNELS, image_size=96, smooth_l1_beta=0.5
    )
    assert not model.training
    assert not any(module.training for module in model.modules())
    for key, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, expected_weights[key].to(tensor.dtype)), key
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    config = model.config
    assert (config.id2label, config.label2id, config.num_labels) == (LABELS, {"cat": 0, "dog": 1}, 2)
    assert (config.level_channels, config.image_size, config.smooth_l1_beta) == (LEVEL_CHANNELS, 96, 0.5)
    assert (config.backbone_config.conv_kernel_size, config.backbone_config.hidden_dropout_prob) == (5, 0.1)
    assert (config.backbone_config.output_stride, config.backbone_config.out_features) == (32, ["stage4", "stage5"])
    with torch.no_grad():
        outputs = model(make_pixels())
    assert outputs.logits.shape == (2, 6 * (16 + 4 + 3) + 4, 3)


def test_from_backbone_model_can_be_saved_and_loaded(tmp_path):
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
        actual, expected = (detector(make_pixels(1, 160, 160)) for detector in (loaded, model))
    assert_close([actual.logits, actual.pred_boxes], [expected.logits, expected.pred_boxes], 1e-6)
    assert actual.logits.shape[1] == sum(
        n * m for n, m in zip((400, 100, 25, 9, 4, 1, 1), model.config.anchors_per_cell, strict=True)
    )


def test_from_backbone_rejects_invalid_sources(tmp_path):
    from_backbone = MobileViTSSDLiteForObjectDetection.from_backbone
    save_source(tmp_path / "source")
    with pytest.raises(ValueError, match=r"model.safetensors is a file, expected a directory.*mobilevit convert"):
        from_backbone(tmp_path / "source/model.safetensors", id2label=LABELS)
    tiny_detector().save_pretrained(tmp_path / "detector")
    with pytest.raises(
        ValueError, match=r"got model_type 'mobilevit_ssdlite', expected 'mobilevit' .*from_pretrained"
    ):
        from_backbone(tmp_path / "detector", id2label=LABELS)
    transformers.ResNetConfig().save_pretrained(tmp_path / "resnet")
    with pytest.raises(ValueError, match=r"resnet: got model_type 'resnet', expected 'mobilevit'"):
        from_backbone(tmp_path / "resnet", id2label=LABELS)
    MobileViTConfig(**TINY).save_pretrained(tmp_path / "no_weights")
    for name in ("no_weights", "missing"):
        with pytest.raises(OSError, match=name):
            from_backbone(tmp_path / name, id2label=LABELS)
    with pytest.raises(ValueError, match=r"id2label: got .*without gaps"):
        from_backbone(tmp_path / "source", id2label={0: "cat", 2: "dog"})
    with pytest.raises(ValueError, match=r"level_channels: got \[1, 2\], expected 6 entries"):
        from_backbone(tmp_path / "source", id2label=LABELS, level_channels=[1, 2])


def test_from_backbone_rejects_incomplete_weights(tmp_path):
    model = fill(MobileViTForImageClassification(MobileViTConfig(**TINY)))
    state = {name: tensor for name, tensor in model.state_dict().items() if "encoder.layer.4." not in name}
    count = len(model.state_dict()) - len(state)
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(
        ValueError, match=rf"{count} weights of the backbone are missing, such as encoder\.layer\.4\..*complete"
    ):
        MobileViTSSDLiteForObjectDetection.from_backbone(tmp_path, id2label=LABELS)


def test_training_from_scratch_lowers_the_loss():
    torch.manual_seed(0)
    model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant("xxs", num_labels=2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    pixels, labels = 0.2 * make_pixels(4, 96, 96), []
    for i, image in enumerate(pixels):  # one red or blue square per image
        x, y, width = 8 * i, 40 - 8 * i, 32 + 8 * i
        image[2 * (i % 2), y : y + width, x : x + width] += 0.8
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
def test_loss_and_gradients_are_finite(counts):
    generator, model = torch.Generator().manual_seed(0), tiny_detector().train()
    outputs = model(make_pixels(), labels=[random_label(count, generator) for count in counts])
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert outputs.loss_dict.keys() == {"loss_ce", "loss_bbox"}
    torch.testing.assert_close(sum(outputs.loss_dict.values()), outputs.loss)
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) == any(counts)
    assert (outputs.loss > 0) == any(counts)


def naive_loss(outputs, labels, config, levels):
    """Compute the loss of `outputs` with torch and torchvision functions; every image must have a box."""
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
    for logits, predicted, label in zip(outputs.logits, outputs.pred_boxes, labels, strict=True):
        corners, others = (box_convert(b, "cxcywh", "xyxy") for b in (anchors, label["boxes"]))
        overlap = torch.stack([_overlap(corners, other, config.match_iou_eps) for other in others], dim=1)
        best, which = overlap.max(dim=1)
        positive = best >= config.match_iou_threshold
        for j in range(len(others)):
            forced = overlap[:, j].argmax()
            positive[forced], which[forced] = True, j

        def locate(boxes, positive=positive):
            offsets = (boxes[:, :2] - anchors[positive, :2]) / anchors[positive, 2:]
            return torch.cat([offsets, (boxes[:, 2:] / anchors[positive, 2:]).log()], dim=1) / unit

        targets = torch.where(positive, label["class_labels"][which] + 1, 0)
        cross_entropy = F.cross_entropy(logits, targets, reduction="none")
        hardest = cross_entropy[~positive].sort(descending=True).values
        total += cross_entropy[positive].sum() + hardest[: config.negatives_per_positive * positive.sum()].sum()
        total += config.localization_loss_weight * F.smooth_l1_loss(
            locate(predicted[positive]),
            locate(label["boxes"][which[positive]]),
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


def test_crowd_boxes_are_ignored():
    generator, model, pixels = torch.Generator().manual_seed(0), tiny_detector(), make_pixels()
    labels = [random_label(count, generator) for count in (5, 2)]
    crowds = [torch.tensor([0, 1, 0, 0, 1]), torch.tensor([1, 1])]
    with torch.no_grad():
        marked = [{**label, "iscrowd": crowd} for label, crowd in zip(labels, crowds, strict=True)]
        without = [
            {name: tensor[crowd == 0] for name, tensor in label.items()}
            for label, crowd in zip(labels, crowds, strict=True)
        ]
        loss = model(pixels, labels=marked).loss
        torch.testing.assert_close(loss, model(pixels, labels=without).loss, rtol=0, atol=0)
        assert not torch.isclose(loss, model(pixels, labels=labels).loss)


def test_labels_accept_other_dtypes_and_extra_entries():
    model, pixels = tiny_detector(), make_pixels(1)
    with torch.no_grad():
        expected = model(pixels, labels=[label([BOX], [1])]).loss
        other = {"boxes": torch.tensor([BOX]).double(), "class_labels": torch.tensor([1], dtype=torch.int32)}
        other |= {"image_id": "a", "area": None, "iscrowd": torch.tensor([0])}
        loss = model(pixels, labels=[other]).loss
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinite_pixels_raise(value):
    pixels = make_pixels(3)
    pixels[1, 2, 5, 5] = value
    with pytest.raises(ValueError, match=r"image 1 contains NaN or infinity, expected values in 0\.\.1"):
        tiny_detector()(pixels, labels=[label([BOX], [1])] * 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"boxes": torch.tensor([BOX]), "class_labels": torch.tensor([1])}, "got dict, expected a list"),
        ([torch.tensor([BOX])], "got list, expected a list with one dict"),
        ([label([BOX], [1]) | {"iscrowd": [0]}], "image 0: iscrowd is not a tensor"),
        ([label([BOX], [1]) | {"iscrowd": torch.tensor([0, 1])}], "image 0: iscrowd is not a tensor"),
    ],
    ids=["one dict", "tensors", "iscrowd list", "iscrowd length"],
)
def test_malformed_labels_raise(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_detector()(make_pixels(1), labels=labels)


def test_training_batch_of_one_requires_more_than_one_cell():
    """Batch normalization can't normalize a single value per channel."""
    model = tiny_detector().train()
    with pytest.raises(ValueError, match=r"got a training batch of one image of 256x256 pixels.*dataloader_drop_last"):
        model(make_pixels(1, 256, 256))
    model(make_pixels(1, 257, 256))
    model(make_pixels(2, 256, 256))
    model.eval()(make_pixels(1, 256, 256))


@pytest.mark.parametrize("labels", [None, []])
def test_empty_batch_raises(labels):
    with pytest.raises(ValueError, match="got an empty batch, expected at least one image"):
        tiny_detector()(torch.zeros(0, 3, 64, 64), labels=labels)
