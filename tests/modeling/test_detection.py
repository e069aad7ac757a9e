"""The detector: the shared suite, the official code's outputs, initialization, training, bad input."""

import math
import re

import numpy as np
import pytest
import torch
from formula import DATA, formula_image, formula_state_dict, official_shapes
from model_suite import TINY_BACKBONE, HeadSuite, assert_xavier, make_pixels, tiny_detector, tiny_detector_config
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from mobilevit_hf import MobileViTSSDLiteConfig, MobileViTSSDLiteForObjectDetection, MobileViTSSDLiteImageProcessor
from mobilevit_hf.convert.rules import translate


def label(boxes, class_labels, **others):
    """An image's objects as the model takes them."""
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
        return tiny_detector_config(backbone_config={**TINY_BACKBONE, **fields}, **own)

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
            ({"labels": [empty, label([GOOD, GOOD], [1, 5])]}, r"image 1, box 1: got class 5, expected 0\.\.4"),
            ({"labels": [label([GOOD], [-100]), good]}, r"image 0, box 0: got class -100, expected 0\.\.4"),
            ({"labels": [good, label([[19, 20, 7, 8]], [1])]}, r"image 1, box 0: got \[19.0, .*fractions.*Divide"),
            ({"labels": [label([GOOD, [0.4, 0.4, -0.1, 0.1]], [1, 1]), empty]}, r"image 0, box 1: .*without area"),
            ({"labels": [good, label([[math.nan, 0.4, 0.1, 0.1]], [1])]}, r"image 1, box 0: .*finite"),
            ({"labels": [good]}, r"got 1 for a batch of 2 images"),
            ({"labels": [good, {"boxes": torch.zeros(0, 4)}]}, r"image 1 has \['boxes'\], expected tensors"),
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


# --- initialization --------------------------------------------------------------------------------------------------


def test_initialization():
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


def test_predictors_for_other_classes_are_initialized(tmp_path):
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
    for i, image in enumerate(pixels):  # a red or blue square on each
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
    """The loss of `outputs` by torch's and torchvision's functions, for images in which every label has a box."""
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
def test_broken_pixels_name_the_image(value):
    pixels = make_pixels(3)
    pixels[1, 2, 5, 5] = value
    with pytest.raises(ValueError, match=r"image 1 contains NaN or infinity, expected values in 0\.\.1"):
        tiny_detector()(pixels, labels=[label([GOOD], [1])] * 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"boxes": torch.tensor([GOOD]), "class_labels": torch.tensor([1])}, "got dict, expected a list"),
        ([torch.tensor([GOOD])], "got list, expected a list with one dict"),
        ([label([GOOD], [1]) | {"iscrowd": [0]}], "image 0: iscrowd is not a tensor"),
        ([label([GOOD], [1]) | {"iscrowd": torch.tensor([0, 1])}], "image 0: iscrowd is not a tensor"),
    ],
    ids=["one dict", "tensors", "iscrowd list", "iscrowd length"],
)
def test_labels_of_another_form(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_detector()(make_pixels(1), labels=labels)


def test_training_on_one_image_needs_more_than_one_cell():
    """Batch normalization has nothing to normalize a single value by."""
    model = tiny_detector().train()
    with pytest.raises(ValueError, match=r"got a training batch of one image of 256x256 pixels.*dataloader_drop_last"):
        model(make_pixels(1, 256, 256))
    model(make_pixels(1, 257, 256))
    model(make_pixels(2, 256, 256))
    model.eval()(make_pixels(1, 256, 256))


@pytest.mark.parametrize("labels", [None, []])
def test_empty_batch(labels):
    with pytest.raises(ValueError, match="got an empty batch, expected at least one image"):
        tiny_detector()(torch.zeros(0, 3, 64, 64), labels=labels)
