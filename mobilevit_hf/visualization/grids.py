"""Image grids: labeled images, predictions of a classifier, outcomes of a detector's boxes, label maps."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from .boxes import draw_outlines
from .colors import Color, class_colors, text_color
from .masks import draw_errors, draw_legend, draw_overlay, is_background
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
class Panel:
    """One of the images of a `SegmentedPhoto`, and the text below it."""

    image: Image.Image
    text: str
    color: Color = WHITE
    is_file: bool = False


@dataclass(frozen=True)
class LabeledImage:
    """An image with its labels.

    Attributes:
        image: RGB image.
        file: File name, empty if unknown.
        labels: Class of the image, or of each of its objects.
        boxes: (N, 4) float32 (x1, y1, x2, y2) in pixels of the objects; None for a class of the whole image.
        label_map: (H, W) index of the class of each pixel, 255 for pixels to ignore; segmentation only.
    """

    image: Image.Image
    file: str
    labels: Sequence[str]
    boxes: Tensor | None = None
    label_map: np.ndarray | None = None


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


@dataclass(frozen=True)
class SegmentedPhoto:
    """An image with its mask and the predicted label map.

    Attributes:
        image: RGB image.
        file: File name.
        target: (H, W) class indices of the mask; pixels with other labels are ignored.
        prediction: (H, W) predicted class indices.
        mean_iou, pixel_accuracy: Metrics of the image, 0..1.
    """

    image: Image.Image
    file: str
    target: np.ndarray
    prediction: np.ndarray
    mean_iou: float
    pixel_accuracy: float


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
    colors, images = class_colors(names), list(images)
    tiles = []
    for item in images:
        counts = [] if item.label_map is not None else Counter(item.labels).most_common()
        classes = [Label(n, "" if item.boxes is None else f": {count}", colors[n]) for n, count in counts]
        tiles.append(Tile(draw_objects(item, colors, width), [[Label(item.file, is_file=True)], classes]))
    shown = {name for item in images if item.label_map is not None for name in item.labels}
    legend = [name for name in names if name in shown]
    return draw_tiles(tiles, names, title=title, width=width, columns=columns, classes=legend)


def draw_objects(item: LabeledImage, colors: Mapping[str, Color], width: int) -> Image.Image:
    """Return an image with boxes or a label map in the colors of the classes, at a width in pixels.

    Without either it is returned as it is.
    """
    if item.label_map is not None:
        return draw_overlay(item.image, item.label_map, dict(enumerate(colors)), legend=False)
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


def draw_label_maps(
    images: Iterable[SegmentedPhoto], names: Sequence[str], *, title: str = "", width: int = 360
) -> Image.Image:
    """Draw a row per image: the image, its mask, the prediction and the errors, with the colors of the classes above.

    Args:
        images: At least one image.
        names, title, width: As in `draw_image_grid`.
    """
    images = list(images)
    tiles = [
        Tile(panel.image, [[Label(panel.text, "", panel.color, is_file=panel.is_file)]])
        for item in images
        for panel in draw_panels(item, names)
    ]
    return draw_tiles(tiles, names, title=title, width=width, columns=4, classes=shown_classes(images, names))


def draw_panels(item: SegmentedPhoto, names: Sequence[str]) -> list[Panel]:
    """Return the image, its mask, the prediction and the errors, each with a text."""
    id2label = dict(enumerate(names))
    return [
        Panel(item.image, item.file, is_file=True),
        Panel(draw_overlay(item.image, item.target, id2label, legend=False), "target", TARGET),
        Panel(
            draw_overlay(item.image, item.prediction, id2label, legend=False),
            f"predicted: IoU {item.mean_iou:.1%}",
            TARGET,
        ),
        Panel(
            draw_errors(item.image, item.target, item.prediction, len(names)),
            f"wrong: {1 - item.pixel_accuracy:.1%}",
            WRONG,
        ),
    ]


def shown_classes(images: Iterable[SegmentedPhoto], names: Sequence[str]) -> list[str]:
    """Return the names of the classes in the masks or predictions of images, without background, in their order."""
    maps = [label_map for item in images for label_map in (item.target, item.prediction)]
    labels = {label for label_map in maps for label in np.unique(label_map).tolist()}
    shown = [names[label] for label in sorted(labels) if label < len(names)]
    return [name for name in shown if not is_background(name)]


def draw_tiles(
    tiles: Sequence[Tile],
    names: Sequence[str],
    *,
    title: str = "",
    width: int = 240,
    columns: int = 6,
    legend: bool = False,
    classes: Sequence[str] = (),
) -> Image.Image:
    """Draw tiles in rows, with a title, the legend of outcomes and that of classes above them.

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
    across = padding + columns * (width + padding)
    class_legend = draw_legend([(name, "") for name in classes], names, across, font.size) if classes else None
    if class_legend:
        top += class_legend.height
    size = (across, top + rows * (height + caption + padding))
    grid = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(grid)
    if title:
        draw.text((padding, padding), font.fit(title, size[0] - 2 * padding), fill=BLACK, font=font.font)
    if class_legend:
        grid.paste(class_legend, (0, top - class_legend.height))
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
