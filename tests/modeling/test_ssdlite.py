"""What the detector computes besides its network, against the official code, torchvision and loops in plain Python."""

import json
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_convert, box_iou

from mobilevit_hf import MobileViTSSDLiteConfig, MobileViTSSDLiteForObjectDetection
from mobilevit_hf.modeling.anchors_ssdlite import best_overlaps, feature_sizes, fit_anchors, make_anchors
from mobilevit_hf.modeling.boxes_ssdlite import (
    decode_boxes,
    encode_boxes,
    pairwise_iou,
    rank_in_group,
    select_detections,
)
from mobilevit_hf.modeling.loss_ssdlite import mine_hard_negatives, multibox_loss
from mobilevit_hf.modeling.matcher_ssdlite import check_labels, match_anchors

VARIANCES = (0.1, 0.2)
SCALES = np.linspace(0.1, 1.05, 7)
RATIOS = [[2, 3]] * 5 + [[2]]
PAPER = {"feature_strides": [16, 32, 64, 128, 256, -1], "anchor_scales": SCALES, "anchor_ratios": RATIOS}

# The feature maps of strides 16 to 256 and the pooled one.
LEVELS = {
    "320": [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)],
    "256x384": [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2), (1, 1)],
    "300x300": [(19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)],
}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def random_boxes(count, generator, low=0.05, high=0.9, dtype=torch.float64):
    """Boxes (cx, cy, w, h) inside the image: sides spread evenly over their logarithm, various shapes."""
    rand, randn = ([f(count, generator=generator, dtype=dtype) for _ in range(2)] for f in (torch.rand, torch.randn))
    side, elongation = low * (high / low) ** rand[0], (0.3 * randn[0]).exp().sqrt()
    sizes = torch.stack([side * elongation, side / elongation], dim=1).clamp(max=0.95)
    places = torch.rand(count, 2, generator=generator, dtype=dtype)
    return torch.cat([sizes / 2 + places * (1 - sizes), sizes], dim=1)


# --- anchors ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("size", LEVELS)
def test_anchors_of_the_paper(size):
    config = MobileViTSSDLiteConfig()
    anchors = make_anchors(LEVELS[size], config.anchor_scales, config.anchor_ratios)
    assert anchors.dtype == torch.float32
    torch.testing.assert_close(anchors, naive_anchors(LEVELS[size], SCALES, RATIOS), atol=1e-7, rtol=0)


@pytest.mark.parametrize("size", LEVELS)
def test_official_anchors(reference_data, size):
    expected = np.load(reference_data / "reference/train_matcher.npz")[f"anchors_{size}"]
    config = MobileViTSSDLiteConfig()
    anchors = make_anchors(LEVELS[size], config.anchor_scales, config.anchor_ratios)
    assert np.array_equal(anchors.numpy(), expected)
    if size != "300x300":
        side = {"320": "320x320"}.get(size, size)
        assert np.array_equal(expected, np.load(reference_data / "reference/det_xxs_io.npz")[f"anchors_cxcywh_{side}"])


def test_anchors_of_other_levels():
    levels, scales, ratios = [(3, 4), (2, 2), (1, 1)], [0.05, 0.3, 0.2, 4.0], [[], [1.5, 2, 5], [3.0]]
    anchors = make_anchors(levels, scales, ratios)
    assert len(anchors) == 12 * 2 + 4 * 8 + 4
    torch.testing.assert_close(anchors, naive_anchors(levels, scales, ratios), atol=1e-7, rtol=0)


# --- box codec -------------------------------------------------------------------------------------------------------


def test_codec_is_that_of_torchvision(generator):
    anchors, boxes = (random_boxes(500, generator) for _ in range(2))
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    corners, anchor_corners = (box_convert(b, "cxcywh", "xyxy") for b in (boxes, anchors))
    torch.testing.assert_close(encode_boxes(boxes, anchors, *VARIANCES), coder.encode_single(corners, anchor_corners))
    locations = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    decoded = box_convert(decode_boxes(locations, anchors, *VARIANCES), "cxcywh", "xyxy")
    torch.testing.assert_close(decoded, coder.decode_single(locations, anchor_corners))


@pytest.mark.parametrize("variances", [VARIANCES, (1.0, 0.5)])
def test_codec_there_and_back(generator, variances):
    anchors = random_boxes(200, generator)
    boxes = torch.stack([random_boxes(200, generator) for _ in range(3)])
    locations = encode_boxes(boxes, anchors, *variances)
    assert locations.shape == (3, 200, 4)
    torch.testing.assert_close(decode_boxes(locations, anchors, *variances), boxes)
    assert encode_boxes(anchors, anchors, *variances).abs().max() < 1e-12


# --- matching --------------------------------------------------------------------------------------------------------


def test_overlaps_are_those_of_torchvision(generator):
    boxes, others = (box_convert(random_boxes(n, generator), "cxcywh", "xyxy") for n in (60, 80))
    torch.testing.assert_close(pairwise_iou(boxes, others), box_iou(boxes, others))
    assert pairwise_iou(boxes, others).count_nonzero() not in (0, 60 * 80)


def test_boxes_without_area_overlap_by_nothing():
    boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.1, 0.1, 0.4, 0.4], [0.0, 0.3, 1.0, 0.3]])
    overlaps = pairwise_iou(boxes, boxes, eps=1e-5)
    assert torch.equal(overlaps != 0, torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]]).bool())
    torch.testing.assert_close(overlaps[1, 1], torch.tensor(0.09 / (0.09 + 1e-5)))
    assert pairwise_iou(boxes, boxes)[0, 0].isnan()


def naive_matches(boxes, labels, anchors, threshold, eps):
    """Targets and boxes of each anchor, after REFERENCE's rules, one pair at a time."""

    def corners(box):
        cx, cy, w, h = box
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2

    def overlap(one, other):
        (ax, ay, au, av), (bx, by, bu, bv) = corners(one), corners(other)
        common = max(0, min(au, bu) - max(ax, bx)) * max(0, min(av, bv) - max(ay, by))
        return common / ((au - ax) * (av - ay) + (bu - bx) * (bv - by) - common + eps)

    table = [[overlap(anchor, box) for box in boxes] for anchor in anchors]
    best = [max(range(len(boxes)), key=row.__getitem__) for row in table]  # the first of equal ones
    matched = [row[j] >= threshold for row, j in zip(table, best, strict=True)]
    for j in range(len(boxes)):
        anchor = max(range(len(anchors)), key=lambda i: table[i][j])
        best[anchor], matched[anchor] = j, True
    targets = [labels[j] + 1 if found else 0 for j, found in zip(best, matched, strict=True)]
    return torch.tensor(targets), torch.tensor([boxes[j] for j in best], dtype=torch.float64)


def grid_boxes(count, generator):
    """Boxes (cx, cy, w, h) on a grid of 1/32: their overlaps are exact, and many of them are equal."""
    places = torch.randint(1, 32, (count, 2), generator=generator)
    sizes = 2 * torch.randint(1, 8, (count, 2), generator=generator)
    return torch.cat([places, sizes], dim=1).double() / 32


@pytest.mark.parametrize("count", [1, 2, 7, 30, 150])
@pytest.mark.parametrize(("threshold", "eps"), [(0.5, 1e-5), (0.5, 0.0), (0.3, 0.01)])
def test_matching_equals_a_loop(generator, count, threshold, eps):
    anchors, boxes = grid_boxes(120, generator), grid_boxes(count, generator)
    boxes[-1] = boxes[0]  # a duplicate
    boxes[count // 2, :2] += 4  # far from any anchor
    labels = torch.randint(0, 9, (count,), generator=generator)
    targets, matched = match_anchors(boxes, labels, anchors, threshold, eps)
    expected = naive_matches(boxes.tolist(), labels.tolist(), anchors.tolist(), threshold, eps)
    assert torch.equal(targets, expected[0])
    assert torch.equal(matched, expected[1])


def test_of_two_objects_that_want_one_anchor_the_later_gets_it():
    anchors = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.75, 0.75, 0.25, 0.25]])
    boxes = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.375, 0.375, 0.25, 0.25], [0.75, 0.75, 0.25, 0.25]])
    for order in ([0, 1, 2], [1, 0, 2]):
        targets, matched = match_anchors(boxes[order], torch.tensor([4, 5, 6])[order], anchors)
        assert targets.tolist() == [[4, 5, 6][order[1]] + 1, 7]
        assert torch.equal(matched, boxes[[order[1], 2]])


def test_no_objects_leave_background():
    anchors = make_anchors(LEVELS["300x300"], SCALES, RATIOS)
    targets, boxes = match_anchors(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), anchors)
    assert targets.dtype == torch.int64
    assert not targets.any()
    assert encode_boxes(boxes, anchors, *VARIANCES).eq(0).all()


@pytest.mark.parametrize(
    "case", ["rand1", "rand3", "rand10", "rand40", "duplicates", "tiny", "full_image", "anchor_exact", "empty"]
)
def test_official_matches(reference_data, case):
    data = np.load(reference_data / "reference/train_matcher.npz")
    boxes, labels, expected_labels, expected_locations, anchors = (
        torch.from_numpy(data[name])
        for name in (*(f"{case}_{part}" for part in ("gt_boxes", "gt_labels", "labels", "reg_targets")), "anchors_320")
    )
    targets, matched = match_anchors(box_convert(boxes, "xyxy", "cxcywh"), labels - 1, anchors)
    assert torch.equal(targets, expected_labels)
    if case == "empty":
        assert not targets.any()
    else:
        assert torch.equal(encode_boxes(matched, anchors, *VARIANCES), expected_locations)


# --- loss ------------------------------------------------------------------------------------------------------------


def naive_loss(logits, locations, targets, target_locations, ratio=3, beta=1.0, weight=1.0):
    """Classification and localisation loss, image by image over lists of anchors, and which anchors count."""
    classification, localization, counted = [], [], torch.zeros_like(targets, dtype=torch.bool)
    for b in range(len(logits)):
        positives = [a for a in range(targets.shape[1]) if targets[b, a] > 0]
        background = [-F.log_softmax(row, dim=0)[0].item() for row in logits[b].detach()]
        others = [a for a in range(targets.shape[1]) if a not in positives]
        negatives = sorted(others, key=lambda a: -background[a])[: ratio * len(positives)]
        chosen = positives + negatives
        counted[b, chosen] = True
        classification.append(F.cross_entropy(logits[b, chosen], targets[b, chosen], reduction="sum"))
        localization.append(
            F.smooth_l1_loss(locations[b, positives], target_locations[b, positives], reduction="sum", beta=beta)
        )
    count = max(1, int((targets > 0).sum()))
    return sum(classification) / count, weight * sum(localization) / count, counted


@pytest.mark.parametrize("positives", [(2, 5, 1), (0, 3, 0), (14, 1, 15), (0, 0, 0)], ids=str)
@pytest.mark.parametrize(("ratio", "beta", "weight"), [(3, 1.0, 1.0), (1, 0.1, 2.5), (0, 3.0, 0.0)])
def test_loss_equals_a_loop(generator, positives, ratio, beta, weight):
    inputs = [3 * torch.randn(3, 20, n, generator=generator, dtype=torch.float64) for n in (6, 4)]
    targets, target_locations = torch.zeros(3, 20, dtype=torch.int64), torch.randn(3, 20, 4, generator=generator) * 2
    target_locations = target_locations.double()
    for row, count in zip(targets, positives, strict=True):
        row[torch.randperm(20, generator=generator)[:count]] = torch.randint(1, 6, (count,), generator=generator)
    target_locations[targets == 0] = -torch.inf  # background has none
    results = []
    for compute in (multibox_loss, naive_loss):
        logits, locations = (i.clone().requires_grad_() for i in inputs)
        options = (
            {"negatives_per_positive": ratio, "smooth_l1_beta": beta, "localization_loss_weight": weight}
            if compute is multibox_loss
            else {"ratio": ratio, "beta": beta, "weight": weight}
        )
        parts = compute(logits, locations, targets, target_locations, **options)
        parts = [*parts.values()] if compute is multibox_loss else parts[:2]
        gradients = torch.autograd.grad(sum(parts), (logits, locations))
        assert all(gradient.isfinite().all() for gradient in gradients)
        results.append([*parts, *gradients])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
    if not any(positives):
        assert all(tensor.eq(0).all() for tensor in results[0])
    background = inputs[0].logsumexp(dim=-1) - inputs[0][..., 0]
    mined = mine_hard_negatives(background, targets > 0, ratio) | (targets > 0)
    assert torch.equal(mined, naive_loss(*inputs, targets, target_locations, ratio)[2])


def test_loss_parts_have_names():
    parts = multibox_loss(
        torch.zeros(1, 2, 3), torch.ones(1, 2, 4), torch.tensor([[1, 0]]), torch.zeros(1, 2, 4), smooth_l1_beta=4.0
    )
    assert parts == {
        "loss_classification": pytest.approx(2 * math.log(3)),
        "loss_localization": pytest.approx(4 * 0.5 / 4),
    }


@pytest.mark.parametrize("case", ["mixed_with_empty", "single", "all_empty", "many_pos"])
def test_official_losses(reference_data, case):
    data = np.load(reference_data / "reference/train_ssd_loss.npz")
    report = json.loads((reference_data / "reference/train_report.json").read_text())["loss"][case]
    logits, locations, targets, target_locations, mined, location_gradient, logit_gradient = (
        torch.from_numpy(data[f"{case}_{name}"])
        for name in (
            *("scores", "loc_preds", "labels", "reg_targets"),
            *("mined_mask", "grad_loc", "grad_score_rowsum_abs"),
        )
    )
    logits.requires_grad_()
    locations.requires_grad_()
    parts = multibox_loss(logits, locations, targets, target_locations)
    sum(parts.values()).backward()
    assert parts["loss_classification"].item() == pytest.approx(report["eval_f64"]["cls_loss"], rel=1e-5)
    assert parts["loss_localization"].item() == pytest.approx(report["eval_f64"]["reg_loss"], rel=1e-5)
    torch.testing.assert_close(locations.grad, location_gradient, atol=1e-6, rtol=0)
    torch.testing.assert_close(logits.grad.abs().sum(dim=-1), logit_gradient, atol=1e-6, rtol=0)
    is_positive = targets > 0
    background = (logits.logsumexp(dim=-1) - logits[..., 0]).detach()
    counted = mine_hard_negatives(background, is_positive, 3) | is_positive
    expected = np.unpackbits(mined.numpy())[: counted.numel()].astype(bool)
    assert np.array_equal(counted.flatten().numpy(), expected)
    assert counted.sum(dim=1).tolist() == report["num_mined"]


# --- suppression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [[], [3], [7, 5, 7, 7], [2, 2, 2], [0, 9, 1, 9, 0, 0, 4]], ids=str)
def test_rank_in_group(groups):
    expected = [groups[:i].count(group) for i, group in enumerate(groups)]
    assert rank_in_group(torch.tensor(groups, dtype=torch.int64)).tolist() == expected


def naive_detections(scores, boxes, threshold=0.01, candidates=400, overlap=0.5, detections=200):
    """The detections of one image, class by class: a list of (score, label, box)."""
    found = []
    for label in range(scores.shape[1]):
        anchors = [a for a in range(len(scores)) if scores[a, label] > threshold]
        anchors = sorted(anchors, key=lambda a: -scores[a, label])[:candidates]
        kept = torchvision.ops.nms(boxes[anchors].double(), scores[anchors, label].double(), overlap).tolist()
        found += [(float(scores[anchors[k], label]), anchors[k], label) for k in kept]
    found.sort(key=lambda one: (-one[0], one[1], one[2]))  # of equal scores the first anchor, then the first class
    return [(score, label, boxes[anchor].tolist()) for score, anchor, label in found[:detections]]


def assert_detections(found, expected):
    assert found["labels"].dtype == torch.int64
    actual = zip(found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True)
    assert list(actual) == expected


def random_scene(batch, anchors, labels, generator, side=0.2):
    """Scores (batch, anchors, labels) from near 0 to 1 and boxes (batch, anchors, 4) (x1, y1, x2, y2) that overlap."""
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
        {"overlap": 0.1, "detections": 5},
        {"overlap": 1.0, "candidates": 1000, "detections": 10000},
        {"threshold": 1.0},
    ],
    ids=str,
)
def test_detections_equal_a_loop(generator, batch, options):
    scores, boxes = random_scene(batch, 700, 4, generator)
    names = {
        "threshold": "score_threshold",
        "candidates": "max_candidates_per_class",
        "overlap": "nms_iou_threshold",
        "detections": "max_detections",
    }
    expected = [naive_detections(*one, **options) for one in zip(scores, boxes, strict=True)]
    if not options:
        assert (scores > 0.01).sum(dim=1).min() > 400
        assert min(map(len, expected)) == 200
    found = select_detections(scores, boxes, **{names[name]: value for name, value in options.items()})
    assert len(found) == batch
    for one, other in zip(found, expected, strict=True):
        assert_detections(one, other)


@pytest.mark.parametrize("anchors", [40, 2000])
def test_equal_scores(generator, anchors):
    scores, boxes = random_scene(3, anchors, 3, generator, side=0.05)
    scores = (scores * 4).round() / 4
    for found, *one in zip(select_detections(scores, boxes, score_threshold=0.5), scores, boxes, strict=True):
        assert_detections(found, naive_detections(*one, threshold=0.5))


def test_batch_equals_single_images(generator):
    scores, boxes = random_scene(3, 300, 4, generator)
    scores[1] = 0.005  # nothing between full ones
    together = select_detections(scores, boxes)
    assert [len(found["scores"]) for found in together][1] == 0
    assert together[1]["boxes"].shape == (0, 4)
    for i, found in enumerate(together):
        (alone,) = select_detections(scores[i : i + 1], boxes[i : i + 1])
        assert found.keys() == {"scores", "labels", "boxes"}
        assert all(torch.equal(found[name], alone[name]) for name in found)


def test_boxes_far_outside_suppress_only_their_own_class(generator):
    scores, boxes = random_scene(2, 50, 3, generator)
    boxes = boxes * 60 - 58  # the right and lower end of the image is all they reach
    for found, *one in zip(select_detections(scores, boxes), scores, boxes, strict=True):
        assert_detections(found, naive_detections(*one))


@pytest.mark.parametrize("size", ["320x320", "256x384"])
@pytest.mark.parametrize(("name", "threshold"), [("det", 0.01), ("detconf0.25_", 0.25)])
def test_official_detections(reference_data, size, name, threshold):
    data = np.load(reference_data / "reference/det_xxs_io.npz")
    logits, boxes = (torch.from_numpy(data[f"{output}_{size}"]) for output in ("class_logits", "boxes_xyxy"))
    found = select_detections(logits.softmax(dim=-1)[..., 1:], boxes, score_threshold=threshold)
    for i, image in enumerate(found):
        expected = {part: data[f"{name}{i}_{part}_{size}"] for part in ("scores", "labels", "boxes")}
        assert np.array_equal(image["labels"].numpy() + 1, expected["labels"])
        assert np.array_equal(image["scores"].numpy(), expected["scores"])
        assert np.array_equal(image["boxes"].numpy(), expected["boxes"])


# --- labels ----------------------------------------------------------------------------------------------------------


def label(boxes, class_labels=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "class_labels": torch.tensor(class_labels or [0] * len(boxes), dtype=torch.int64)}


GOOD = [0.5, 0.5, 0.2, 0.1]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (label([GOOD, [320.0, 240.0, 60.0, 40.0]]), r"image 1, box 1: got \[320.0, .* fractions .*0\.\.1.*Divide"),
        (label([[0.5, 0.5, 1.01, 0.5]]), r"image 1, box 0: got .*1\.01.*fractions"),
        (label([[-0.01, 0.5, 0.1, 0.5]]), r"image 1, box 0: got .*-0\.01.*fractions"),
        (label([GOOD, GOOD, [0.5, 0.5, 0.0, 0.1]]), r"image 1, box 2: got .* without area.*above 0"),
        (label([[0.5, 0.5, 0.1, -0.1], GOOD]), r"image 1, box 0: got .* without area"),
        (label([GOOD, [0.5, float("nan"), 0.1, 0.1]]), r"image 1, box 1: got \[0.5, nan.*finite"),
        (label([[0.5, 0.5, float("inf"), 0.1]]), r"image 1, box 0: .*finite"),
        (label([GOOD, GOOD], [3, 4]), r"image 1, box 1: got class 4, expected 0\.\.3.*num_labels=5"),
        (label([GOOD], [-1]), r"image 1, box 0: got class -1, expected 0\.\.3"),
        ({"boxes": torch.zeros(0, 4)}, r"image 1 has \['boxes'\], expected .*class_labels and boxes"),
        ({"class_labels": torch.zeros(0), "boxes": None}, r"image 1 has .*expected tensors"),
        ({"class_labels": [1], "boxes": torch.tensor([GOOD])}, r"image 1 has .*expected tensors"),
        (
            {"boxes": torch.tensor(GOOD), "class_labels": torch.tensor([1])},
            r"image 1 .*\(4,\) .*\(1,\), expected \(n, 4\)",
        ),
        (
            {"boxes": torch.tensor([GOOD]), "class_labels": torch.tensor([1, 2])},
            r"image 1 .*\(1, 4\) .*\(2,\), expected",
        ),
        ({"boxes": torch.zeros(2, 5), "class_labels": torch.tensor([1, 2])}, r"image 1 .*\(2, 5\)"),
        (
            {"boxes": torch.tensor([[1, 1, 1, 1]]), "class_labels": torch.tensor([1])},
            r"image 1 has boxes of torch.int64",
        ),
        ({"boxes": torch.tensor([GOOD]), "class_labels": torch.tensor([1.0])}, r"image 1 .*class_labels of torch.f"),
    ],
)
def test_wrong_labels(second, message):
    with pytest.raises(ValueError, match="labels: " + message):
        check_labels([label([GOOD, GOOD, GOOD]), second], 2, 4)
    with pytest.raises(ValueError, match="labels: " + message.replace("image 1", "image 2")):
        check_labels([label([]), label([GOOD]), second], 3, 4)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_wrong_number_of_labels(count):
    with pytest.raises(ValueError, match=rf"got {count} for a batch of 2 images.*one dict"):
        check_labels([label([GOOD])] * count, 2, 4)


def test_good_labels():
    check_labels([label([]), label([GOOD, [0.5, 0.5, 1.0005, 1.0], [0.0, 1.0, 0.1, 0.1]], [0, 3, 1])], 2, 4)
    half = {"boxes": torch.tensor([GOOD]).half(), "class_labels": torch.tensor([3], dtype=torch.int32)}
    check_labels([half, label([])], 2, 4)
    check_labels([label([])], 1, 4)


# --- anchors for a dataset ------------------------------------------------------------------------------------------


def brute_force_overlaps(boxes, fields, image_size=320):
    """The best overlap of each box (cx, cy, w, h) with all anchors."""
    levels = [(1, 1) if s == -1 else (math.ceil(image_size / s),) * 2 for s in fields["feature_strides"]]
    anchors = make_anchors(levels, fields["anchor_scales"], fields["anchor_ratios"]).double()
    corners, anchor_corners = (box_convert(b, "cxcywh", "xyxy") for b in (boxes, anchors))
    return torch.cat([box_iou(part, anchor_corners).amax(dim=1) for part in corners.split(200)])


def recall(boxes, fields):
    return float((brute_force_overlaps(boxes, fields) >= 0.5).double().mean())


def as_images(boxes, height=480, width=640):
    """Boxes (cx, cy, w, h) in 0..1 as those of two images (x1, y1, x2, y2) in pixels, and the images' sizes."""
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


def test_fitted_anchors_for_common_objects_are_no_worse_than_the_papers(generator):
    boxes = random_boxes(600, generator)
    fields = fit_anchors(*as_images(boxes))
    assert recall(boxes, fields) >= recall(boxes, PAPER)


def test_fitted_anchors_for_small_objects_get_a_finer_level(generator):
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


def test_fitted_anchors_for_large_objects_need_no_finer_level(generator):
    boxes = random_boxes(300, generator, 0.3, 0.9)
    fields = fit_anchors(*as_images(boxes))
    assert fields["feature_strides"] == [16, 32, 64, 128, 256, -1]
    assert recall(boxes, fields) >= max(0.95, recall(boxes, PAPER))


def test_fitted_anchors_for_one_box():
    fields = fit_anchors([[], [[10, 10, 30, 25]]], torch.tensor([[100, 100], [480, 640]]))
    box = torch.tensor([[20 / 640, 17.5 / 480, 20 / 640, 15 / 480]], dtype=torch.float64)
    assert recall(box, fields) == 1
    json.dumps(fields)  # plain lists and numbers
    assert MobileViTSSDLiteConfig.from_variant("xxs", **fields).anchor_scales == fields["anchor_scales"]


def test_fitted_anchors_for_blood_cells(reference_data):
    boxes, sizes, normalized = [], [], []
    for path in sorted((reference_data / "data/bccd/Annotations").glob("*.xml")):
        tree = ET.parse(path)
        width, height = (int(tree.find(f"size/{name}").text) for name in ("width", "height"))
        names = ("xmin", "ymin", "xmax", "ymax")
        corners = [[float(one.find(name).text) for name in names] for one in tree.findall("object/bndbox")]
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
def test_boxes_no_anchors_can_be_fitted_to(boxes, sizes, message):
    with pytest.raises(ValueError, match=re.compile(message)):
        fit_anchors(boxes, sizes)
