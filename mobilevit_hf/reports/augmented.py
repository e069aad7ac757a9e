"""Images of augmented training batches."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.functional import to_pil_image
from transformers import BaseImageProcessor

from ..data.transforms import Normalization
from ..data.types import IGNORE_INDEX
from ..visualization import LabeledImage, class_colors
from ..visualization.grids import draw_objects
from ..visualization.masks import is_background
from .page import TILE_SIDE, Fact, Gallery, PhotoTile

MIN_FRACTION = 0.05  # of a class in a mixed image to be named


def augmented_images(
    batch: Mapping[str, Any],
    files: Sequence[str],
    processor: BaseImageProcessor,
    classes: Sequence[str],
    limit: int = 24,
) -> list[LabeledImage]:
    """Return the images of a training batch as the network sees them, with their labels.

    Args:
        batch: `pixel_values` (B, 3, H, W), as normalized by the processor, and `labels`: classes (B,), their
            fractions (B, K) after mixup or cutmix, label maps (B, H, W), or a dict per image with `class_labels` (N,)
            and `boxes` (N, 4), normalized (center x, center y, width, height).
        files: File name of each image; empty if they are unknown, as in a stream.
        processor: Image processor of the model, whose normalization is reversed.
        classes: Class names.
        limit: Maximum number of images.
    """
    values = batch["pixel_values"][:limit].detach().float().cpu()
    images = [to_pil_image(image) for image in _to_pixels(values, Normalization(processor))]
    labels, files = batch["labels"][:limit], [*files[:limit]] or [""] * len(images)
    if isinstance(labels, Tensor) and labels.ndim == 3:
        return [
            LabeledImage(image, file, _largest_classes(label_map, classes), label_map=label_map.cpu().numpy())
            for image, file, label_map in zip(images, files, labels, strict=True)
        ]
    if isinstance(labels, Tensor):
        return [
            LabeledImage(image, file, _class_names(label.cpu(), classes))
            for image, file, label in zip(images, files, labels, strict=True)
        ]
    entries = []
    for image, file, objects in zip(images, files, labels, strict=True):
        scale = torch.tensor([image.width, image.height] * 2)
        boxes = box_convert(objects["boxes"].cpu().reshape(-1, 4), "cxcywh", "xyxy") * scale
        names = [classes[label] for label in objects["class_labels"].tolist()]
        entries.append(LabeledImage(image, file, names, boxes))
    return entries


def augmented_gallery(images: Sequence[LabeledImage], classes: Sequence[str]) -> Gallery:
    """Return a gallery of augmented images: their classes, and of a detection dataset also boxes and numbers.

    The classes of masks are in a legend.
    """
    colors = class_colors(classes)
    tiles = []
    has_masks = any(item.label_map is not None for item in images)
    shown = {name for item in images for name in item.labels} if has_masks else set()
    legend = [Fact(name, color=colors[name]) for name in classes if name in shown and not is_background(name)]
    for item in images:
        counts = Counter(item.labels).most_common()
        facts = [Fact(name if item.boxes is None else f"{name}: {n}", color=colors[name]) for name, n in counts]
        facts = [] if has_masks else facts
        alt = f"Augmented image of {', '.join(name for name, _ in counts) or 'no class'}"
        tiles.append(PhotoTile(draw_objects(item, colors, TILE_SIDE), item.file, alt, facts))
    caption = "Training images as the network sees them, after augmentation, with their labels."
    return Gallery(tiles, caption, "train_batches.png", classes=legend)


def _class_names(label: Tensor, classes: Sequence[str]) -> list[str]:
    """Class index (), or fractions (K,) of the classes → names, the largest fraction first."""
    if label.ndim == 0:
        return [classes[int(label)]]
    order = label.argsort(descending=True).tolist()
    return [classes[index] for index in order if label[index] >= MIN_FRACTION]


def _largest_classes(label_map: Tensor, classes: Sequence[str]) -> list[str]:
    """Label map (H, W) → names of its classes, the one with the most pixels first."""
    labels, counts = label_map.cpu().unique(return_counts=True)
    pairs = sorted(zip(counts.tolist(), labels.tolist(), strict=True), reverse=True)
    return [classes[label] for _, label in pairs if label != IGNORE_INDEX]


def _to_pixels(values: Tensor, normalization: Normalization) -> Tensor:
    """Normalized values (B, 3, H, W) → uint8 RGB."""
    pixels = torch.empty(values.shape)
    for index, channel in enumerate(normalization.channels):
        pixels[:, channel] = (values[:, index] - normalization.biases[index]) / normalization.scales[index]
    return pixels.round().clamp(0, 255).to(torch.uint8)
