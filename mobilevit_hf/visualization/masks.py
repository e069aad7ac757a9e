"""Draw label maps: overlays with a legend, errors, and PNG files with a palette."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from ..io import write_atomically
from .colors import FALSE_POSITIVE, Color, class_colors
from .text import LabelFont

BACKGROUND_NAMES = ("background", "_background_")  # left as they are on overlays
ALPHA = 0.55
LINES_PER_SIDE = 400  # width of the lines between classes, as a fraction of an image's side
# Pixels to ignore: light in files, as in PASCAL VOC's palette; gray among errors.
IGNORED: Color = (224, 224, 192)
IGNORED_VALUE = 255
ERROR, CORRECT_BRIGHTNESS = FALSE_POSITIVE, 0.45  # of correct pixels among errors: their gray image is darkened
CHARACTERS_PER_SIDE, MIN_FONT_SIZE, MIN_LEGEND_WIDTH = 36, 12, 300  # legend: pixels
TEXT, PAPER = (27, 31, 36), (255, 255, 255)


def draw_overlay(
    image: Image.Image,
    label_map: np.ndarray,
    id2label: Mapping[int, str],
    alpha: float = ALPHA,
    *,
    legend: bool = True,
) -> Image.Image:
    """Return a copy of an image with the classes of a label map as colors, and a legend below it.

    Pixels of a class that is named background and of labels without a class, such as 255, stay as they are.

    Args:
        image: RGB image.
        label_map: (H, W) class indices, of any size: it is resized to the image's with nearest neighbors.
        id2label: Class names of the model by index, so that a class has the same color on every image.
        alpha: Opacity of the colors, 0..1. The lines around regions are opaque.
        legend: Append the colors and names of the classes on the image, largest first, with their fraction of the
            pixels. The result is then higher, and at least `MIN_LEGEND_WIDTH` wide.
    """
    names = _list_names(id2label)
    labels = np.minimum(resize_labels(label_map, image.size), len(names))
    colors = class_colors(names)
    table = np.array([*(colors[name] for name in names), (0, 0, 0)], dtype=np.uint8)
    is_drawn = np.array([*(not is_background(name) for name in names), False])
    painted = Image.fromarray(table[labels])
    drawn = Image.composite(Image.blend(image, painted, alpha), image, _to_mask(is_drawn[labels]))
    lines = ImageChops.multiply(_find_edges(labels), _to_mask(is_drawn[labels]))
    drawn.paste(painted, mask=lines)
    if not legend:
        return drawn
    counts = np.bincount(labels.ravel(), minlength=len(names) + 1)[:-1]
    shown = [index for index in np.argsort(-counts, kind="stable").tolist() if counts[index]]
    entries = [(names[index], _percentage(counts[index] / labels.size)) for index in shown]
    return append_legend(drawn, entries, names)


def draw_errors(image: Image.Image, target: np.ndarray, prediction: np.ndarray, num_classes: int) -> Image.Image:
    """Return an image, gray and darkened, with the wrong pixels of a prediction in vermillion.

    Args:
        image: RGB image.
        target: (H, W) class indices; pixels with other labels, such as 255, are ignored, and light.
        prediction: (H, W) class indices.
        num_classes: Number of classes.
    """
    target, prediction = (resize_labels(labels, image.size) for labels in (target, prediction))
    drawn = Image.eval(image.convert("L"), lambda value: round(CORRECT_BRIGHTNESS * value)).convert("RGB")
    is_ignored = target >= num_classes
    drawn.paste(IGNORED, mask=_to_mask(is_ignored))
    drawn.paste(ERROR, mask=_to_mask((target != prediction) & ~is_ignored))
    return drawn


def save_palette_png(path: Path, label_map: np.ndarray, id2label: Mapping[int, str]) -> None:
    """Save a label map as PNG whose values are the class indices, shown in the colors of the classes, atomically.

    Args:
        path: File; an existing one is overwritten.
        label_map: (H, W) class indices 0..254, 255 for pixels to ignore.
        id2label: Class names by index.

    Raises:
        ValueError: If a label is not in 0..255.
    """
    labels = np.asarray(label_map)
    if labels.size and not 0 <= labels.min() <= labels.max() <= IGNORED_VALUE:
        raise ValueError(
            f"label_map: got labels {labels.min()}..{labels.max()}, expected 0..{IGNORED_VALUE}. Save the masks of a "
            "model with more than 255 classes as COCO RLE."
        )
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette(palette(id2label))
    write_atomically(path, lambda file: image.save(file, "PNG"))


def palette(id2label: Mapping[int, str]) -> list[int]:
    """Return the 256 colors of a palette PNG, 768 values: those of the classes, black, and a light one for 255."""
    names = _list_names(id2label)[:IGNORED_VALUE]
    colors = class_colors(names)
    entries = [colors[name] for name in names]
    entries += [(0, 0, 0)] * (IGNORED_VALUE - len(entries)) + [IGNORED]
    return [channel for color in entries for channel in color]


def append_legend(image: Image.Image, entries: Sequence[tuple[str, str]], names: Sequence[str]) -> Image.Image:
    """Return an image with a legend below it, at least `MIN_LEGEND_WIDTH` wide; see `draw_legend`."""
    size = max(MIN_FONT_SIZE, round(math.sqrt(image.width * image.height) / CHARACTERS_PER_SIDE))
    legend = draw_legend(entries, names, max(image.width, MIN_LEGEND_WIDTH), size)
    drawn = Image.new("RGB", (legend.width, image.height + legend.height), PAPER)
    drawn.paste(image)
    drawn.paste(legend, (0, image.height))
    return drawn


def draw_legend(entries: Sequence[tuple[str, str]], names: Sequence[str], width: int, size: int) -> Image.Image:
    """Draw a legend: the color and name of classes, and a text after each name, in as many lines as necessary.

    Args:
        entries: Class name and text of each entry.
        names: All class names of the model, in its order.
        width, size: Width of the legend and font size in pixels.
    """
    font, colors = LabelFont([name for name, _ in entries], size), class_colors(names)
    gap, indent, line = round(0.6 * size), round(1.5 * size), round(1.5 * size)
    x, y, placed = gap, gap, []
    for name, suffix in entries:
        text = font.fit(name, width - 2 * gap - indent, suffix)
        length = indent + round(font.font.getlength(text))
        if x > gap and x + length > width - gap:
            x, y = gap, y + line
        placed.append((x, y, PAPER if is_background(name) else colors[name], text))
        x += length + 2 * gap
    legend = Image.new("RGB", (width, y + line), PAPER)
    draw = ImageDraw.Draw(legend)
    for left, top, color, text in placed:
        draw.rectangle((left, top, left + size - 1, top + size - 1), fill=color, outline=TEXT)
        draw.text((left + indent, top + size / 2), text, fill=TEXT, font=font.font, anchor="lm")
    return legend


def is_background(name: str) -> bool:
    """Return whether a class name means background."""
    return name.casefold() in BACKGROUND_NAMES


def resize_labels(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a label map resized to (width, height) with nearest neighbors."""
    labels = np.asarray(label_map)
    if labels.shape == (size[1], size[0]):
        return labels
    return np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))


def _percentage(fraction: float) -> str:
    return f" {fraction:.0%}" if fraction >= 0.005 else " <1%"


def _list_names(id2label: Mapping[int, str]) -> list[str]:
    return [str(name) for _, name in sorted((int(index), name) for index, name in id2label.items())]


def _to_mask(flags: np.ndarray) -> Image.Image:
    return Image.fromarray(flags.astype(np.uint8) * 255)


def _find_edges(labels: np.ndarray) -> Image.Image:
    """Return the pixels next to another label, as a mask."""
    flags = np.zeros(labels.shape, dtype=bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    flags[:, 1:] |= across
    flags[:, :-1] |= across
    flags[1:] |= down
    flags[:-1] |= down
    width = max(1, round(math.sqrt(labels.size) / LINES_PER_SIDE))
    if width == 1:
        return _to_mask(flags)
    # Its time does not depend on the width, unlike that of a maximum filter: 10 s for 12 megapixels.
    return _to_mask(flags).filter(ImageFilter.BoxBlur(width - 1)).point(lambda value: 255 * (value > 0))
