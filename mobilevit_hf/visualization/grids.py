"""Image grids: annotated images, mistakes of a classifier, detections next to ground truth."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from .boxes import Color, class_colors, draw_boxes, draw_outlines, text_color, unpack_detections
from .text import LabelFont

# Backgrounds of targets, wrong predictions, and predictions that may be correct or wrong.
TARGET, WRONG, PREDICTION = (0, 110, 50), (190, 20, 40), (70, 70, 70)

CAPTION_PADDING = 3  # pixels on the left and right of a caption's text
LINE_HEIGHT = 1.4  # of a caption, as a multiple of the font size

# A line of a caption: texts to truncate if necessary, suffixes and background colors.
Line = Sequence[tuple[str, str, Color]]


def draw_image_grid(
    images: Iterable[tuple[Image.Image, Sequence[str], Tensor | None]],
    names: Sequence[str],
    *,
    side: int = 240,
    columns: int = 6,
) -> Image.Image:
    """Draw a grid of annotated images: boxes in the colors of their classes, and the class names below.

    Args:
        images: RGB images with their labels and, in detection, their boxes, (N, 4) float32 (x1, y1, x2, y2) in
            pixels of the image. At least one image.
        names: All class names, in the order of the model, so that a class has the same color in every grid.
        side: Side of a square tile in pixels; images are resized to fit.
        columns: Number of tiles per row.
    """
    colors = class_colors(names)
    font = LabelFont(names, side // 16)
    tiles = []
    for image, labels, boxes in images:
        fitted = _fit(image, side)
        if boxes is not None and len(boxes):
            box_colors = [colors[label] for label in labels]
            fitted = to_pil_image(draw_outlines(fitted, _scale(boxes, image, fitted), box_colors, width=2))
        counts = Counter(labels).most_common()
        caption = [(label, "" if boxes is None else f": {count}", colors[label]) for label, count in counts]
        tiles.append(_make_tile(fitted, (side, side), [caption], font))
    return to_pil_image(make_grid(tiles, nrow=columns, padding=side // 20, pad_value=255))


def draw_mistakes(
    entries: Iterable[tuple[Image.Image, str, str, float]], names: Sequence[str], *, side: int = 240, columns: int = 6
) -> Image.Image:
    """Draw a grid of images that a classifier misclassified: the target below, and the prediction below that.

    Args:
        entries: RGB images with target class, predicted class and its probability. At least one.
        names, side, columns: As in `draw_image_grid`.
    """
    font = LabelFont(names, side // 16)
    tiles = []
    for image, target, prediction, score in entries:
        caption = [[(target, "", TARGET)], [(prediction, f" {score:.2f}", WRONG)]]
        tiles.append(_make_tile(_fit(image, side), (side, side), caption, font))
    return to_pil_image(make_grid(tiles, nrow=columns, padding=side // 20, pad_value=255))


def draw_detection_mistakes(
    entries: Iterable[tuple[Image.Image, Tensor, Sequence[str], Sequence[dict[str, Any]]]],
    names: Sequence[str],
    *,
    side: int = 480,
) -> Image.Image:
    """Draw a row per image, with its ground truth on the left and its detections on the right.

    Args:
        entries: RGB images with the boxes of their objects, (N, 4) float32 (x1, y1, x2, y2) in pixels of the image,
            the labels of the objects, and detections as in `draw_detections`. At least one.
        names: As in `draw_image_grid`.
        side: Side of the square into which images are resized to fit, in pixels.

    Raises:
        ValueError: If a label is not in `names`.
    """
    font = LabelFont(names, side // 32)
    rows = []
    for image, boxes, labels, detections in entries:
        fitted = _fit(image, side)
        detected_boxes, *detected_labels = unpack_detections(detections)
        target = draw_boxes(fitted, _scale(boxes, image, fitted), labels, [""] * len(labels), names)
        prediction = draw_boxes(fitted, _scale(detected_boxes, image, fitted), *detected_labels, names)
        size = (side, fitted.height)
        tiles = [
            _make_tile(target, size, [[("ground truth", f": {len(labels)}", TARGET)]], font),
            _make_tile(prediction, size, [[("detections", f": {len(detections)}", PREDICTION)]], font),
        ]
        rows.append(make_grid(tiles, padding=side // 20, pad_value=255))
    return to_pil_image(torch.cat(rows, dim=1))


def _fit(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    return image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))))


def _scale(boxes: Tensor, image: Image.Image, fitted: Image.Image) -> Tensor:
    """Boxes (N, 4) (x1, y1, x2, y2) in pixels of the image → in whole pixels of the fitted image."""
    scale = torch.tensor([fitted.width / image.width, fitted.height / image.height] * 2)
    return (boxes.reshape(-1, 4) * scale).round()


def _make_tile(image: Image.Image, size: tuple[int, int], caption: Sequence[Line], font: LabelFont) -> Tensor:
    """Return a white tile (3, H, W), uint8, with an image at the bottom of an area of a size, and a caption below."""
    width, height = size
    tile = Image.new("RGB", (width, height + round((LINE_HEIGHT * len(caption) + 0.6) * font.size)), "white")
    tile.paste(image, ((width - image.width) // 2, height - image.height))
    draw = ImageDraw.Draw(tile)
    for number, line in enumerate(caption):
        x, y = 0.0, height + number * LINE_HEIGHT * font.size
        for name, suffix, color in line:
            text = font.fit(name, width - 2 * CAPTION_PADDING, suffix)
            end = x + font.font.getlength(text) + 2 * CAPTION_PADDING
            draw.rectangle((x, y, end, y + LINE_HEIGHT * font.size), fill=color)
            draw.text((x + CAPTION_PADDING, y), text, fill=text_color(color), font=font.font)
            x = end + CAPTION_PADDING
    return pil_to_tensor(tile)
