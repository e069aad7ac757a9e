"""Draw the outcomes of a detector's boxes: true positives, false positives and missed objects."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, ImageDraw

from .colors import FALSE_POSITIVE, MISSED, TRUE_POSITIVE, Color, text_color
from .text import LabelFont

OutcomeKind = Literal["true positive", "false positive", "missed"]


@dataclass(frozen=True)
class OutcomeStyle:
    """Name in legends, color, and lengths of dash and gap as multiples of the line width; no gap is a solid line."""

    title: str
    color: Color
    dash: tuple[int, int]


OUTCOME_STYLES: dict[OutcomeKind, OutcomeStyle] = {
    "true positive": OutcomeStyle("true positive", TRUE_POSITIVE, (1, 0)),
    "false positive": OutcomeStyle("false positive", FALSE_POSITIVE, (6, 3)),
    "missed": OutcomeStyle("missed", MISSED, (2, 2)),
}

LINES_PER_SIDE, CHARACTERS_PER_SIDE = 220, 36  # line width and font size, as fractions of an image's side
CASING: Color = (255, 255, 255)  # behind and between the dashes, so that lines stand out from any image


@dataclass(frozen=True)
class Outcome:
    """A detection, or an object that was missed.

    Attributes:
        label: Predicted class, or class of the missed object.
        box: x1, y1, x2, y2 in pixels.
        score: Score of a detection, None for a missed object.
    """

    kind: OutcomeKind
    label: str
    box: tuple[float, float, float, float]
    score: float | None = None

    def scale(self, factor: float) -> "Outcome":
        """Return the outcome on a resized image."""
        x1, y1, x2, y2 = self.box
        return replace(self, box=(factor * x1, factor * y1, factor * x2, factor * y2))


def draw_outcomes(image: Image.Image, outcomes: Sequence[Outcome], names: Sequence[str]) -> Image.Image:
    """Return a copy of an RGB image with boxes in the colors and line styles of their outcomes.

    Labels of errors are drawn first; a label that would cover another one is left out.

    Args:
        image: RGB image.
        outcomes: Boxes in pixels of the image.
        names: All class names, which determine the font.
    """
    image = image.copy()
    draw = ImageDraw.Draw(image)
    side = math.sqrt(image.width * image.height)
    width = max(2, round(side / LINES_PER_SIDE))
    font = LabelFont(names, max(10, round(side / CHARACTERS_PER_SIDE)))
    for outcome in sorted(outcomes, key=lambda outcome: outcome.kind != "true positive"):
        draw_dashed_box(draw, _clamp(outcome.box, image), OUTCOME_STYLES[outcome.kind], width)
    taken: list[tuple[float, float, float, float]] = []
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.kind == "true positive", -(outcome.score or 1))):
        suffix = "" if outcome.score is None else f" {outcome.score:.2f}"
        text = font.fit(outcome.label, image.width - 4, suffix)
        area = _label_area(text, _clamp(outcome.box, image), font, image)
        if not any(_overlap(area, other) for other in taken):
            taken.append(area)
            color = OUTCOME_STYLES[outcome.kind].color
            draw.rectangle(area, fill=color)
            draw.text((area[0] + 2, area[1]), text, fill=text_color(color), font=font.font)
    return image


def draw_dashed_box(draw: ImageDraw.ImageDraw, box: Sequence[float], style: OutcomeStyle, width: int) -> None:
    """Draw a box (x1, y1, x2, y2) with lines of a style, on a white line where they have gaps."""
    x1, y1, x2, y2 = box
    if style.dash[1]:
        draw.rectangle((x1, y1, x2, y2), outline=CASING, width=width)
    for start, end in (((x1, y1), (x2, y1)), ((x1, y2 - width + 1), (x2, y2 - width + 1))):
        draw_dashed_line(draw, start, end, style, width)
    for start, end in (((x1, y1), (x1, y2)), ((x2 - width + 1, y1), (x2 - width + 1, y2))):
        draw_dashed_line(draw, start, end, style, width)


def draw_dashed_line(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    style: OutcomeStyle,
    width: int,
) -> None:
    """Draw a horizontal or vertical line that extends to the right of or below its start and end."""
    is_horizontal = start[1] == end[1]
    for first, last in _dashes(start, end, [width * length for length in style.dash]):
        if is_horizontal:
            draw.rectangle((first, start[1], last, start[1] + width - 1), fill=style.color)
        else:
            draw.rectangle((start[0], first, start[0] + width - 1, last), fill=style.color)


def _dashes(
    start: tuple[float, float], end: tuple[float, float], lengths: Sequence[int]
) -> Iterator[tuple[float, float]]:
    """Yield first and last coordinate of each dash along a horizontal or vertical line."""
    first, last = (start[0], end[0]) if start[1] == end[1] else (start[1], end[1])
    dash, gap = lengths
    if not gap:
        yield first, last
        return
    while first <= last:
        yield first, min(first + dash - 1, last)
        first += dash + gap


def _clamp(box: Sequence[float], image: Image.Image) -> tuple[float, float, float, float]:
    """Return a box in whole pixels of the image."""
    x1, x2 = (min(max(round(x), 0), image.width - 1) for x in (box[0], box[2]))
    y1, y2 = (min(max(round(y), 0), image.height - 1) for y in (box[1], box[3]))
    return x1, y1, x2, y2


def _label_area(
    text: str, box: Sequence[float], font: LabelFont, image: Image.Image
) -> tuple[float, float, float, float]:
    """Return the area of a label above a box, moved to lie inside the image."""
    width, height = font.font.getlength(text) + 4, 1.25 * font.size
    x = max(0, min(box[0], image.width - 1 - width))
    y = box[1] - height if box[1] >= height else min(box[1], image.height - 1 - height)
    return x, max(0, y), x + width, max(0, y) + height


def _overlap(area: Sequence[float], other: Sequence[float]) -> bool:
    return area[0] < other[2] and other[0] < area[2] and area[1] < other[3] and other[1] < area[3]
