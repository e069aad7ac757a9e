"""Box codec, IoU and non-maximum suppression of SSD (Liu et al., arXiv 1512.02325).

Boxes are fractions of the image (0..1), either (cx, cy, w, h) or (x1, y1, x2, y2), as each function documents.

Shapes: B images, A anchors, K object classes (without the background), N boxes of one image.
"""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

# Tolerance for boxes that exceed the image border because of rounding.
BOX_TOLERANCE = 1e-3


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
