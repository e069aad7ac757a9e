"""Draw a small dataset for the tutorials: python draw_dataset.py {shirts,parts,streets} OUTPUT_DIR [--images N].

shirts: classification, a folder per class. parts: detection of coins and bolts, COCO. streets: segmentation, a mask
per image. Images are drawn at random from a fixed seed; a fifth of them is the test split of parts and streets.
"""

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

COLORS = {"blue": (38, 84, 140), "green": (52, 120, 70), "red": (176, 52, 48)}
PARTS = ("bolt", "coin")
STREETS = ("sky", "building", "road", "car")
Color = tuple[int, int, int]


def vary(color: Color, amount: float) -> Color:
    """Return a color (R, G, B) with a random offset per channel."""
    red, green, blue = (max(0, min(255, round(value + random.uniform(-amount, amount)))) for value in color)
    return red, green, blue


def darken(color: Color) -> Color:
    """Return a color of half the brightness."""
    return color[0] // 2, color[1] // 2, color[2] // 2


def draw_shirts(folder: Path, images: int) -> None:
    """Draw photos of T-shirts, in a folder per color."""
    from mobilevit_hf.samples import PAPER, draw_t_shirt

    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(images):
            side = random.randint(180, 260)
            shirt = draw_t_shirt(vary(color, 30)).resize((side, side))
            photo = Image.new("RGB", (320, 240), PAPER)
            photo.paste(shirt, (random.randint(0, 320 - side), (240 - side) // 2))
            photo = photo.rotate(random.uniform(-15, 15), Image.Resampling.BILINEAR, fillcolor=PAPER)
            photo.save(folder / name / f"{name}-{index:03}.jpg")


def draw_part(draw: ImageDraw.ImageDraw, name: str, x: int, y: int, size: int) -> list[int]:
    """Draw a coin or a bolt of a size in pixels; return its box (x, y, width, height)."""
    if name == "coin":
        metal = vary((196, 160, 84), 25)
        draw.ellipse((x, y, x + size, y + size), metal, darken(metal), 2)
        rim = size * 0.16
        draw.ellipse((x + rim, y + rim, x + size - rim, y + size - rim), None, darken(metal), 1)
        return [x, y, size, size]
    metal, thickness = vary((120, 124, 132), 15), max(5, size // 4)
    draw.rectangle((x, y + thickness, x + size * 3 // 4, y + 2 * thickness), metal, (50, 52, 58))
    draw.rectangle((x + size * 3 // 4, y, x + size, y + 3 * thickness), metal, (50, 52, 58))
    return [x, y, size, 3 * thickness]


def draw_parts(folder: Path, images: int) -> None:
    """Draw coins and bolts on a table, with boxes in COCO format."""
    for split, count in (("train", images - images // 5), ("test", images // 5)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        coco = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in enumerate(PARTS, 1)]}
        for index in range(count):
            photo = Image.new("RGB", (480, 360), vary((150, 112, 78), 20))
            draw = ImageDraw.Draw(photo)
            for _ in range(30):
                y = random.randint(0, 359)
                draw.line((0, y, 479, y + random.randint(-9, 9)), vary((140, 104, 72), 12), 2)
            file = f"{split}-{index:03}.jpg"
            coco["images"].append({"id": index, "file_name": file, "width": 480, "height": 360})
            for cell in random.sample(range(12), random.randint(3, 9)):
                name, size = random.choice(PARTS), random.randint(24, 84)
                x = cell % 4 * 120 + random.randint(0, 120 - size)
                y = cell // 4 * 120 + random.randint(0, 120 - size)
                box = draw_part(draw, name, x, y, size)
                coco["annotations"].append(
                    {
                        "id": len(coco["annotations"]) + 1,
                        "image_id": index,
                        "category_id": PARTS.index(name) + 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
            photo.filter(ImageFilter.GaussianBlur(0.8)).save(folder / split / file)
        (folder / split / "_annotations.coco.json").write_text(json.dumps(coco), encoding="utf-8")


def draw_class(
    layers: tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw], shape: str, corners: Sequence, color: Color, name: str
) -> None:
    """Draw a shape on the photo in a color, and on the mask with the index of its class."""
    for layer, value in zip(layers, (color, STREETS.index(name)), strict=True):
        getattr(layer, shape)(corners, value)


def draw_streets(folder: Path, images: int) -> None:
    """Draw streets with a mask of class indices per image, and the class names in classes.txt."""
    palette = (135, 190, 235, 160, 80, 70, 90, 90, 95, 30, 60, 200)
    for split, count in (("train", images - images // 5), ("test", images // 5)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            photo, mask = Image.new("RGB", (320, 240), vary((150, 195, 235), 20)), Image.new("P", (320, 240), 0)
            mask.putpalette(palette)
            draw, label = ImageDraw.Draw(photo), ImageDraw.Draw(mask)
            horizon, x = random.randint(120, 150), 0
            while x < 320:
                width, top = random.randint(40, 90), horizon - random.randint(20, 100)
                if random.random() < 0.75:
                    color = vary((165, 110, 95), 35)
                    draw_class((draw, label), "rectangle", (x, top, x + width, horizon), color, "building")
                    for window in range(x + 8, x + width - 8, 16):
                        draw.rectangle((window, top + 8, window + 6, top + 16), darken(color))
                x += width
            draw_class((draw, label), "rectangle", (0, horizon, 319, 239), vary((100, 100, 104), 15), "road")
            for x in range(0, 320, 40):
                draw.line((x, 195, x + 20, 195), (220, 220, 210), 3)
            for cell in random.sample(range(4), random.randint(1, 3)):
                color, x, y = vary((120, 60, 120), 90), cell * 80 + random.randint(0, 15), random.randint(150, 190)
                draw_class((draw, label), "rectangle", (x, y, x + 60, y + 20), color, "car")
                draw_class(
                    (draw, label),
                    "polygon",
                    [(x + 10, y), (x + 18, y - 14), (x + 42, y - 14), (x + 52, y)],
                    color,
                    "car",
                )
                for wheel in (x + 8, x + 40):
                    draw_class((draw, label), "ellipse", (wheel, y + 13, wheel + 13, y + 26), (25, 25, 28), "car")
            noise = Image.effect_noise((320, 240), 20 + 10 * math.sin(index)).convert("RGB")
            photo = Image.blend(photo.filter(ImageFilter.GaussianBlur(0.7)), noise, 0.1)
            photo.save(folder / "images" / split / f"{split}-{index:03}.jpg")
            mask.save(folder / "masks" / split / f"{split}-{index:03}.png")
    (folder / "classes.txt").write_text("\n".join(STREETS) + "\n", encoding="utf-8")


def main() -> None:
    """Draw a dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=("shirts", "parts", "streets"))
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path)
    parser.add_argument("--images", type=int, default=60, help="number of images, of shirts per color")
    arguments = parser.parse_args()
    random.seed(0)
    {"shirts": draw_shirts, "parts": draw_parts, "streets": draw_streets}[arguments.dataset](
        arguments.output_dir, arguments.images
    )


if __name__ == "__main__":
    main()
