"""Draw labeled boxes on copies of images."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from .colors import Color, class_colors, text_color
from .text import LabelFont

LABEL_MARGIN = 1  # pixels that draw_bounding_boxes leaves between the text of a label and its background's edge


def draw_detections(image: Image.Image, detections: Sequence[dict[str, Any]], names: Sequence[str]) -> Image.Image:
    """Return a copy of an image with the boxes, labels and scores of detections, the highest score on top.

    Lines and text scale with the image, and labels stay inside it.

    Args:
        image: RGB image.
        detections: Output of the object-detection pipeline: dicts with `score`, `label` and `box`, a dict with `xmin`,
            `ymin`, `xmax` and `ymax` in pixels. A box may have no area.
        names: All class names of the model, in its order, so that a class has the same color on every image.

    Raises:
        ValueError: If a detection's label is not in `names`.
    """
    return draw_boxes(image, *unpack_detections(detections), names)


def unpack_detections(detections: Sequence[dict[str, Any]]) -> tuple[Tensor, list[str], list[str]]:
    """Return boxes (N, 4) (x1, y1, x2, y2) in pixels, labels and score texts, sorted by ascending score."""
    ordered = sorted(detections, key=lambda detection: detection["score"])
    boxes = torch.tensor([[d["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")] for d in ordered])
    return boxes, [d["label"] for d in ordered], [f" {d['score']:.2f}" for d in ordered]


def draw_boxes(
    image: Image.Image, boxes: Tensor, labels: Sequence[str], suffixes: Sequence[str], names: Sequence[str]
) -> Image.Image:
    """Return a copy of an RGB image with boxes (N, 4) (x1, y1, x2, y2) in pixels, labels and texts after the labels.

    Raises:
        ValueError: If a label is not in `names`, the list of all class names.
    """
    colors = class_colors(names)
    if unknown := set(labels) - set(colors):
        raise ValueError(f"names: got {len(colors)} without {sorted(unknown)}. Pass all class names of the model.")
    if not labels:
        return image.copy()
    side = math.sqrt(image.width * image.height)
    box_colors = [colors[label] for label in labels]
    pixels = draw_outlines(image, boxes, box_colors, width=max(1, round(side / 250)))

    # Labels are drawn on top of all lines, as boxes without a line whose corner is where the label has space.
    font = LabelFont(names, max(9, round(side / 32)))
    width = image.width - 2 * LABEL_MARGIN
    texts = [font.fit(label, width, suffix) for label, suffix in zip(labels, suffixes, strict=True)]
    pairs = zip(texts, _clamp(boxes, image).tolist(), strict=True)
    corners = [_label_corner(text, box, font, image.size) for text, box in pairs]
    pixels = draw_bounding_boxes(
        pixels,
        torch.tensor(corners).repeat(1, 2),
        texts,
        colors=list(box_colors),
        width=0,
        font=font.file,
        font_size=font.size,
        label_colors=[text_color(color) for color in box_colors],
        fill_labels=True,
    )
    return to_pil_image(pixels)


def draw_outlines(image: Image.Image, boxes: Tensor, colors: Sequence[Color], width: int) -> Tensor:
    """Return the pixels (3, H, W) of an RGB image with boxes (N, 4) (x1, y1, x2, y2) in pixels, clipped to it."""
    return draw_bounding_boxes(pil_to_tensor(image), _clamp(boxes, image), colors=list(colors), width=width)


def _clamp(boxes: Tensor, image: Image.Image) -> Tensor:
    last = torch.tensor([image.width, image.height] * 2) - 1
    return boxes.clamp(torch.zeros_like(last), last)


def _label_corner(text: str, box: Sequence[float], font: LabelFont, size: tuple[int, int]) -> tuple[float, float]:
    """Return the corner to pass to `draw_bounding_boxes`: above the box, moved to keep the label inside the image.

    The text starts `LABEL_MARGIN` to the right of and below the corner, and its background is that much larger.
    """
    left, top, right, bottom = font.font.getbbox(text)
    x, y = box[0] - left, box[1] - bottom - 2 * LABEL_MARGIN - 1
    x = max(min(x, size[0] - right - 2 * LABEL_MARGIN - 1), -left)
    y = max(min(y, size[1] - bottom - 2 * LABEL_MARGIN - 1), -top)
    return x, y
