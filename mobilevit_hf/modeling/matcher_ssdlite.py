"""Matching of ground truth to anchors, and validation of the ground truth (SSD, arXiv 1512.02325, section 2.2).

Boxes are fractions of the image (0..1). Shapes: A anchors, K object classes (without the background), N boxes of one
image.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from .boxes_ssdlite import BOX_TOLERANCE, pairwise_iou

BACKGROUND = 0


def match_anchors(
    boxes: Tensor, class_labels: Tensor, anchors: Tensor, iou_threshold: float = 0.5, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Match the objects of an image to the anchors.

    An anchor is matched to the object with the highest IoU, if the IoU reaches the threshold. In addition, each object
    is matched to the anchor with the highest IoU, however low; on a conflict the later object takes precedence.

    Args:
        boxes: (N, 4) (cx, cy, w, h); N may be 0.
        class_labels: (N,) int64, 0..K-1.
        anchors: (A, 4) (cx, cy, w, h).
        iou_threshold: Minimum IoU, inclusive.
        eps: See `pairwise_iou`.

    Returns:
        Target labels (A,) int64, 0 for the background and k + 1 for class k, and target boxes (A, 4). A background
        anchor has the box of the object with the highest IoU, or the anchor's own box if the image has no objects.
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


def check_labels(labels: Sequence[Mapping[str, Tensor]], num_images: int, num_labels: int) -> None:
    """Validate the labels of a batch, see `MobileViTSSDLiteForObjectDetection.forward`.

    Raises:
        ValueError: If a label is invalid. The message contains the image's index in the batch and the box's index.
    """
    if not isinstance(labels, list | tuple) or not all(isinstance(label, Mapping) for label in labels):
        raise ValueError(f"labels: got {type(labels).__name__}, expected a list with one dict per image.")
    if len(labels) != num_images:
        raise ValueError(
            f"labels: got {len(labels)} for a batch of {num_images} images. Pass one dict with class_labels and "
            "boxes per image, with empty tensors for an image without objects."
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
            raise ValueError(f"labels: image {i}: iscrowd is not a tensor with one number per box.")
        if not boxes.is_floating_point() or class_labels.is_floating_point():
            raise ValueError(
                f"labels: image {i} has boxes of {boxes.dtype} and class_labels of {class_labels.dtype}, expected "
                "floating-point boxes and integer labels."
            )
    boxes = torch.cat([label["boxes"].detach().float() for label in labels])
    class_labels = torch.cat([label["class_labels"] for label in labels])
    outside = (boxes < -BOX_TOLERANCE) | (boxes > 1 + BOX_TOLERANCE)
    is_invalid_box = (~boxes.isfinite() | outside).any(dim=1) | (boxes[:, 2:] <= 0).any(dim=1)
    is_invalid = is_invalid_box | (class_labels < 0) | (class_labels >= num_labels)
    if is_invalid.any():
        first = int(is_invalid.nonzero()[0])
        counts = [len(label["boxes"]) for label in labels]
        image, box = [(i, j) for i, count in enumerate(counts) for j in range(count)][first]
        problem = _describe_problem(boxes[first], int(class_labels[first]), num_labels)
        raise ValueError(f"labels: image {image}, box {box}: {problem}")


def _describe_problem(box: Tensor, class_label: int, num_labels: int) -> str:
    got = f"got {[round(value, 4) for value in box.tolist()]}"
    if not box.isfinite().all():
        return f"{got}, expected finite numbers. Correct or remove the box."
    if (box[2:] <= 0).any():
        return f"{got}, a box without area, expected a width and a height above 0. Correct or remove it."
    if (box < -BOX_TOLERANCE).any() or (box > 1 + BOX_TOLERANCE).any():
        return (
            f"{got}, expected (cx, cy, w, h) as fractions of the image, 0..1. Divide pixels by the image's width and "
            "height, or use the image processor: processor(images, annotations=...)."
        )
    return (
        f"got class {class_label}, expected 0..{num_labels - 1}. Number the object classes from 0, without the "
        f"background, or load the model with num_labels={class_label + 1} or more."
    )
