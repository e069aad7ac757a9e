"""What an SSD detector computes besides its network, as pure functions (Liu et al., arXiv 1512.02325).

Anchors, the box codec, matching, the multibox loss and suppression; each works alone and on any device. Boxes are
fractions of the image (0..1) throughout, either (cx, cy, w, h) or (x1, y1, x2, y2), as each function says.

Shapes: B images, A anchors, K object classes (the background is not one of them), N boxes of one image.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_convert

from .configuration_mobilevit_ssdlite import (
    ANCHOR_RATIOS,
    ANCHOR_SCALES,
    FEATURE_STRIDES,
    GLOBAL_STRIDE,
    LEVEL_CHANNELS,
)

BACKGROUND = 0


# --- anchors ---------------------------------------------------------------------------------------------------------


def anchor_sizes(scales: Sequence[float], ratios: Sequence[Sequence[float]]) -> list[Tensor]:
    """Width and height of the anchors of every level.

    Args:
        scales: For each level the side s of its first square, and one more for the last level's second.
        ratios: For each level the aspect ratios r.

    Returns:
        For each level a float64 (anchors per cell, 2): s; √(s · s') with the next level's s'; and for each ratio
        (s√r, s/√r) and (s/√r, s√r). At most 1.
    """
    sizes = []
    for level, level_ratios in enumerate(ratios):
        scale, square = scales[level], (scales[level] * scales[level + 1]) ** 0.5
        pairs = [(scale, scale), (square, square)]
        for ratio in level_ratios:
            long, short = scale * ratio**0.5, scale / ratio**0.5
            pairs += [(long, short), (short, long)]
        sizes.append(torch.tensor(pairs, dtype=torch.float64).clamp(max=1))
    return sizes


def make_anchors(
    feature_sizes: Sequence[tuple[int, int]],
    scales: Sequence[float],
    ratios: Sequence[Sequence[float]],
    device: torch.device | str | None = None,
) -> Tensor:
    """The anchors of all levels (SSD, section 2.2).

    Args:
        feature_sizes: (height, width) of each level's feature map.
        scales: See `anchor_sizes`.
        ratios: See `anchor_sizes`.
        device: Where to put them.

    Returns:
        (A, 4) float32 (cx, cy, w, h), ordered by level, row, column, and as in `anchor_sizes`.
    """
    levels = []
    for (height, width), sizes in zip(feature_sizes, anchor_sizes(scales, ratios), strict=True):
        sizes = sizes.to(device=device, dtype=torch.float32)
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        # (height, width, anchors per cell) each
        shape = (height, width, len(sizes))
        columns = (x[None, :, None], y[:, None, None], sizes[:, 0], sizes[:, 1])
        levels.append(torch.stack([column.expand(shape) for column in columns], dim=-1).reshape(-1, 4))
    return torch.cat(levels)


# --- box codec -------------------------------------------------------------------------------------------------------


def encode_boxes(boxes: Tensor, anchors: Tensor, center_variance: float, size_variance: float) -> Tensor:
    """What a head has to predict at each anchor to say a box: offsets in units of the anchor and the variances.

    Args:
        boxes: (..., A, 4) (cx, cy, w, h), with an area.
        anchors: (A, 4) (cx, cy, w, h).
        center_variance: Unit of the center's offset, in anchor sizes.
        size_variance: Unit of the size's logarithm.

    Returns:
        Locations (..., A, 4).
    """
    centers = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:] / center_variance
    sizes = (boxes[..., 2:] / anchors[..., 2:]).log() / size_variance
    return torch.cat((centers, sizes), dim=-1)


def decode_boxes(locations: Tensor, anchors: Tensor, center_variance: float, size_variance: float) -> Tensor:
    """The way back from `encode_boxes`: locations (..., A, 4) → boxes (..., A, 4) (cx, cy, w, h), not clipped."""
    centers = locations[..., :2] * center_variance * anchors[..., 2:] + anchors[..., :2]
    sizes = (locations[..., 2:] * size_variance).exp() * anchors[..., 2:]
    return torch.cat((centers, sizes), dim=-1)


# --- matching --------------------------------------------------------------------------------------------------------


def pairwise_iou(boxes: Tensor, others: Tensor, eps: float = 0.0) -> Tensor:
    """Overlap of every box with every other: (N, 4) and (M, 4) as (x1, y1, x2, y2) → (N, M).

    Args:
        eps: Added to the union, so that two boxes without area overlap by 0 instead of NaN.
    """
    top_left = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others)]
    return intersection / (areas[0][:, None] + areas[1][None, :] - intersection + eps)


def match_anchors(
    boxes: Tensor, class_labels: Tensor, anchors: Tensor, iou_threshold: float = 0.5, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Which object each anchor has to find (SSD, section 2.2).

    An anchor takes the object it overlaps most, if by at least the threshold. Each object also takes the anchor that
    overlaps it most, however little; of two that want the same anchor the later one gets it.

    Args:
        boxes: (N, 4) (cx, cy, w, h) of the objects in one image; N may be 0.
        class_labels: (N,) int64, 0..K-1.
        anchors: (A, 4) (cx, cy, w, h).
        iou_threshold: The least overlap.
        eps: See `pairwise_iou`.

    Returns:
        (A,) int64 targets, 0 for the background and k + 1 for class k, and the (A, 4) boxes of the objects. An anchor
        on the background has the box of the object it overlaps most; its own where there are no objects.
    """
    if len(boxes) == 0:
        return torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device), anchors
    corners, anchor_corners = (box_convert(b, "cxcywh", "xyxy") for b in (boxes, anchors))
    overlaps = pairwise_iou(anchor_corners, corners, eps)  # (A, N)
    best_overlap, best_object = overlaps.max(dim=1)
    forced_anchor = overlaps.argmax(dim=0)  # (N,)
    objects = torch.arange(len(boxes), device=boxes.device)
    forced_object = torch.full_like(best_object, -1).scatter_reduce(0, forced_anchor, objects, "amax")
    is_forced = forced_object >= 0
    matched = torch.where(is_forced, forced_object, best_object)
    is_object = is_forced | (best_overlap >= iou_threshold)
    return torch.where(is_object, class_labels[matched] + 1, BACKGROUND), boxes[matched]


# --- loss ------------------------------------------------------------------------------------------------------------


def mine_hard_negatives(background_loss: Tensor, is_positive: Tensor, negatives_per_positive: int) -> Tensor:
    """The background anchors that count in the loss: of each image the worst ones (SSD, section 2.2).

    Args:
        background_loss: (B, A) what each anchor would lose if it is on the background.
        is_positive: (B, A) which anchors have an object.
        negatives_per_positive: How many for each of them.

    Returns:
        (B, A) bool.
    """
    wanted = is_positive.sum(dim=1, keepdim=True) * negatives_per_positive
    worst_first = background_loss.masked_fill(is_positive, -torch.inf).argsort(dim=1, descending=True)
    ranks = torch.arange(worst_first.shape[1], device=worst_first.device).expand_as(worst_first)
    rank = torch.empty_like(worst_first).scatter_(1, worst_first, ranks)
    return (rank < wanted) & ~is_positive


def multibox_loss(
    logits: Tensor,
    locations: Tensor,
    target_labels: Tensor,
    target_locations: Tensor,
    *,
    negatives_per_positive: int = 3,
    smooth_l1_beta: float = 1.0,
    localization_loss_weight: float = 1.0,
) -> dict[str, Tensor]:
    """SSD's loss (section 2.2), both parts divided by the number of matched anchors in the batch, at least 1.

    Args:
        logits: (B, A, 1 + K), the background first.
        locations: (B, A, 4) predicted, see `encode_boxes`.
        target_labels: (B, A) of `match_anchors`.
        target_locations: (B, A, 4) to predict; only those of matched anchors count.
        negatives_per_positive: See `mine_hard_negatives`.
        smooth_l1_beta: Where the localisation loss turns from quadratic to linear.
        localization_loss_weight: Factor on the localisation loss.

    Returns:
        `loss_classification` and `loss_localization`, whose sum is the loss. Both are 0, with gradients of 0, when no
        image has an object.
    """
    is_positive = target_labels > BACKGROUND
    log_normalizer = logits.logsumexp(dim=-1)
    with torch.no_grad():
        background_loss = log_normalizer - logits[..., BACKGROUND]
        is_negative = mine_hard_negatives(background_loss, is_positive, negatives_per_positive)
    cross_entropy = log_normalizer - logits.gather(-1, target_labels[..., None]).squeeze(-1)
    target_locations = torch.where(is_positive[..., None], target_locations, locations.detach())
    distance = F.smooth_l1_loss(locations, target_locations, reduction="sum", beta=smooth_l1_beta)
    num_matched = is_positive.sum().clamp(min=1)
    return {
        "loss_classification": (cross_entropy * (is_positive | is_negative)).sum() / num_matched,
        "loss_localization": localization_loss_weight * distance / num_matched,
    }


# --- suppression -----------------------------------------------------------------------------------------------------


def rank_in_group(groups: Tensor) -> Tensor:
    """The position of each element among those of its group: (N,) int64 → (N,), e.g. [7, 5, 7, 7] → [0, 0, 1, 2]."""
    order = groups.argsort(stable=True)
    in_order = groups[order]
    positions = torch.arange(len(groups), device=groups.device)
    return torch.empty_like(groups).scatter_(0, order, positions - torch.searchsorted(in_order, in_order))


def select_detections(
    scores: Tensor,
    boxes: Tensor,
    *,
    score_threshold: float = 0.01,
    max_candidates_per_class: int = 400,
    nms_iou_threshold: float = 0.5,
    max_detections: int = 200,
) -> list[dict[str, Tensor]]:
    """The objects in each image of a batch: of boxes that say the same, only the one that is surest.

    Args:
        scores: (B, A, K) probabilities of the object classes, without the background.
        boxes: (B, A, 4) (x1, y1, x2, y2).
        score_threshold: Only scores above it count.
        max_candidates_per_class: How many of each class, the best, are looked at in an image.
        nms_iou_threshold: Boxes of one class that overlap a better one by more are dropped (non-maximum suppression).
        max_detections: How many are kept for an image.

    Returns:
        For each image `scores` (n,), best first, `labels` (n,) int64, 0..K-1, and `boxes` (n, 4).
    """
    num_images, _, num_labels = scores.shape
    image, anchor, label = (scores > score_threshold).nonzero().unbind(dim=1)
    score = scores[image, anchor, label]
    order = score.argsort(descending=True, stable=True)
    order = order[rank_in_group((image * num_labels + label)[order]) < max_candidates_per_class]
    order = order[image[order].argsort(stable=True)]
    counts = image[order].bincount(minlength=num_images).tolist()
    candidates = (part.split(counts) for part in (score[order], label[order], boxes[image, anchor][order]))
    # One call for the whole batch would be one group for each image and class: with more than 1000 boxes torchvision
    # then loops over hundreds of groups, which takes ten times as long.
    detections = []
    for score, label, box in zip(*candidates, strict=True):
        kept = _suppress(box, score, label, nms_iou_threshold)[:max_detections]
        detections.append({"scores": score[kept], "labels": label[kept], "boxes": box[kept]})
    return detections


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """The indices of the boxes of one image that remain; best first, as the boxes come."""
    # The operator moves each class to a place of its own, which would cost single precision the last digits.
    dtype = torch.float32 if boxes.device.type == "mps" else torch.float64
    corners = boxes.to(dtype)
    if len(corners) > 0:  # a place begins at 0
        corners = corners - corners.min()
    return batched_nms(corners, scores.to(dtype), labels, iou_threshold).sort().values


# --- labels ----------------------------------------------------------------------------------------------------------

# Rounding may put a box that touches the border this far outside.
BOX_TOLERANCE = 1e-3


def check_labels(labels: Sequence[Mapping[str, Tensor]], num_images: int, num_labels: int) -> None:
    """Look through the labels of a batch before they are used.

    Args:
        labels: For each image `class_labels` (N,) integers in 0..num_labels-1, and `boxes` (N, 4) floating point
            (cx, cy, w, h) in 0..1, each with an area. N may be 0.
        num_images: How many there have to be.
        num_labels: K.

    Raises:
        ValueError: If they are anything else; it names the image by its place in the batch, and the box.
    """
    if not isinstance(labels, list | tuple) or not all(isinstance(label, Mapping) for label in labels):
        raise ValueError(f"labels: got {type(labels).__name__}, expected a list with one dict for each image.")
    if len(labels) != num_images:
        raise ValueError(
            f"labels: got {len(labels)} for a batch of {num_images} images. Give one dict with class_labels and "
            "boxes for each image, with empty tensors where there is nothing."
        )
    for i, label in enumerate(labels):
        boxes, class_labels = (label.get(name) for name in ("boxes", "class_labels"))
        if not isinstance(boxes, Tensor) or not isinstance(class_labels, Tensor):
            raise ValueError(f"labels: image {i} has {sorted(label)}, expected tensors class_labels and boxes.")
        if boxes.ndim != 2 or boxes.shape[1] != 4 or class_labels.shape != boxes.shape[:1]:
            raise ValueError(
                f"labels: image {i} has boxes {tuple(boxes.shape)} and class_labels {tuple(class_labels.shape)}, "
                "expected (n, 4) and (n,)."
            )
        if (iscrowd := label.get("iscrowd")) is not None and getattr(iscrowd, "shape", None) != class_labels.shape:
            raise ValueError(f"labels: image {i}: iscrowd is not a tensor with a number for each box.")
        if not boxes.is_floating_point() or class_labels.is_floating_point():
            raise ValueError(
                f"labels: image {i} has boxes of {boxes.dtype} and class_labels of {class_labels.dtype}, expected "
                "floating-point boxes and integer labels."
            )
    boxes = torch.cat([label["boxes"].detach().float() for label in labels])
    class_labels = torch.cat([label["class_labels"] for label in labels])
    outside = (boxes < -BOX_TOLERANCE) | (boxes > 1 + BOX_TOLERANCE)
    wrong_box = (~boxes.isfinite() | outside).any(dim=1) | (boxes[:, 2:] <= 0).any(dim=1)
    wrong_label = (class_labels < 0) | (class_labels >= num_labels)
    wrong = wrong_box | wrong_label
    if wrong.any():
        first = int(wrong.nonzero()[0])
        counts = [len(label["boxes"]) for label in labels]
        image, box = [(i, j) for i, count in enumerate(counts) for j in range(count)][first]
        reason = _what_is_wrong(boxes[first], int(class_labels[first]), num_labels)
        raise ValueError(f"labels: image {image}, box {box}: {reason}")


def _what_is_wrong(box: Tensor, class_label: int, num_labels: int) -> str:
    got = f"got {[round(value, 4) for value in box.tolist()]}"
    if not box.isfinite().all():
        return f"{got}, expected finite numbers. Remove the box or correct it."
    if (box[2:] <= 0).any():
        return f"{got}, a box without area, expected a width and a height above 0. Remove it or correct it."
    if (box < -BOX_TOLERANCE).any() or (box > 1 + BOX_TOLERANCE).any():
        return (
            f"{got}, expected (cx, cy, w, h) as fractions of the image, 0..1. Divide pixels by its width and "
            "height, or let the image processor do it: processor(images, annotations=...)."
        )
    return (
        f"got class {class_label}, expected 0..{num_labels - 1}. Number the object classes from 0, without the "
        f"background, or load the model with num_labels={class_label + 1} or more."
    )


# --- anchors for a dataset ------------------------------------------------------------------------------------------

# Added in front of the paper's levels where objects are small.
FINE_STRIDE, FINE_CHANNELS = 8, 256
GOOD_RECALL, WORTHWHILE_GAIN = 0.95, 0.01


def feature_sizes(image_size: int, strides: Sequence[int]) -> list[tuple[int, int]]:
    """(height, width) of the levels' feature maps for a square image."""
    return [(1, 1) if s == GLOBAL_STRIDE else (-(-image_size // s),) * 2 for s in strides]


def best_overlaps(
    boxes: Tensor, sizes: Sequence[tuple[int, int]], scales: Sequence[float], ratios: Sequence[Sequence[float]]
) -> Tensor:
    """The overlap (IoU) of each box with the anchor that overlaps it most.

    Among anchors of one size that is the one with the nearest center, so no others are looked at.

    Args:
        boxes: (N, 4) (cx, cy, w, h).
        sizes: (height, width) of each level's feature map.
        scales: See `anchor_sizes`.
        ratios: See `anchor_sizes`.

    Returns:
        (N,) in 0..1.
    """
    best = boxes.new_zeros(len(boxes))
    for (height, width), pairs in zip(sizes, anchor_sizes(scales, ratios), strict=True):
        cells = boxes.new_tensor([width, height])
        nearest = ((boxes[:, :2] * cells).floor().clamp(min=0).minimum(cells - 1) + 0.5) / cells
        offset = (boxes[:, :2] - nearest).abs()[:, None]  # (N, 1, 2)
        own, other = boxes[:, None, 2:], pairs.to(boxes)[None]  # (N, 1, 2), (1, anchors per cell, 2)
        overlap = torch.minimum((own + other) / 2 - offset, torch.minimum(own, other)).clamp(min=0).prod(dim=-1)
        iou = overlap / (own.prod(dim=-1) + other.prod(dim=-1) - overlap)
        best = torch.maximum(best, iou.amax(dim=1))
    return best


def fit_anchors(
    boxes: Sequence[Tensor | Sequence[Sequence[float]]],
    image_sizes: Tensor | Sequence[tuple[int, int]],
    image_size: int = 320,
    iou_threshold: float = 0.5,
) -> dict[str, Any]:
    """Levels and anchors for a dataset, so that most of its boxes meet an anchor.

    The paper's settings suit COCO. They are the first candidate here; scales and ratios are then moved towards the
    boxes as long as more of them meet an anchor. A level of stride 8 is added where that alone helps small objects.

    Args:
        boxes: For each image (N, 4) (x1, y1, x2, y2) in pixels.
        image_sizes: For each image its (height, width) in pixels.
        image_size: Side of the square that the model sees, in pixels.
        iou_threshold: The overlap at which an anchor is matched.

    Returns:
        Fields of a `MobileViTSSDLiteConfig`: `feature_strides`, `level_channels`, `anchor_scales`, `anchor_ratios`.

    Raises:
        ValueError: If there are no boxes, or one lies outside its image or has no area.

    Example:
        >>> fields = fit_anchors([torch.tensor([[10.0, 10.0, 30.0, 25.0]])], [(480, 640)])
        >>> config = MobileViTSSDLiteConfig.from_variant("xxs", **fields)
    """
    normalized = _normalize_boxes(boxes, image_sizes)

    def score(strides: Sequence[int], scales: Sequence[float], ratios: Sequence[Sequence[float]]) -> float:
        overlaps = best_overlaps(normalized, feature_sizes(image_size, strides), scales, ratios)
        return float((overlaps >= iou_threshold).double().mean() + 0.1 * overlaps.mean())

    coarse = _fit_levels(normalized, FEATURE_STRIDES, LEVEL_CHANNELS, score)
    coarse_recall = _recall(normalized, coarse, image_size, iou_threshold)
    if coarse_recall >= GOOD_RECALL:
        return coarse
    fine = _fit_levels(normalized, (FINE_STRIDE, *FEATURE_STRIDES), (FINE_CHANNELS, *LEVEL_CHANNELS), score)
    gain = _recall(normalized, fine, image_size, iou_threshold) - coarse_recall
    return fine if gain >= WORTHWHILE_GAIN else coarse


def anchor_recall(
    boxes: Sequence[Tensor | Sequence[Sequence[float]]],
    image_sizes: Tensor | Sequence[tuple[int, int]],
    fields: Mapping[str, Any],
    image_size: int = 320,
    iou_threshold: float = 0.5,
) -> float:
    """The share of boxes that meet an anchor, 0..1.

    Args:
        boxes, image_sizes, image_size, iou_threshold: See `fit_anchors`.
        fields: `feature_strides`, `anchor_scales` and `anchor_ratios` of a `MobileViTSSDLiteConfig`.

    Raises:
        ValueError: As `fit_anchors`.
    """
    return _recall(_normalize_boxes(boxes, image_sizes), fields, image_size, iou_threshold)


def _normalize_boxes(boxes: Sequence[Any], image_sizes: Any) -> Tensor:
    """Boxes (x1, y1, x2, y2) in pixels → one float64 (N, 4) (cx, cy, w, h) in 0..1 for all images."""
    if len(boxes) != len(image_sizes):
        raise ValueError(f"image_sizes: got {len(image_sizes)} for the boxes of {len(boxes)} images. Give one each.")
    normalized = []
    for i, (image_boxes, (height, width)) in enumerate(zip(boxes, image_sizes, strict=True)):
        corners = torch.as_tensor(image_boxes, dtype=torch.float64).reshape(-1, 4).cpu()
        corners = corners / torch.tensor([width, height, width, height], dtype=torch.float64)
        outside = (corners < -BOX_TOLERANCE) | (corners > 1 + BOX_TOLERANCE)
        wrong = ~corners.isfinite().all(dim=1) | outside.any(dim=1) | (corners[:, 2:] <= corners[:, :2]).any(dim=1)
        if wrong.any():
            j = int(wrong.nonzero()[0])
            raise ValueError(
                f"boxes: image {i}, box {j}: got {torch.as_tensor(image_boxes)[j].tolist()}, expected "
                f"(x1, y1, x2, y2) in pixels with an area, inside {int(width)}x{int(height)}."
            )
        normalized.append(box_convert(corners, "xyxy", "cxcywh"))
    if sum(map(len, normalized)) == 0:
        raise ValueError("boxes: got none, expected at least one to fit anchors to.")
    return torch.cat(normalized)


def _fit_levels(
    boxes: Tensor, strides: Sequence[int], channels: Sequence[int], score: Callable[..., float]
) -> dict[str, Any]:
    """The best anchors for these levels: the best of a few starts, each moved one scale at a time."""
    levels = len(strides)
    sides = boxes[:, 2:].prod(dim=1).sqrt()
    low, high = (float(sides.quantile(q)) for q in (0.02, 0.98))
    paper = [ANCHOR_SCALES[0] / 2] * (levels - len(FEATURE_STRIDES)) + list(ANCHOR_SCALES)
    spread = [low * (max(high, 1.05 * low) / low) ** (i / levels) for i in range(levels + 1)]
    elongation = boxes[:, 2:].amax(dim=1) / boxes[:, 2:].amin(dim=1)
    own_ratios = sorted({round(max(1.2, float(elongation.quantile(q))), 2) for q in (0.5, 0.9)})
    paper_ratios = [list(ANCHOR_RATIOS[0])] * (levels - 1) + [list(ANCHOR_RATIOS[-1])]
    best_score, best = -1.0, ([], [])
    for start in (paper, spread):
        for ratios in (paper_ratios, [own_ratios] * levels):
            found_score, scales = _climb(strides, start, ratios, score)
            if found_score > best_score:
                best_score, best = found_score, (scales, ratios)
    return {
        "feature_strides": list(strides),
        "level_channels": list(channels),
        "anchor_scales": [round(scale, 4) for scale in best[0]],
        "anchor_ratios": [list(ratios) for ratios in best[1]],
    }


def _climb(
    strides: Sequence[int], scales: Sequence[float], ratios: Sequence[Sequence[float]], score: Callable[..., float]
) -> tuple[float, list[float]]:
    """Change one scale after the other, by less and less, as long as the score grows."""
    scales, best = list(scales), score(strides, scales, ratios)
    for step in (1.5, 1.25, 1.1, 1.05):
        for level in range(len(scales)):
            for factor in (step, 1 / step):
                trial = [*scales[:level], scales[level] * factor, *scales[level + 1 :]]
                trial_score = score(strides, trial, ratios)
                if trial_score > best:
                    scales, best = trial, trial_score
    return best, scales


def _recall(boxes: Tensor, fields: Mapping[str, Any], image_size: int, iou_threshold: float) -> float:
    sizes = feature_sizes(image_size, fields["feature_strides"])
    overlaps = best_overlaps(boxes, sizes, fields["anchor_scales"], fields["anchor_ratios"])
    return float((overlaps >= iou_threshold).double().mean())
