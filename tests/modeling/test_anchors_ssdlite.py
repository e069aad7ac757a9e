"""Anchor generation and fitting, compared with the official code and brute force."""

import json
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from box_cases import LEVEL_SIZES, RATIOS, SCALES, random_boxes
from torchvision.ops import box_convert, box_iou

from mobilevit_hf import MobileViTSSDLiteConfig, MobileViTSSDLiteForObjectDetection
from mobilevit_hf.modeling.anchors_ssdlite import best_overlaps, feature_sizes, fit_anchors, make_anchors

PAPER = {"feature_strides": [16, 32, 64, 128, 256, -1], "anchor_scales": SCALES, "anchor_ratios": RATIOS}


def naive_anchors(levels, scales, ratios):
    anchors = []
    for k, (height, width) in enumerate(levels):
        sizes = [(scales[k], scales[k]), (math.sqrt(scales[k] * scales[k + 1]),) * 2]
        for r in ratios[k]:
            sizes.append((scales[k] * math.sqrt(r), scales[k] / math.sqrt(r)))
            sizes.append((scales[k] / math.sqrt(r), scales[k] * math.sqrt(r)))
        for y in range(height):
            for x in range(width):
                for w, h in sizes:
                    anchor = ((x + 0.5) / width, (y + 0.5) / height, w, h)
                    anchors.append([min(max(value, 0), 1) for value in anchor])
    return torch.tensor(anchors, dtype=torch.float32)


@pytest.mark.parametrize("size", LEVEL_SIZES)
def test_make_anchors_equals_loop_for_paper_levels(size):
    config = MobileViTSSDLiteConfig()
    anchors = make_anchors(LEVEL_SIZES[size], config.anchor_scales, config.anchor_ratios)
    assert anchors.dtype == torch.float32
    torch.testing.assert_close(anchors, naive_anchors(LEVEL_SIZES[size], SCALES, RATIOS), atol=1e-7, rtol=0)


@pytest.mark.parametrize("size", LEVEL_SIZES)
def test_make_anchors_equals_official_code(reference_data, size):
    expected = np.load(reference_data / "reference/train_matcher.npz")[f"anchors_{size}"]
    config = MobileViTSSDLiteConfig()
    anchors = make_anchors(LEVEL_SIZES[size], config.anchor_scales, config.anchor_ratios)
    assert np.array_equal(anchors.numpy(), expected)
    if size != "300x300":
        side = {"320": "320x320"}.get(size, size)
        assert np.array_equal(expected, np.load(reference_data / "reference/det_xxs_io.npz")[f"anchors_cxcywh_{side}"])


def test_make_anchors_equals_loop_for_other_levels():
    levels, scales, ratios = [(3, 4), (2, 2), (1, 1)], [0.05, 0.3, 0.2, 4.0], [[], [1.5, 2, 5], [3.0]]
    anchors = make_anchors(levels, scales, ratios)
    assert len(anchors) == 12 * 2 + 4 * 8 + 4
    torch.testing.assert_close(anchors, naive_anchors(levels, scales, ratios), atol=1e-7, rtol=0)


def brute_force_overlaps(boxes, fields, image_size=320):
    """Compute the highest IoU of each box (cx, cy, w, h) with any anchor."""
    levels = [(1, 1) if s == -1 else (math.ceil(image_size / s),) * 2 for s in fields["feature_strides"]]
    anchors = make_anchors(levels, fields["anchor_scales"], fields["anchor_ratios"]).double()
    corners, anchor_corners = (box_convert(b, "cxcywh", "xyxy") for b in (boxes, anchors))
    return torch.cat([box_iou(part, anchor_corners).amax(dim=1) for part in corners.split(200)])


def recall(boxes, fields):
    return float((brute_force_overlaps(boxes, fields) >= 0.5).double().mean())


def as_images(boxes, height=480, width=640):
    """Distribute boxes (cx, cy, w, h) in 0..1 over two images: (x1, y1, x2, y2) in pixels, and image sizes."""
    corners = box_convert(boxes, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
    return [corners[::2], corners[1::2]], [(height, width)] * 2


@pytest.mark.parametrize(
    "fields",
    [
        PAPER,
        {"feature_strides": [8, 16, 32], "anchor_scales": [0.03, 0.2, 0.1, 0.6], "anchor_ratios": [[], [1.5, 4], [3]]},
    ],
    ids=["paper", "other"],
)
@pytest.mark.parametrize("image_size", [320, 300])
def test_best_overlaps_equal_brute_force(generator, fields, image_size):
    boxes = torch.cat([random_boxes(300, generator), random_boxes(300, generator, 0.005, 0.05)])
    boxes[:4, :2] = torch.tensor([[0, 0], [1, 1], [0, 1], [0.5, 0.5]])
    levels = feature_sizes(image_size, fields["feature_strides"])
    actual = best_overlaps(boxes, levels, fields["anchor_scales"], fields["anchor_ratios"])
    torch.testing.assert_close(actual, brute_force_overlaps(boxes, fields, image_size), atol=1e-5, rtol=0)


def test_fit_anchors_matches_or_exceeds_recall_of_paper(generator):
    boxes = random_boxes(600, generator)
    fields = fit_anchors(*as_images(boxes))
    assert recall(boxes, fields) >= recall(boxes, PAPER)


def test_fit_anchors_adds_finer_level_for_small_objects(generator):
    boxes = random_boxes(400, generator, 0.04, 0.1)
    fields = fit_anchors(*as_images(boxes))
    assert fields["feature_strides"] == [8, 16, 32, 64, 128, 256, -1]
    assert recall(boxes, PAPER) < 0.5 < recall(boxes, fields)
    config = MobileViTSSDLiteConfig.from_variant("xxs", num_labels=2, **fields)
    model = MobileViTSSDLiteForObjectDetection(config).eval()
    with torch.no_grad():
        outputs = model(torch.rand(1, 3, 320, 320))
    cells = [40 * 40, 20 * 20, 10 * 10, 5 * 5, 3 * 3, 2 * 2, 1]
    count = sum(n * (2 + 2 * len(ratios)) for n, ratios in zip(cells, fields["anchor_ratios"], strict=True))
    assert outputs.logits.shape == (1, count, 3)
    assert outputs.pred_boxes.shape == (1, count, 4)


def test_fit_anchors_keeps_levels_for_large_objects(generator):
    boxes = random_boxes(300, generator, 0.3, 0.9)
    fields = fit_anchors(*as_images(boxes))
    assert fields["feature_strides"] == [16, 32, 64, 128, 256, -1]
    assert recall(boxes, fields) >= max(0.95, recall(boxes, PAPER))


def test_fit_anchors_to_one_box():
    fields = fit_anchors([[], [[10, 10, 30, 25]]], torch.tensor([[100, 100], [480, 640]]))
    box = torch.tensor([[20 / 640, 17.5 / 480, 20 / 640, 15 / 480]], dtype=torch.float64)
    assert recall(box, fields) == 1
    json.dumps(fields)  # lists and numbers only
    assert MobileViTSSDLiteConfig.from_variant("xxs", **fields).anchor_scales == fields["anchor_scales"]


def test_fit_anchors_reaches_recall_on_bccd(reference_data):
    boxes, sizes, normalized = [], [], []
    for path in sorted((reference_data / "data/bccd/Annotations").glob("*.xml")):
        tree = ET.parse(path)
        width, height = (int(tree.find(f"size/{name}").text) for name in ("width", "height"))
        names = ("xmin", "ymin", "xmax", "ymax")
        corners = [[float(element.find(name).text) for name in names] for element in tree.findall("object/bndbox")]
        corners = [box for box in corners if box[0] < box[2] and box[1] < box[3]]
        boxes.append(corners)
        sizes.append((height, width))
        scale = torch.tensor([width, height, width, height], dtype=torch.float64)
        normalized.append(torch.tensor(corners, dtype=torch.float64).reshape(-1, 4) / scale)
    normalized = box_convert(torch.cat(normalized), "xyxy", "cxcywh")
    assert len(normalized) > 4000
    assert recall(normalized, fit_anchors(boxes, sizes)) >= 0.94


@pytest.mark.parametrize(
    ("boxes", "sizes", "message"),
    [
        ([], [], r"boxes: got none"),
        ([[], torch.zeros(0, 4)], [(10, 10)] * 2, r"boxes: got none"),
        ([[[1, 1, 2, 2]]], [(10, 10)] * 2, r"image_sizes: got 2 for the boxes of 1 images"),
        (
            [[[1, 1, 2, 2]], [[1, 1, 5, 5], [3, 3, 3, 6]]],
            [(10, 10)] * 2,
            r"image 1, box 1: got \[3, 3, 3, 6\].*area",
        ),
        ([[[5, 1, 2, 2]]], [(10, 10)], r"image 0, box 0: got \[5, 1, 2, 2\]"),
        ([[[1, 1, 2, 12]]], [(10, 20)], r"image 0, box 0: .*inside 20x10"),
        ([[[-1, 1, 2, 2]]], [(10, 10)], r"image 0, box 0"),
        ([[[1, 1, float("nan"), 2]]], [(10, 10)], r"image 0, box 0: got \[1.0, 1.0, nan"),
    ],
)
def test_fit_anchors_rejects_invalid_boxes(boxes, sizes, message):
    with pytest.raises(ValueError, match=re.compile(message)):
        fit_anchors(boxes, sizes)
