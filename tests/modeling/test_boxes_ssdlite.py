"""Box codec, IoU and detection selection, compared with torchvision, the official code and naive loops."""

import numpy as np
import pytest
import torch
import torchvision
from box_cases import VARIANCES, random_boxes
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_convert, box_iou

from mobilevit_hf.modeling.boxes_ssdlite import (
    decode_boxes,
    encode_boxes,
    pairwise_iou,
    rank_in_group,
    select_detections,
)


def test_box_codec_equals_torchvision(generator):
    anchors, boxes = (random_boxes(500, generator) for _ in range(2))
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    corners, anchor_corners = (box_convert(b, "cxcywh", "xyxy") for b in (boxes, anchors))
    torch.testing.assert_close(encode_boxes(boxes, anchors, *VARIANCES), coder.encode_single(corners, anchor_corners))
    locations = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    decoded = box_convert(decode_boxes(locations, anchors, *VARIANCES), "cxcywh", "xyxy")
    torch.testing.assert_close(decoded, coder.decode_single(locations, anchor_corners))


@pytest.mark.parametrize("variances", [VARIANCES, (1.0, 0.5)])
def test_decode_boxes_inverts_encode_boxes(generator, variances):
    anchors = random_boxes(200, generator)
    boxes = torch.stack([random_boxes(200, generator) for _ in range(3)])
    locations = encode_boxes(boxes, anchors, *variances)
    assert locations.shape == (3, 200, 4)
    torch.testing.assert_close(decode_boxes(locations, anchors, *variances), boxes)
    assert encode_boxes(anchors, anchors, *variances).abs().max() < 1e-12


def test_pairwise_iou_equals_torchvision(generator):
    boxes, others = (box_convert(random_boxes(n, generator), "cxcywh", "xyxy") for n in (60, 80))
    torch.testing.assert_close(pairwise_iou(boxes, others), box_iou(boxes, others))
    assert pairwise_iou(boxes, others).count_nonzero() not in (0, 60 * 80)


def test_pairwise_iou_of_boxes_without_area_is_zero_with_eps():
    boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.1, 0.1, 0.4, 0.4], [0.0, 0.3, 1.0, 0.3]])
    overlaps = pairwise_iou(boxes, boxes, eps=1e-5)
    assert torch.equal(overlaps != 0, torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]]).bool())
    torch.testing.assert_close(overlaps[1, 1], torch.tensor(0.09 / (0.09 + 1e-5)))
    assert pairwise_iou(boxes, boxes)[0, 0].isnan()


@pytest.mark.parametrize("groups", [[], [3], [7, 5, 7, 7], [2, 2, 2], [0, 9, 1, 9, 0, 0, 4]], ids=str)
def test_rank_in_group(groups):
    expected = [groups[:i].count(group) for i, group in enumerate(groups)]
    assert rank_in_group(torch.tensor(groups, dtype=torch.int64)).tolist() == expected


def naive_detections(scores, boxes, threshold=0.01, candidates=400, overlap=0.5, max_detections=200):
    """Compute the detections of one image class by class, as a list of (score, label, box)."""
    detections = []
    for label in range(scores.shape[1]):
        anchors = [a for a in range(len(scores)) if scores[a, label] > threshold]
        anchors = sorted(anchors, key=lambda a: -scores[a, label])[:candidates]
        kept = torchvision.ops.nms(boxes[anchors].double(), scores[anchors, label].double(), overlap).tolist()
        detections += [(float(scores[anchors[k], label]), anchors[k], label) for k in kept]
    detections.sort(key=lambda item: (-item[0], *item[1:]))  # equal scores are ordered by anchor, then class
    return [(score, label, boxes[anchor].tolist()) for score, anchor, label in detections[:max_detections]]


def assert_detections(detections, expected):
    assert detections["labels"].dtype == torch.int64
    actual = zip(*(detections[name].tolist() for name in ("scores", "labels", "boxes")), strict=True)
    assert list(actual) == expected


def random_scene(batch, anchors, labels, generator, side=0.2):
    """Return scores (batch, anchors, labels) in 0..1 and overlapping boxes (batch, anchors, 4) (x1, y1, x2, y2)."""
    scores = torch.rand(batch, anchors, labels, generator=generator) ** 2
    boxes = random_boxes(batch * anchors, generator, side / 2, side, torch.float32).view(batch, anchors, 4)
    return scores, box_convert(boxes, "cxcywh", "xyxy")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 0.8},
        {"threshold": 0.0, "candidates": 20},
        {"overlap": 0.1, "max_detections": 5},
        {"overlap": 1.0, "candidates": 1000, "max_detections": 10000},
        {"threshold": 1.0},
    ],
    ids=str,
)
def test_select_detections_equals_loop(generator, batch, options):
    scores, boxes = random_scene(batch, 700, 4, generator)
    names = {
        "threshold": "score_threshold",
        "candidates": "max_candidates_per_class",
        "overlap": "nms_iou_threshold",
        "max_detections": "max_detections",
    }
    expected = [naive_detections(*image, **options) for image in zip(scores, boxes, strict=True)]
    if not options:
        assert (scores > 0.01).sum(dim=1).min() > 400
        assert min(map(len, expected)) == 200
    detections = select_detections(scores, boxes, **{names[name]: value for name, value in options.items()})
    assert len(detections) == batch
    for actual, naive in zip(detections, expected, strict=True):
        assert_detections(actual, naive)


@pytest.mark.parametrize("anchors", [40, 2000])
def test_equal_scores_keep_the_order_of_anchors(generator, anchors):
    scores, boxes = random_scene(3, anchors, 3, generator, side=0.05)
    scores = (scores * 4).round() / 4
    detections = select_detections(scores, boxes, score_threshold=0.5)
    for actual, *image in zip(detections, scores, boxes, strict=True):
        assert_detections(actual, naive_detections(*image, threshold=0.5))


def test_select_detections_treats_images_independently(generator):
    scores, boxes = random_scene(3, 300, 4, generator)
    scores[1] = 0.005  # no detections between two images with detections
    together = select_detections(scores, boxes)
    assert len(together[1]["scores"]) == 0
    assert together[1]["boxes"].shape == (0, 4)
    for i, batched in enumerate(together):
        (single,) = select_detections(scores[i : i + 1], boxes[i : i + 1])
        assert batched.keys() == {"scores", "labels", "boxes"}
        assert all(torch.equal(batched[name], single[name]) for name in batched)


def test_nms_separates_classes_for_boxes_outside_the_image(generator):
    scores, boxes = random_scene(2, 50, 3, generator)
    boxes = boxes * 60 - 58  # they overlap only the bottom right corner of the image
    for actual, *image in zip(select_detections(scores, boxes), scores, boxes, strict=True):
        assert_detections(actual, naive_detections(*image))


@pytest.mark.parametrize("size", ["320x320", "256x384"])
@pytest.mark.parametrize(("name", "threshold"), [("det", 0.01), ("detconf0.25_", 0.25)])
def test_select_detections_equals_official_code(reference_data, size, name, threshold):
    data = np.load(reference_data / "reference/det_xxs_io.npz")
    logits, boxes = (torch.from_numpy(data[f"{output}_{size}"]) for output in ("class_logits", "boxes_xyxy"))
    detections = select_detections(logits.softmax(dim=-1)[..., 1:], boxes, score_threshold=threshold)
    for i, image in enumerate(detections):
        expected = {part: data[f"{name}{i}_{part}_{size}"] for part in ("scores", "labels", "boxes")}
        assert np.array_equal(image["labels"].numpy() + 1, expected["labels"])
        assert np.array_equal(image["scores"].numpy(), expected["scores"])
        assert np.array_equal(image["boxes"].numpy(), expected["boxes"])
