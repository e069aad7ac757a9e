"""Anchor matching and label validation, compared with the official code and a naive loop."""

import numpy as np
import pytest
import torch
from box_cases import LEVEL_SIZES, RATIOS, SCALES, VARIANCES
from torchvision.ops import box_convert

from mobilevit_hf.modeling.anchors_ssdlite import make_anchors
from mobilevit_hf.modeling.boxes_ssdlite import encode_boxes
from mobilevit_hf.modeling.matcher_ssdlite import check_labels, match_anchors


def naive_matches(boxes, labels, anchors, threshold, eps):
    """Compute target labels and boxes of each anchor by the official rules, one pair at a time."""

    def corners(box):
        cx, cy, w, h = box
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2

    def overlap(one, other):
        (ax, ay, au, av), (bx, by, bu, bv) = corners(one), corners(other)
        common = max(0, min(au, bu) - max(ax, bx)) * max(0, min(av, bv) - max(ay, by))
        return common / ((au - ax) * (av - ay) + (bu - bx) * (bv - by) - common + eps)

    table = [[overlap(anchor, box) for box in boxes] for anchor in anchors]
    best = [max(range(len(boxes)), key=row.__getitem__) for row in table]  # the first of equal overlaps
    matched = [row[j] >= threshold for row, j in zip(table, best, strict=True)]
    for j in range(len(boxes)):
        anchor = max(range(len(anchors)), key=lambda i: table[i][j])
        best[anchor], matched[anchor] = j, True
    targets = [labels[j] + 1 if is_matched else 0 for j, is_matched in zip(best, matched, strict=True)]
    return torch.tensor(targets), torch.tensor([boxes[j] for j in best], dtype=torch.float64)


def grid_boxes(count, generator):
    """Return boxes (cx, cy, w, h) on a grid of 1/32, so that their IoUs are exact and often equal."""
    positions = torch.randint(1, 32, (count, 2), generator=generator)
    sizes = 2 * torch.randint(1, 8, (count, 2), generator=generator)
    return torch.cat([positions, sizes], dim=1).double() / 32


@pytest.mark.parametrize("count", [1, 2, 7, 30, 150])
@pytest.mark.parametrize(("threshold", "eps"), [(0.5, 1e-5), (0.5, 0.0), (0.3, 0.01)])
def test_match_anchors_equals_loop(generator, count, threshold, eps):
    anchors, boxes = grid_boxes(120, generator), grid_boxes(count, generator)
    boxes[-1] = boxes[0]  # a duplicate
    boxes[count // 2, :2] += 4  # far from any anchor
    labels = torch.randint(0, 9, (count,), generator=generator)
    targets, matched = match_anchors(boxes, labels, anchors, threshold, eps)
    expected = naive_matches(boxes.tolist(), labels.tolist(), anchors.tolist(), threshold, eps)
    assert torch.equal(targets, expected[0])
    assert torch.equal(matched, expected[1])


def test_later_object_takes_precedence_on_a_shared_best_anchor():
    anchors = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.75, 0.75, 0.25, 0.25]])
    boxes = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.375, 0.375, 0.25, 0.25], [0.75, 0.75, 0.25, 0.25]])
    for order in ([0, 1, 2], [1, 0, 2]):
        targets, matched = match_anchors(boxes[order], torch.tensor([4, 5, 6])[order], anchors)
        assert targets.tolist() == [[4, 5, 6][order[1]] + 1, 7]
        assert torch.equal(matched, boxes[[order[1], 2]])


def test_image_without_objects_is_background():
    anchors = make_anchors(LEVEL_SIZES["300x300"], SCALES, RATIOS)
    targets, boxes = match_anchors(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), anchors)
    assert targets.dtype == torch.int64
    assert not targets.any()
    assert encode_boxes(boxes, anchors, *VARIANCES).eq(0).all()


@pytest.mark.parametrize(
    "case", ["rand1", "rand3", "rand10", "rand40", "duplicates", "tiny", "full_image", "anchor_exact", "empty"]
)
def test_match_anchors_equals_official_code(reference_data, case):
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


def label(boxes, class_labels=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "class_labels": torch.tensor(class_labels or [0] * len(boxes), dtype=torch.int64)}


BOX = [0.5, 0.5, 0.2, 0.1]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (label([BOX, [320.0, 240.0, 60.0, 40.0]]), r"image 1, box 1: got \[320.0, .* fractions .*0\.\.1.*Divide"),
        (label([[0.5, 0.5, 1.01, 0.5]]), r"image 1, box 0: got .*1\.01.*fractions"),
        (label([[-0.01, 0.5, 0.1, 0.5]]), r"image 1, box 0: got .*-0\.01.*fractions"),
        (label([BOX, BOX, [0.5, 0.5, 0.0, 0.1]]), r"image 1, box 2: got .* without area.*above 0"),
        (label([[0.5, 0.5, 0.1, -0.1], BOX]), r"image 1, box 0: got .* without area"),
        (label([BOX, [0.5, float("nan"), 0.1, 0.1]]), r"image 1, box 1: got \[0.5, nan.*finite"),
        (label([[0.5, 0.5, float("inf"), 0.1]]), r"image 1, box 0: .*finite"),
        (label([BOX, BOX], [3, 4]), r"image 1, box 1: got class 4, expected 0\.\.3.*num_labels=5"),
        (label([BOX], [-1]), r"image 1, box 0: got class -1, expected 0\.\.3"),
        ({"boxes": torch.zeros(0, 4)}, r"image 1 has \['boxes'\], expected .*class_labels and boxes"),
        ({"class_labels": torch.zeros(0), "boxes": None}, r"image 1 has .*expected tensors"),
        ({"class_labels": [1], "boxes": torch.tensor([BOX])}, r"image 1 has .*expected tensors"),
        (
            {"boxes": torch.tensor(BOX), "class_labels": torch.tensor([1])},
            r"image 1 .*\(4,\) .*\(1,\), expected \(n, 4\)",
        ),
        (
            {"boxes": torch.tensor([BOX]), "class_labels": torch.tensor([1, 2])},
            r"image 1 .*\(1, 4\) .*\(2,\), expected",
        ),
        ({"boxes": torch.zeros(2, 5), "class_labels": torch.tensor([1, 2])}, r"image 1 .*\(2, 5\)"),
        (
            {"boxes": torch.tensor([[1, 1, 1, 1]]), "class_labels": torch.tensor([1])},
            r"image 1 has boxes of torch.int64",
        ),
        ({"boxes": torch.tensor([BOX]), "class_labels": torch.tensor([1.0])}, r"image 1 .*class_labels of torch.f"),
    ],
)
def test_check_labels_reports_image_and_box(second, message):
    with pytest.raises(ValueError, match="labels: " + message):
        check_labels([label([BOX, BOX, BOX]), second], 2, 4)
    with pytest.raises(ValueError, match="labels: " + message.replace("image 1", "image 2")):
        check_labels([label([]), label([BOX]), second], 3, 4)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_check_labels_requires_one_dict_per_image(count):
    with pytest.raises(ValueError, match=rf"got {count} for a batch of 2 images.*one dict"):
        check_labels([label([BOX])] * count, 2, 4)


def test_check_labels_accepts_valid_labels():
    check_labels([label([]), label([BOX, [0.5, 0.5, 1.0005, 1.0], [0.0, 1.0, 0.1, 0.1]], [0, 3, 1])], 2, 4)
    half = {"boxes": torch.tensor([BOX]).half(), "class_labels": torch.tensor([3], dtype=torch.int32)}
    check_labels([half, label([])], 2, 4)
    check_labels([label([])], 1, 4)
