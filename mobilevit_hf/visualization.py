"""Draw what a detector found on a copy of the picture, and write such copies beside what is there."""

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, make_grid

# Hues that neighbour each other differ in brightness, so that many classes can be told apart.
BRIGHTNESS = np.array([1.0, 0.7, 0.45])

# Pixels that draw_bounding_boxes leaves between a label's letters and the end of its background.
LABEL_MARGIN = 1

# Pixels beside the names below the pictures of a sheet.
LABEL_PADDING = 3

# File systems take names of 255 bytes; a number and a suffix are added.
MAX_STEM_BYTES = 200

# What a file's name may end with; Pillow writes the format it stands for.
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png"}


def class_colors(names: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """A colour (R, G, B) in 0..255 for each class, the same whenever the names are the same in the same order."""
    names = list(dict.fromkeys(names))
    index = np.arange(len(names))
    colors = matplotlib.colormaps["hsv"](index / len(names))[:, :3] * BRIGHTNESS[index % 3, None]
    return {name: tuple(color) for name, color in zip(names, (colors * 255).round().astype(int).tolist(), strict=True)}


def draw_detections(image: Image.Image, detections: Sequence[dict[str, Any]], names: Sequence[str]) -> Image.Image:
    """A copy of a picture with the boxes, names and scores of what was found on it, the best on top.

    Lines and letters grow with the picture, and labels stay inside it.

    Args:
        image: RGB.
        detections: As the object-detection pipeline returns them: dicts of `score`, `label` and `box`, which has
            `xmin`, `ymin`, `xmax` and `ymax` in pixels. A box may have no area.
        names: All classes of the model, in its order: so a class has the same colour on each picture.

    Raises:
        ValueError: If a detection's label is not among the names.
    """
    colors = class_colors(names)
    if unknown := {found["label"] for found in detections} - set(colors):
        raise ValueError(f"names: got {len(colors)} without {sorted(unknown)}. Pass all names of the model's classes.")
    pixels = pil_to_tensor(image)
    if detections:
        found = sorted(detections, key=lambda detection: detection["score"])
        last = torch.tensor([image.width, image.height] * 2) - 1
        boxes = torch.tensor([[f["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")] for f in found])
        boxes = boxes.clamp(torch.zeros_like(last), last)
        box_colors = [colors[f["label"]] for f in found]
        side = math.sqrt(image.width * image.height)
        line = max(1, round(side / 250))
        pixels = draw_bounding_boxes(pixels, boxes, colors=box_colors, width=line)

        # Labels come in a second step, over all lines and where there is room for them: beside boxes without a line.
        font = ImageFont.truetype(_font_file("".join(names)), max(9, round(side / 32)))
        labels = [_shorten(f["label"], f"{f['score']:.2f}", font, image.width) for f in found]
        corners = [_label_corner(*pair, font, image.size) for pair in zip(labels, boxes.tolist(), strict=True)]
        pixels = draw_bounding_boxes(
            pixels,
            torch.tensor(corners).repeat(1, 2),
            labels,
            colors=box_colors,
            width=0,
            font=font.path,
            font_size=font.size,
            label_colors=[_text_color(color) for color in box_colors],
            fill_labels=True,
        )
    return to_pil_image(pixels)


def _shorten(name: str, score: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """A label on one line, its name cut where the picture is too narrow for all of it."""
    name = " ".join(name.split())
    label = f"{name} {score}"
    while name and font.getlength(label) > width - 2 * LABEL_MARGIN:
        name = name[:-1]
        label = f"{name}… {score}"
    return label


def _label_corner(label: str, box: list[int], font: ImageFont.FreeTypeFont, size: tuple[int, int]) -> tuple[int, int]:
    """Where `draw_bounding_boxes` must be told to write: above the box, moved as needed to stay inside the picture.

    It writes `LABEL_MARGIN` right and below of the corner, and fills as much around the letters.
    """
    left, top, right, bottom = font.getbbox(label)
    x, y = box[0] - left, box[1] - bottom - 2 * LABEL_MARGIN - 1
    x = max(min(x, size[0] - right - 2 * LABEL_MARGIN - 1), -left)
    y = max(min(y, size[1] - bottom - 2 * LABEL_MARGIN - 1), -top)
    return x, y


def _text_color(background: tuple[int, int, int]) -> str:
    """Black or white, whichever has the greater contrast (as WCAG defines it)."""
    luminance = (np.array(background) / 255) ** 2.2 @ (0.2126, 0.7152, 0.0722)
    return "black" if luminance > 0.179 else "white"


@cache
def _font_file(characters: str) -> str:
    """DejaVu Sans, which comes with matplotlib, or the system's font that has most of the characters it lacks."""
    needed = {ord(character) for character in characters + "0123456789.…" if not character.isspace()}

    def lacks(file: str) -> int:
        return len(needed - set(FT2Font(file).get_charmap()))

    default = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    if not lacks(default):
        return default
    from matplotlib.font_manager import fontManager  # looks for all fonts, which takes a second the first time

    upright = [entry for entry in fontManager.ttflist if entry.style == "normal" and entry.weight == 400]
    return min([default, *(entry.fname for entry in upright if "LastResort" not in entry.fname)], key=lacks)


def save_picture(image: Image.Image, folder: Path, name: str) -> Path:
    """Write a picture whole or not at all, and never over another file: a name that is taken gets a number.

    Args:
        image: RGB.
        folder: An existing directory.
        name: With the ending .jpg, .jpeg or .png; anything else becomes .png.

    Returns:
        The file.
    """
    stem, suffix = Path(name).stem or "picture", Path(name).suffix
    stem = os.fsdecode(os.fsencode(stem)[:MAX_STEM_BYTES])
    suffix = suffix if suffix.lower() in PICTURE_SUFFIXES else ".png"
    numbered = chain([stem], (f"{stem}-{number}" for number in count(2)))
    path = next(path for name in numbered if not (path := folder / f"{name}{suffix}").exists())
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
        finished = Path(scratch) / path.name
        file_format = "PNG" if suffix.lower() == ".png" else "JPEG"
        image.save(finished, file_format, quality=95, subsampling=0)  # as JPEG: thin lines keep their colours
        finished.rename(path)
    return path


def draw_sheet(
    pictures: Iterable[tuple[Image.Image, Sequence[str], Tensor | None]],
    names: Sequence[str],
    *,
    side: int = 240,
    columns: int = 6,
) -> Image.Image:
    """Annotated pictures side by side, each with the names of its classes below, and its boxes in their colours.

    Args:
        pictures: RGB pictures with their labels and, where a label is a box and not the whole picture, the boxes:
            (N, 4) float32 (x1, y1, x2, y2) in pixels of the picture. At least one picture.
        names: All classes, among them all labels, in their order: so a class has the same colour on each sheet.
        side: Of the square that each picture is fitted into, in pixels.
        columns: How many pictures a row has.
    """
    colors = class_colors(names)
    font = ImageFont.truetype(_font_file("".join(names)), side // 16)
    tiles = []
    for picture, labels, boxes in pictures:
        tile = Image.new("RGB", (side, side + 2 * font.size), "white")
        shrink = side / max(picture.size)
        fitted = picture.resize([max(1, round(shrink * length)) for length in picture.size])
        if boxes is not None and len(boxes):
            scale = torch.tensor([fitted.width / picture.width, fitted.height / picture.height] * 2)
            last = torch.tensor([fitted.width, fitted.height] * 2) - 1
            corners = (boxes * scale).round().clamp(torch.zeros_like(last), last)
            box_colors = [colors[label] for label in labels]
            fitted = to_pil_image(draw_bounding_boxes(pil_to_tensor(fitted), corners, colors=box_colors, width=2))
        tile.paste(fitted, ((side - fitted.width) // 2, side - fitted.height))
        pen, x = ImageDraw.Draw(tile), 0
        for label, number in Counter(labels).most_common():
            text = " ".join(label.split()) + (f": {number}" if boxes is not None else "")
            width = font.getlength(text) + 2 * LABEL_PADDING
            pen.rectangle((x, side, x + width, side + 1.4 * font.size), fill=colors[label])
            pen.text((x + LABEL_PADDING, side), text, fill=_text_color(colors[label]), font=font)
            x += width + LABEL_PADDING
        tiles.append(pil_to_tensor(tile))
    return to_pil_image(make_grid(tiles, nrow=columns, padding=side // 20, pad_value=255))
