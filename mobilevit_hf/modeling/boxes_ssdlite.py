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
    """Encode boxes (..., A, 4) (cx, cy, w, h) as the regression targets (..., A, 4) of their anchors, "locations".

    Args:
        boxes: Boxes with a positive area.
        anchors: (A, 4) (cx, cy, w, h).
        center_variance: Unit of the center offset, in anchor sizes.
        size_variance: Unit of the logarithm of the size ratio.
    """
    centers = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:] / center_variance
    sizes = (boxes[..., 2:] / anchors[..., 2:]).log() / size_variance
    return torch.cat((centers, sizes), dim=-1)


def decode_boxes(locations: Tensor, anchors: Tensor, center_variance: float, size_variance: float) -> Tensor:
    """Invert `encode_boxes`: locations (..., A, 4) → boxes (..., A, 4) (cx, cy, w, h), not clipped."""
    centers = locations[..., :2] * center_variance * anchors[..., 2:] + anchors[..., :2]
    sizes = (locations[..., 2:] * size_variance).exp() * anchors[..., 2:]
    return torch.cat((centers, sizes), dim=-1)


def pairwise_iou(boxes: Tensor, others: Tensor, eps: float = 0.0) -> Tensor:
    """Compute the IoU of all pairs of boxes: (N, 4) and (M, 4) (x1, y1, x2, y2) → (N, M).

    `eps` is added to the union, so that the IoU of two boxes without area is 0 instead of NaN.
    """
    top_left = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others)]
    return intersection / (areas[0][:, None] + areas[1][None, :] - intersection + eps)


def rank_in_group(groups: Tensor) -> Tensor:
    """Number the elements within their group: (N,) int64 → (N,), e.g. [7, 5, 7, 7] → [0, 0, 1, 2]."""
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
    """Select detections by score threshold, per-class non-maximum suppression (NMS) and top-k.

    Args:
        scores: (B, A, K) probabilities of the object classes, without the background.
        boxes: (B, A, 4) (x1, y1, x2, y2).
        score_threshold: Minimum score, exclusive.
        max_candidates_per_class: Maximum number of boxes per image and class before NMS, by score.
        nms_iou_threshold: IoU with a higher-scoring box of the same class above which a box is dropped.
        max_detections: Maximum number of detections per image.

    Returns:
        Per image `scores` (n,) in descending order, `labels` (n,) int64 in 0..K-1, and `boxes` (n, 4).
    """
    num_images, _, num_labels = scores.shape
    image, anchor, label = (scores > score_threshold).nonzero().unbind(dim=1)
    score = scores[image, anchor, label]
    order = score.argsort(descending=True, stable=True)
    order = order[rank_in_group((image * num_labels + label)[order]) < max_candidates_per_class]
    order = order[image[order].argsort(stable=True)]
    counts = image[order].bincount(minlength=num_images).tolist()
    candidates = (part.split(counts) for part in (score[order], label[order], boxes[image, anchor][order]))
    # One NMS call per image: a call for the batch would have one group per image and class, and above 1000 boxes
    # torchvision loops over the groups, which takes ten times as long for hundreds of them.
    detections = []
    for score, label, box in zip(*candidates, strict=True):
        kept = _nms(box, score, label, nms_iou_threshold)[:max_detections]
        detections.append({"scores": score[kept], "labels": label[kept], "boxes": box[kept]})
    return detections


def _nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Apply per-class NMS to the boxes of one image, sorted by score, and return the indices to keep, in order."""
    # batched_nms offsets the boxes of each class, which costs the last digits in float32. MPS has no float64.
    dtype = torch.float32 if boxes.device.type == "mps" else torch.float64
    corners = boxes.to(dtype)
    if len(corners) > 0:  # the offsets separate the classes only if no coordinate is negative
        corners = corners - corners.min()
    return batched_nms(corners, scores.to(dtype), labels, iou_threshold).sort().values
