"""Draw the predicted class on copies of images."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .colors import class_colors, text_color
from .text import LabelFont

MIN_FONT_SIZE, CHARACTERS_PER_SIDE = 11, 24  # pixels; font size as a fraction of an image's side
PADDING = 0.35  # around the text, as a multiple of the font size


def draw_label(image: Image.Image, label: str, score: float, names: Sequence[str]) -> Image.Image:
    """Return a copy of an RGB image with a class and its score in the top left corner.

    Args:
        image: RGB image. On one that is too small for the text, the name is truncated.
        label: Predicted class, one of `names`.
        score: Its probability.
        names: All class names of the model, in its order, so that a class has the same color on every image.
    """
    drawn = image.copy()
    color = class_colors(names)[label]
    font = LabelFont(names, max(MIN_FONT_SIZE, round(math.sqrt(image.width * image.height) / CHARACTERS_PER_SIDE)))
    padding = round(PADDING * font.size)
    text = font.fit(label, image.width - 2 * padding, f" {score:.2f}")
    draw = ImageDraw.Draw(drawn)
    ascent, descent = font.font.getmetrics()
    draw.rectangle((0, 0, font.font.getlength(text) + 2 * padding, ascent + descent + padding), fill=color)
    draw.text((padding, padding / 2), text, fill=text_color(color), font=font.font)
    return drawn
