"""Anchors of the SSDLite detector (SSD, arXiv 1512.02325, section 2.2): generation, and fitting to a dataset.

Anchors and scales are fractions of the image (0..1).
"""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
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


def anchor_sizes(scales: Sequence[float], ratios: Sequence[Sequence[float]]) -> list[Tensor]:
    """Return the width and height of each level's anchors, clipped to 1: float64 (anchors per cell, 2) per level.

    A level has the squares of side s and √(s · s'), where s' is the next level's scale, and per aspect ratio r the
    rectangles (s√r, s/√r) and (s/√r, s√r).

    Args:
        scales: Side s of each level's first square, and one more for the second square of the last level.
        ratios: Aspect ratios r of each level.
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
    """Generate the anchors of all levels: (A, 4) float32 (cx, cy, w, h), by level, row, column and size.

    Args:
        feature_sizes: (height, width) of each level's feature map.
        scales: See `anchor_sizes`.
        ratios: See `anchor_sizes`.
        device: Device of the anchors.
    """
    levels = []
    for (height, width), sizes in zip(feature_sizes, anchor_sizes(scales, ratios), strict=True):
        sizes = sizes.to(device=device, dtype=torch.float32)
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        columns = torch.broadcast_tensors(x[None, :, None], y[:, None, None], sizes[:, 0], sizes[:, 1])
        levels.append(torch.stack(columns, dim=-1).reshape(-1, 4))  # from (height, width, anchors per cell, 4)
    return torch.cat(levels)


def feature_sizes(image_size: int, strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return the (height, width) of each level's feature map for a square image."""
    sides = [1 if stride == GLOBAL_STRIDE else -(-image_size // stride) for stride in strides]
    return [(side, side) for side in sides]


def best_overlaps(
    boxes: Tensor, sizes: Sequence[tuple[int, int]], scales: Sequence[float], ratios: Sequence[Sequence[float]]
) -> Tensor:
    """Compute the highest IoU of each box with any anchor: (N, 4) (cx, cy, w, h) → (N,).

    Only the anchor with the nearest center is evaluated for each anchor size: among anchors of equal size it has the
    highest IoU. For `sizes`, `scales` and `ratios` see `make_anchors`.
    """
    best = boxes.new_zeros(len(boxes))
    for (height, width), pairs in zip(sizes, anchor_sizes(scales, ratios), strict=True):
        cells = boxes.new_tensor([width, height])
        nearest = ((boxes[:, :2] * cells).floor().clamp(min=0).minimum(cells - 1) + 0.5) / cells
        offset = (boxes[:, :2] - nearest).abs()[:, None]  # (N, 1, 2)
        box, anchor = boxes[:, None, 2:], pairs.to(boxes)[None]  # (N, 1, 2), (1, anchors per cell, 2)
        overlap = torch.minimum((box + anchor) / 2 - offset, torch.minimum(box, anchor)).clamp(min=0).prod(dim=-1)
        iou = overlap / (box.prod(dim=-1) + anchor.prod(dim=-1) - overlap)
        best = torch.maximum(best, iou.amax(dim=1))
    return best


def fit_anchors(
    boxes: Sequence[Tensor | Sequence[Sequence[float]]],
    image_sizes: Tensor | Sequence[tuple[int, int]],
    image_size: int = 320,
    iou_threshold: float = 0.5,
) -> dict[str, Any]:
    """Fit levels and anchors to a dataset, to maximize the fraction of boxes that match an anchor.

    The search starts from the paper's settings, which suit COCO, and from scales and ratios derived from the boxes. A
    level of stride 8 is added for datasets of small objects, if it increases a recall below 0.95 by at least 0.01.

    Args:
        boxes: (N, 4) (x1, y1, x2, y2) in pixels, per image.
        image_sizes: (height, width) in pixels, per image.
        image_size: Side of the model's square input, in pixels.
        iou_threshold: Minimum IoU of a match.

    Returns:
        Fields of a `MobileViTSSDLiteConfig`: `feature_strides`, `level_channels`, `anchor_scales`, `anchor_ratios`.

    Raises:
        ValueError: If there are no boxes, or a box exceeds its image or has no area.

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
    if coarse_recall >= 0.95:
        return coarse
    fine = _fit_levels(normalized, (8, *FEATURE_STRIDES), (256, *LEVEL_CHANNELS), score)
    gain = _recall(normalized, fine, image_size, iou_threshold) - coarse_recall
    return fine if gain >= 0.01 else coarse


def anchor_recall(
    boxes: Sequence[Tensor | Sequence[Sequence[float]]],
    image_sizes: Tensor | Sequence[tuple[int, int]],
    fields: Mapping[str, Any],
    image_size: int = 320,
    iou_threshold: float = 0.5,
) -> float:
    """Return the fraction of boxes that match an anchor, 0..1; for the other arguments see `fit_anchors`.

    Args:
        fields: `feature_strides`, `anchor_scales` and `anchor_ratios` of a `MobileViTSSDLiteConfig`.
    """
    return _recall(_normalize_boxes(boxes, image_sizes), fields, image_size, iou_threshold)


def _normalize_boxes(boxes: Sequence[Any], image_sizes: Any) -> Tensor:
    """Convert (x1, y1, x2, y2) in pixels per image → float64 (N, 4) (cx, cy, w, h) in 0..1 of all images."""
    if len(boxes) != len(image_sizes):
        raise ValueError(
            f"image_sizes: got {len(image_sizes)} for the boxes of {len(boxes)} images. Pass one per image."
        )
    normalized = []
    for i, (image_boxes, (height, width)) in enumerate(zip(boxes, image_sizes, strict=True)):
        corners = torch.as_tensor(image_boxes, dtype=torch.float64).reshape(-1, 4).cpu()
        corners = corners / torch.tensor([width, height, width, height], dtype=torch.float64)
        outside = ~corners.isfinite() | (corners < -BOX_TOLERANCE) | (corners > 1 + BOX_TOLERANCE)
        is_invalid = outside.any(dim=1) | (corners[:, 2:] <= corners[:, :2]).any(dim=1)
        if is_invalid.any():
            j = int(is_invalid.nonzero()[0])
            raise ValueError(
                f"boxes: image {i}, box {j}: got {torch.as_tensor(image_boxes)[j].tolist()}, expected "
                f"(x1, y1, x2, y2) in pixels with an area, inside {int(width)}x{int(height)}."
            )
        normalized.append(box_convert(corners, "xyxy", "cxcywh"))
    if sum(map(len, normalized)) == 0:
        raise ValueError("boxes: got none, expected at least one. Pass the boxes of the training images.")
    return torch.cat(normalized)


def _fit_levels(
    boxes: Tensor, strides: Sequence[int], channels: Sequence[int], score: Callable[..., float]
) -> dict[str, Any]:
    """Fit the anchors of the given levels by coordinate ascent from several initial scales and ratios."""
    levels = len(strides)
    sides = boxes[:, 2:].prod(dim=1).sqrt()
    low, high = (float(sides.quantile(q)) for q in (0.02, 0.98))
    paper_scales = [ANCHOR_SCALES[0] / 2] * (levels - len(FEATURE_STRIDES)) + list(ANCHOR_SCALES)
    data_scales = [low * (max(high, 1.05 * low) / low) ** (i / levels) for i in range(levels + 1)]
    aspect_ratios = boxes[:, 2:].amax(dim=1) / boxes[:, 2:].amin(dim=1)
    data_ratios = sorted({round(max(1.2, float(aspect_ratios.quantile(q))), 2) for q in (0.5, 0.9)})
    paper_ratios = [list(ANCHOR_RATIOS[0])] * (levels - 1) + [list(ANCHOR_RATIOS[-1])]
    candidates = [
        (*_optimize_scales(strides, initial_scales, ratios, score), ratios)
        for initial_scales in (paper_scales, data_scales)
        for ratios in (paper_ratios, [data_ratios] * levels)
    ]
    _, scales, ratios = max(candidates, key=itemgetter(0))
    return {
        "feature_strides": list(strides),
        "level_channels": list(channels),
        "anchor_scales": [round(scale, 4) for scale in scales],
        "anchor_ratios": list(map(list, ratios)),
    }


def _optimize_scales(
    strides: Sequence[int], scales: Sequence[float], ratios: Sequence[Sequence[float]], score: Callable[..., float]
) -> tuple[float, list[float]]:
    """Increase the score by changing one scale at a time; return the best score and its scales."""
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
    """Return the fraction of `boxes` (N, 4) (cx, cy, w, h) that match an anchor."""
    sizes = feature_sizes(image_size, fields["feature_strides"])
    overlaps = best_overlaps(boxes, sizes, fields["anchor_scales"], fields["anchor_ratios"])
    return float((overlaps >= iou_threshold).double().mean())
