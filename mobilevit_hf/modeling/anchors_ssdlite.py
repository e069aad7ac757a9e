"""Anchors of the SSDLite detector (SSD, arXiv 1512.02325, section 2.2): generation, and fitting to a dataset.

Anchors and scales are fractions of the image (0..1).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from .boxes_ssdlite import BOX_TOLERANCE
from .configuration_mobilevit_ssdlite import (
    ANCHOR_RATIOS,
    ANCHOR_SCALES,
    FEATURE_STRIDES,
    GLOBAL_STRIDE,
    LEVEL_CHANNELS,
)

# Prepended to the paper's levels for small objects.
FINE_STRIDE, FINE_CHANNELS = 8, 256
GOOD_RECALL, WORTHWHILE_GAIN = 0.95, 0.01


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
