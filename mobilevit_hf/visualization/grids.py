"""Image grids: labeled images, predictions of a classifier, outcomes of a detector's boxes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from .boxes import draw_outlines
from .colors import Color, class_colors, text_color
from .outcomes import OUTCOME_STYLES, Outcome, draw_dashed_box, draw_outcomes
from .text import LabelFont

# Backgrounds of the classes in captions: the target, and a correct or wrong prediction.
TARGET, CORRECT, WRONG = (70, 70, 70), (0, 95, 70), (175, 50, 0)
WHITE, GRAY, BLACK = (255, 255, 255), (90, 90, 90), (0, 0, 0)

ASPECTS = (0.5, 2.0)  # bounds of a tile's width divided by its height
MAX_ENLARGEMENT = 4  # of small images
PADDING = 4  # pixels on the left and right of a caption's text
LINE_HEIGHT = 1.4  # of a caption, as a multiple of the font size
LEFT_OUT = "labels that would cover others are left out"
LINES_PER_WIDTH = 120  # width of boxes' lines as a fraction of a tile's width
SWATCH = 2.2  # length of a legend's lines, as a multiple of the font size


@dataclass(frozen=True)
class Label:
    """A part of a caption's line: a text, truncated if necessary, a suffix, and the color of the background."""

    text: str
    suffix: str = ""
    color: Color = WHITE
    is_file: bool = False  # truncated in the middle


@dataclass(frozen=True)
class Tile:
    """An image of a grid, RGB, and the lines below it."""

    image: Image.Image
    lines: Sequence[Sequence[Label]] = field(default_factory=tuple)


@dataclass(frozen=True)
class LabeledImage:
    """An image with its labels.

    Attributes:
        image: RGB image.
        file: File name, empty if unknown.
        labels: Class of the image, or of each of its objects.
        boxes: (N, 4) float32 (x1, y1, x2, y2) in pixels of the objects; None for a class of the whole image.
    """

    image: Image.Image
    file: str
    labels: Sequence[str]
    boxes: Tensor | None = None


@dataclass(frozen=True)
class ClassifiedImage:
    """An image with its target and predicted class, and their probabilities in 0..1."""

    image: Image.Image
    file: str
    target: str
    prediction: str
    score: float
    target_score: float


@dataclass(frozen=True)
class ComparedImage:
    """An image with the outcomes of a detector's boxes and of the objects."""

    image: Image.Image
    file: str
    outcomes: Sequence[Outcome]


def draw_image_grid(
    images: Iterable[LabeledImage], names: Sequence[str], *, title: str = "", width: int = 240, columns: int = 6
) -> Image.Image:
    """Draw a grid of labeled images: boxes in the colors of their classes, file and class names below.

    Args:
        images: At least one image.
        names: All class names, in the order of the model, so that a class has the same color in every grid.
        title: Line above the grid.
        width: Width of a tile in pixels. Its height follows from the median aspect ratio of the images.
        columns: Number of tiles per row.
    """
    colors = class_colors(names)
    tiles = []
    for item in images:
        counts = Counter(item.labels).most_common()
        classes = [Label(n, "" if item.boxes is None else f": {count}", colors[n]) for n, count in counts]
        tiles.append(Tile(draw_objects(item, colors, width), [[Label(item.file, is_file=True)], classes]))
    return draw_tiles(tiles, names, title=title, width=width, columns=columns)


def draw_objects(item: LabeledImage, colors: Mapping[str, Color], width: int) -> Image.Image:
    """Return an image with boxes in the colors of their classes, at a width in pixels; as it is without boxes."""
    if item.boxes is None or not len(item.boxes):
        return item.image
    fitted = _fit(item.image, (width, width))
    scaled = item.boxes * (fitted.width / item.image.width)
    outlines = [colors[name] for name in item.labels]
    return to_pil_image(draw_outlines(fitted, scaled.round(), outlines, max(2, round(width / LINES_PER_WIDTH))))


def draw_predictions(
    images: Iterable[ClassifiedImage], names: Sequence[str], *, title: str = "", width: int = 240, columns: int = 6
) -> Image.Image:
    """Draw a grid of a classifier's predictions: file name, target class and predicted class below each image.

    Args:
        images: At least one image.
        names, title, width, columns: As in `draw_image_grid`.
    """
    tiles = [
        Tile(
            item.image,
            [
                [Label(item.file, is_file=True)],
                [Label(f"target: {item.target}", f" {item.target_score:.2f}", TARGET)],
                [
                    Label(
                        f"predicted: {item.prediction}",
                        f" {item.score:.2f}",
                        CORRECT if item.prediction == item.target else WRONG,
                    )
                ],
            ],
        )
        for item in images
    ]
    return draw_tiles(tiles, names, title=title, width=width, columns=columns)


def draw_comparisons(
    images: Iterable[ComparedImage], names: Sequence[str], *, title: str = "", width: int = 480, columns: int = 3
) -> Image.Image:
    """Draw a grid of images with true positives, false positives and missed objects, their numbers below, a legend.

    Args:
        images: At least one image.
        names, title, width, columns: As in `draw_image_grid`.
    """
    tiles = []
    for item in images:
        fitted = _fit(item.image, (width, width), enlarge=MAX_ENLARGEMENT)
        scale = fitted.width / item.image.width
        counts = Counter(outcome.kind for outcome in item.outcomes)
        numbers = [Label(f"{s.title}: {counts[kind]}", "", s.color) for kind, s in OUTCOME_STYLES.items()]
        drawn = draw_outcomes(fitted, [outcome.scale(scale) for outcome in item.outcomes], names)
        tiles.append(Tile(drawn, [[Label(item.file, is_file=True)], numbers]))
    return draw_tiles(tiles, names, title=title, width=width, columns=columns, legend=True)


def draw_tiles(
    tiles: Sequence[Tile],
    names: Sequence[str],
    *,
    title: str = "",
    width: int = 240,
    columns: int = 6,
    legend: bool = False,
) -> Image.Image:
    """Draw tiles in rows, with a title and the legend of outcomes above them.

    Raises:
        ValueError: If there are no tiles.
    """
    if not tiles:
        raise ValueError("images: got none, expected at least one. Draw a split with images.")
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    texts = [part.text for tile in tiles for line in tile.lines for part in line]
    font = LabelFont([title, *names, *texts], max(11, round(width / 28)))
    line_height = round(LINE_HEIGHT * font.size)
    height, padding = round(width / median_aspect([tile.image for tile in tiles])), max(4, width // 28)
    caption = line_height * max(len(tile.lines) for tile in tiles) + padding
    top = padding + (line_height + padding) * bool(title) + (line_height + padding) * legend
    size = (padding + columns * (width + padding), top + rows * (height + caption + padding))
    grid = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(grid)
    if title:
        draw.text((padding, padding), font.fit(title, size[0] - 2 * padding), fill=BLACK, font=font.font)
    if legend:
        _draw_legend(draw, (padding, top - line_height - padding), font, size[0])
    for index, tile in enumerate(tiles):
        x, y = padding + index % columns * (width + padding), top + index // columns * (height + caption + padding)
        fitted = _fit(tile.image, (width, height), enlarge=MAX_ENLARGEMENT)
        grid.paste(fitted, (x + (width - fitted.width) // 2, y + (height - fitted.height) // 2))
        for number, line in enumerate(tile.lines):
            _draw_line(draw, line, (x, y + height + 2 + number * line_height), width, font)
    return grid


def median_aspect(images: Sequence[Image.Image]) -> float:
    """Return the median width / height of the images, within bounds."""
    aspects = [image.width / image.height for image in images]
    return float(np.clip(np.median(aspects), *ASPECTS))


def _fit(image: Image.Image, size: tuple[int, int], enlarge: float = float("inf")) -> Image.Image:
    """Return an image resized to fit into a width and height, with its aspect ratio."""
    scale = min(size[0] / image.width, size[1] / image.height, enlarge)
    return image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))))


def _draw_line(
    draw: ImageDraw.ImageDraw, line: Sequence[Label], corner: tuple[int, int], width: int, font: LabelFont
) -> None:
    """Draw the parts of a caption's line next to each other, as far as they fit."""
    x, y = float(corner[0]), corner[1]
    end = corner[0] + width
    for part in line:
        is_plain = part.color == WHITE
        padding = 0 if is_plain else PADDING
        available = end - x - 2 * padding
        text = font.fit(part.text, available, part.suffix, is_file=part.is_file)
        right = x + font.font.getlength(text) + 2 * padding
        if right > end and x > corner[0]:
            return
        if not is_plain:
            draw.rectangle((x, y, min(right, end - 1), y + LINE_HEIGHT * font.size - 2), fill=part.color)
        draw.text((x + padding, y), text, fill=GRAY if is_plain else text_color(part.color), font=font.font)
        x = right + PADDING


def _draw_legend(draw: ImageDraw.ImageDraw, corner: tuple[int, int], font: LabelFont, width: int) -> None:
    """Draw the line styles and names of the outcomes, and what is left out if the width has space for it."""
    x, y = corner
    for style in OUTCOME_STYLES.values():
        draw_dashed_box(draw, (x, y, x + round(SWATCH * font.size), y + font.size), style, width=3)
        x += round((SWATCH + 0.5) * font.size)
        draw.text((x, y), style.title, fill=BLACK, font=font.font)
        x += round(font.font.getlength(style.title)) + 2 * font.size
    if x + font.font.getlength(LEFT_OUT) < width:
        draw.text((x, y), LEFT_OUT, fill=GRAY, font=font.font)
