"""Procedurally drawn sample images for the built-in models: a blood smear and a T-shirt."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .io import write_atomically

# Colors of a smear with Wright's stain.
GLASS, RED, PALE = (222, 217, 203), (186, 130, 112), (216, 200, 184)
CYTOPLASM, NUCLEUS = (203, 172, 212), (84, 58, 186)
FABRIC, PAPER = (38, 84, 140), (250, 250, 248)
OVERSAMPLING = 3

Color = tuple[int, int, int]
Ellipse = tuple[float, float, float, float]  # center and radii

# Outline of the right half of a T-shirt in a unit square, from the collar down; the left half is mirrored.
T_SHIRT = (
    (0.5, 0.17), (0.58, 0.15), (0.62, 0.1), (0.74, 0.14), (0.95, 0.34), (0.83, 0.46), (0.73, 0.38), (0.74, 0.92),
    (0.5, 0.92),
)  # fmt: skip


def draw_smear(seed: int = 2) -> Image.Image:
    """Draw a blood smear under a microscope, 640 x 480 RGB, with 18 red and 2 white cells at random positions."""
    generator = random.Random(seed)
    smear = Image.new("RGB", (640, 480), GLASS)
    for row in range(4):
        for column in range(5):
            if (row, column) in ((1, 1), (2, 3)):  # positions of the white cells
                continue
            x, y = 64 + 128 * column + generator.uniform(-14, 14), 60 + 120 * row + generator.uniform(-8, 8)
            radius = generator.uniform(40, 50)
            _draw_red_cell(smear, x, y, radius, radius * generator.uniform(0.9, 1.1))
    for x, y in ((196, 184), (450, 302)):
        _draw_white_cell(smear, x, y, generator)
    return smear.filter(ImageFilter.GaussianBlur(0.8))


def _draw_red_cell(smear: Image.Image, x: float, y: float, width: float, height: float) -> None:
    """Draw a disc with a dark rim and a pale center."""
    _blend(smear, [(x, y, width, height)], RED, 0.85, blur=1.5)
    _blend(smear, [(x, y, width * 0.86, height * 0.86)], PALE, 0.25, blur=8)
    _blend(smear, [(x, y, width * 0.45, height * 0.45)], PALE, 0.8, blur=7)


def _draw_white_cell(smear: Image.Image, x: float, y: float, generator: random.Random) -> None:
    """Draw a larger cell with a dark nucleus of several lobes."""
    _blend(smear, [(x, y, 70, 66)], CYTOPLASM, 0.95, blur=3)
    lobes = [(-26, -20), (20, -28), (30, 18), (-14, 28)]
    nucleus = [(x + dx, y + dy, generator.uniform(20, 27), generator.uniform(18, 24)) for dx, dy in lobes]
    _blend(smear, nucleus, NUCLEUS, 0.92, blur=2)
    _blend(smear, [(a, b, c * 0.5, d * 0.5) for a, b, c, d in nucleus], CYTOPLASM, 0.25, blur=5)


def _blend(image: Image.Image, ellipses: Sequence[Ellipse], color: Color, alpha: float, blur: float) -> None:
    """Blend ellipses of one color into an image, in place."""
    margin = round(4 * blur) + 1
    edges = [(x - width, y - height, x + width, y + height) for x, y, width, height in ellipses]
    lefts, tops, rights, bottoms = zip(*edges, strict=True)
    left, top = max(0, int(min(lefts)) - margin), max(0, int(min(tops)) - margin)
    right = min(image.width, int(max(rights)) + margin)
    bottom = min(image.height, int(max(bottoms)) + margin)
    size = (right - left, bottom - top)
    mask = Image.new("L", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING))
    canvas = ImageDraw.Draw(mask)
    for x1, y1, x2, y2 in edges:
        corners = (x1 - left, y1 - top, x2 - left, y2 - top)
        canvas.ellipse([OVERSAMPLING * corner for corner in corners], fill=round(255 * alpha))
    mask = mask.resize(size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(blur))
    image.paste(color, (left, top, right, bottom), mask)


def draw_t_shirt(color: Color = FABRIC) -> Image.Image:
    """Draw a T-shirt of a color (R, G, B), 0..255, on a white background, 480 x 480 RGB, like a product photo."""
    outline = [*T_SHIRT, *((1 - x, y) for x, y in reversed(T_SHIRT))]
    side = 480 * OVERSAMPLING
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon([(x * side, y * side) for x, y in outline], fill=255)
    mask = mask.resize((480, 480), Image.Resampling.BOX)
    image = Image.new("RGB", mask.size, PAPER)
    shadow = mask.filter(ImageFilter.GaussianBlur(8)).point(lambda value: value * 0.25)
    image.paste((120, 120, 120), (4, 6), shadow)
    cloth = Image.new("RGB", mask.size, color)
    # Light from the left, and darker edges.
    shade = ImageChops.multiply(Image.linear_gradient("L").rotate(90).resize(mask.size), Image.new("L", mask.size, 60))
    cloth = Image.composite(Image.new("RGB", mask.size, (0, 0, 0)), cloth, shade)
    rim = ImageChops.subtract(mask, mask.filter(ImageFilter.GaussianBlur(6)))
    cloth.paste((0, 0, 0), mask=rim.point(lambda value: value * 0.5))
    image.paste(cloth, mask=mask)
    return image


# By name of the built-in model.
SAMPLES: dict[str, Callable[[], Image.Image]] = {"blood-cells": draw_smear, "garments": draw_t_shirt}


def write_sample(model: str, folder: Path) -> Path:
    """Save the sample image of a built-in model (a key of `SAMPLES`) as `{model}.png`; return the path.

    The folder is created if necessary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model}.png"
    write_atomically(path, lambda file: SAMPLES[model]().save(file, "PNG"))
    return path
