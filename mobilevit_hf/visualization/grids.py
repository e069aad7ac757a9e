"""Draw boxes and names on copies of images, and put images together on sheets."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, make_grid

from .text import fit_label, font_file

Color = tuple[int, int, int]

# Hues that neighbor each other differ in brightness, so that many classes can be told apart.
BRIGHTNESS = np.array([1.0, 0.7, 0.45])

# Behind what is right, what is wrong, and what may be either.
RIGHT, WRONG, FOUND = (0, 110, 50), (190, 20, 40), (70, 70, 70)

# Pixels that draw_bounding_boxes leaves between a label's letters and the end of its background.
LABEL_MARGIN = 1

# Pixels beside the names below the images of a sheet.
LABEL_PADDING = 3

# Of the lines below the images of a sheet, in sizes of the font.
LINE_HEIGHT = 1.4


def class_colors(names: Sequence[str]) -> dict[str, Color]:
    """A color (R, G, B) in 0..255 for each class, the same whenever the names are the same in the same order."""
    names = list(dict.fromkeys(names))
    index = np.arange(len(names))
    colors = matplotlib.colormaps["hsv"](index / len(names))[:, :3] * BRIGHTNESS[index % 3, None]
    return {name: tuple(color) for name, color in zip(names, (colors * 255).round().astype(int).tolist(), strict=True)}


# --- boxes on an image ----------------------------------------------------------------------------------------------


def draw_detections(image: Image.Image, detections: Sequence[dict[str, Any]], names: Sequence[str]) -> Image.Image:
    """A copy of an image with the boxes, names and scores of what was found on it, the best on top.

    Lines and letters grow with the image, and labels stay inside it.

    Args:
        image: RGB.
        detections: As the object-detection pipeline returns them: dicts of `score`, `label` and `box`, which has
            `xmin`, `ymin`, `xmax` and `ymax` in pixels. A box may have no area.
        names: All classes of the model, in its order: so a class has the same color on each image.

    Raises:
        ValueError: If a detection's label is not among the names.
    """
    return _draw_boxes(image, *_read_detections(detections), names)


def _read_detections(detections: Sequence[dict[str, Any]]) -> tuple[Tensor, list[str], list[str]]:
    """Boxes (N, 4) (x1, y1, x2, y2) in pixels, labels, and what is written behind these; the best is the last."""
    found = sorted(detections, key=lambda detection: detection["score"])
    boxes = torch.tensor([[f["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")] for f in found])
    return boxes, [f["label"] for f in found], [f" {f['score']:.2f}" for f in found]


def _draw_boxes(
    image: Image.Image, boxes: Tensor, labels: Sequence[str], suffixes: Sequence[str], names: Sequence[str]
) -> Image.Image:
    """A copy of an image with boxes (N, 4) (x1, y1, x2, y2) in pixels, and their labels, each with its suffix."""
    colors = class_colors(names)
    if unknown := set(labels) - set(colors):
        raise ValueError(f"names: got {len(colors)} without {sorted(unknown)}. Pass all names of the model's classes.")
    pixels = pil_to_tensor(image)
    if labels:
        last = torch.tensor([image.width, image.height] * 2) - 1
        boxes = boxes.clamp(torch.zeros_like(last), last)
        box_colors = [colors[label] for label in labels]
        side = math.sqrt(image.width * image.height)
        line = max(1, round(side / 250))
        pixels = draw_bounding_boxes(pixels, boxes, colors=box_colors, width=line)

        # Labels come in a second step, over all lines and where there is room for them: beside boxes without a line.
        font = _font(names, max(9, round(side / 32)))
        room = image.width - 2 * LABEL_MARGIN
        texts = [fit_label(label, font, room, suffix) for label, suffix in zip(labels, suffixes, strict=True)]
        corners = [_label_corner(*pair, font, image.size) for pair in zip(texts, boxes.tolist(), strict=True)]
        pixels = draw_bounding_boxes(
            pixels,
            torch.tensor(corners).repeat(1, 2),
            texts,
            colors=box_colors,
            width=0,
            font=font.path,
            font_size=font.size,
            label_colors=[_text_color(color) for color in box_colors],
            fill_labels=True,
        )
    return to_pil_image(pixels)


def _label_corner(
    label: str, box: Sequence[float], font: ImageFont.FreeTypeFont, size: tuple[int, int]
) -> tuple[float, float]:
    """Where `draw_bounding_boxes` must be told to write: above the box, moved as needed to stay inside the image.

    It writes `LABEL_MARGIN` right and below of the corner, and fills as much around the letters.
    """
    left, top, right, bottom = font.getbbox(label)
    x, y = box[0] - left, box[1] - bottom - 2 * LABEL_MARGIN - 1
    x = max(min(x, size[0] - right - 2 * LABEL_MARGIN - 1), -left)
    y = max(min(y, size[1] - bottom - 2 * LABEL_MARGIN - 1), -top)
    return x, y


def _text_color(background: Color) -> str:
    """Black or white, whichever has the greater contrast (as WCAG defines it)."""
    luminance = (np.array(background) / 255) ** 2.2 @ (0.2126, 0.7152, 0.0722)
    return "black" if luminance > 0.179 else "white"


# --- sheets of images ----------------------------------------------------------------------------------------------


def draw_image_grid(
    images: Iterable[tuple[Image.Image, Sequence[str], Tensor | None]],
    names: Sequence[str],
    *,
    side: int = 240,
    columns: int = 6,
) -> Image.Image:
    """Annotated images side by side, each with the names of its classes below, and its boxes in their colors.

    Args:
        images: RGB images with their labels and, where a label is a box and not the whole image, the boxes:
            (N, 4) float32 (x1, y1, x2, y2) in pixels of the image. At least one image.
        names: All classes, among them all labels, in their order: so a class has the same color on each sheet.
        side: Of the square that each image is fitted into, in pixels.
        columns: How many images a row has.
    """
    colors = class_colors(names)
    font = _font(names, side // 16)
    tiles = []
    for image, labels, boxes in images:
        fitted = _fit(image, side)
        if boxes is not None and len(boxes):
            last = torch.tensor([fitted.width, fitted.height] * 2) - 1
            corners = _scale(boxes, image, fitted).clamp(torch.zeros_like(last), last)
            box_colors = [colors[label] for label in labels]
            fitted = to_pil_image(draw_bounding_boxes(pil_to_tensor(fitted), corners, colors=box_colors, width=2))
        line = [
            (label, "" if boxes is None else f": {number}", colors[label])
            for label, number in Counter(labels).most_common()
        ]
        tiles.append(_make_tile(fitted, (side, side), [line], font))
    return to_pil_image(make_grid(tiles, nrow=columns, padding=side // 20, pad_value=255))


def draw_mistakes(
    entries: Iterable[tuple[Image.Image, str, str, float]],
    names: Sequence[str],
    *,
    side: int = 240,
    columns: int = 6,
) -> Image.Image:
    """Images that a classifier got wrong, each with two lines below: what it is, and what was named how surely.

    Args:
        entries: RGB images with the right class, the one that was named and its probability. At least one.
        names: All classes.
        side: Of the square that each image is fitted into, in pixels.
        columns: How many images a row has.
    """
    font = _font(names, side // 16)
    tiles = [
        _make_tile(_fit(image, side), (side, side), [[(right, "", RIGHT)], [(named, f" {score:.2f}", WRONG)]], font)
        for image, right, named, score in entries
    ]
    return to_pil_image(make_grid(tiles, nrow=columns, padding=side // 20, pad_value=255))


def draw_detection_mistakes(
    entries: Iterable[tuple[Image.Image, Tensor, Sequence[str], Sequence[dict[str, Any]]]],
    names: Sequence[str],
    *,
    side: int = 480,
) -> Image.Image:
    """Images below each other, each twice: on the left with what is there, on the right with what was found.

    Args:
        entries: RGB images with the right boxes, (N, 4) float32 (x1, y1, x2, y2) in pixels of the image, their
            labels, and detections as `draw_detections` takes them. At least one.
        names: All classes of the model, in its order: so a class has the same color on each sheet.
        side: Of the square that each image is fitted into, in pixels.

    Raises:
        ValueError: If a label is not among the names.
    """
    font = _font(names, side // 32)
    rows = []
    for image, boxes, labels, detections in entries:
        fitted = _fit(image, side)
        found_boxes, *found_labels = _read_detections(detections)
        there = _draw_boxes(fitted, _scale(boxes, image, fitted), labels, [""] * len(labels), names)
        found = _draw_boxes(fitted, _scale(found_boxes, image, fitted), *found_labels, names)
        size = (side, fitted.height)
        tiles = [
            _make_tile(there, size, [[("right", f": {len(labels)}", RIGHT)]], font),
            _make_tile(found, size, [[("found", f": {len(detections)}", FOUND)]], font),
        ]
        rows.append(make_grid(tiles, padding=side // 20, pad_value=255))
    return to_pil_image(torch.cat(rows, dim=1))


def _font(names: Sequence[str], size: int) -> ImageFont.FreeTypeFont:
    """One that has the names' letters."""
    return ImageFont.truetype(font_file("".join(names)), size)


def _fit(image: Image.Image, side: int) -> Image.Image:
    shrink = side / max(image.size)
    return image.resize([max(1, round(shrink * length)) for length in image.size])


def _scale(boxes: Tensor, image: Image.Image, fitted: Image.Image) -> Tensor:
    """Boxes (N, 4) (x1, y1, x2, y2) in pixels of the image → in whole pixels of the fitted one."""
    scale = torch.tensor([fitted.width / image.width, fitted.height / image.height] * 2)
    return (boxes.reshape(-1, 4) * scale).round()


def _make_tile(
    fitted: Image.Image,
    size: tuple[int, int],
    lines: Sequence[Sequence[tuple[str, str, Color]]],
    font: ImageFont.FreeTypeFont,
) -> Tensor:
    """An image at the lower edge of a white area of a size, and lines below it: names, suffixes, backgrounds.

    Returns:
        (3, H, W) uint8.
    """
    width, height = size
    tile = Image.new("RGB", (width, height + round((LINE_HEIGHT * len(lines) + 0.6) * font.size)), "white")
    tile.paste(fitted, ((width - fitted.width) // 2, height - fitted.height))
    pen = ImageDraw.Draw(tile)
    for number, line in enumerate(lines):
        x, y = 0, height + number * LINE_HEIGHT * font.size
        for name, suffix, color in line:
            text = fit_label(name, font, width - 2 * LABEL_PADDING, suffix)
            end = x + font.getlength(text) + 2 * LABEL_PADDING
            pen.rectangle((x, y, end, y + LINE_HEIGHT * font.size), fill=color)
            pen.text((x + LABEL_PADDING, y), text, fill=_text_color(color), font=font)
            x = end + LABEL_PADDING
    return pil_to_tensor(tile)
